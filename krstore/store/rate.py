"""Rate control: finding the setting of a codec that honours a target from the right side.

The one place that knows about targets. Codecs only know a byte budget (before their fit) and a knob (when packing).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from krstore.codec import Knob
from krstore.errors import TargetUnreachableError, UsageError

__all__ = ["Target", "bytes_at", "make_target", "search"]

DEFAULT_RATIO = 20.0
TOLERANCE = 0.005
MAX_TRIALS = 24
FIRST_STRIDE = 1.03
LARGEST_FILE = 1 << 62


@dataclass(frozen=True)
class Target:
    """What the finished file must honour: at most `max_bytes` bytes, or at most `max_mse` (raw units)."""

    max_bytes: int | None = None
    max_mse: float | None = None

    def describe(self, value: float) -> str:
        """Say a reached value in the target's unit."""
        return f"{value:,.0f} bytes" if self.max_bytes is not None else f"mse {value:.6g}"

    @property
    def limit(self) -> float:
        """The bound."""
        bound = self.max_bytes if self.max_bytes is not None else self.max_mse
        return math.inf if bound is None else bound


def bytes_at(ratio: float, source_bytes: int) -> int:
    """Return how many bytes a ratio leaves to what takes `source_bytes`; at most 2^62, more than any file has."""
    return math.floor(min(source_bytes / ratio, LARGEST_FILE))


def make_target(source_bytes: int, ratio: float | None, max_bytes: int | None, max_mse: float | None) -> Target | None:
    """Turn what a user asked for (at most one of the three) into a target.

    Raises:
        UsageError: more than one was asked for, or a value is not positive.
    """
    asked = {"ratio": ratio, "max_bytes": max_bytes, "max_mse": max_mse}
    given = {name: value for name, value in asked.items() if value is not None}
    if len(given) > 1:
        raise UsageError(f"give one target, not {' and '.join(given)}")
    for name, value in given.items():
        if not 0 < value < math.inf:
            raise UsageError(f"{name}={value} is not a positive number")
    if ratio is not None:
        return Target(max_bytes=bytes_at(ratio, source_bytes))
    if max_bytes is not None:
        return Target(max_bytes=min(max_bytes, LARGEST_FILE))
    return None if max_mse is None else Target(max_mse=max_mse)


def search(codec: str, knob: Knob | None, target: Target, trial: Callable[[float], float]) -> None:
    """Call `trial` until its last call is the setting nearest to the target on the allowed side.

    Args:
        codec: for messages.
        knob: the codec's setting; `None` when it has none, so that one trial decides.
        target: what `trial`'s value must not exceed.
        trial: packs at a knob's value and returns the file's bytes, or its mse.

    Raises:
        TargetUnreachableError: not even the best end of the knob honours the target; says what was reached.
    """
    _Search(codec, knob or Knob(0, 0, 0, integer=True), target, trial).run()


class _Search:
    """Bisection with interpolation on an axis where bytes, or mse, fall: `good` honours the target, `bad` does not."""

    def __init__(self, codec: str, knob: Knob, target: Target, trial: Callable[[float], float]) -> None:
        self.codec, self.knob, self.target, self.trial = codec, knob, target, trial
        self.by_bytes = target.max_bytes is not None
        self.last: float | None = None
        self.value = math.inf

    def run(self) -> None:
        """Bracket the target by growing steps from the start, then close in."""
        limit = self.target.limit
        at, value = self.knob.start, self._try(self.knob.start)
        fits = value <= limit
        towards = self._end(safer=not fits)
        other, other_value, stride = at, value, FIRST_STRIDE
        while (value <= limit) == fits and not self._close(value):
            if at == towards:
                if fits:
                    return
                self._unreachable(value)
            other, other_value = at, value
            at, stride = self._step(at, towards, stride), stride**2
            value = self._try(at)
        good, bad = ((other, other_value), (at, value)) if fits else ((at, value), (other, other_value))
        if self._close(value):
            return
        for _ in range(MAX_TRIALS):
            if self._close(good[1]) or self._adjacent(good[0], bad[0]):
                break
            at = self._between(good, bad)
            value = self._try(at)
            good, bad = (good, (at, value)) if value > limit else ((at, value), bad)
        self._try(good[0])

    def _end(self, *, safer: bool) -> float:
        """Return the end of the knob where bytes (or mse) are least, or most."""
        return self.knob.high if safer == self.by_bytes else self.knob.low

    def _step(self, at: float, towards: float, stride: float) -> float:
        """Move by a factor, or over a whole list's half, towards an end and not past it."""
        if self.knob.integer:
            return at + (1 if towards > at else -1) * max(1, abs(int(towards - at)) // 2)
        return min(at * stride, towards) if towards > at else max(at / stride, towards)

    def _try(self, knob: float) -> float:
        if self.last == knob:
            return self.value
        self.last, self.value = knob, self.trial(knob)
        return self.value

    def _close(self, value: float) -> bool:
        return (1 - TOLERANCE) * self.target.limit <= value <= self.target.limit

    def _adjacent(self, good: float, bad: float) -> bool:
        return abs(good - bad) <= 1 if self.knob.integer else abs(good - bad) <= 1e-6 * max(abs(good), abs(bad))

    def _between(self, good: tuple[float, float], bad: tuple[float, float]) -> float:
        """Interpolate the logarithms towards half the tolerance, kept inside the middle 90 % of the bracket."""
        if self.knob.integer:
            return float((int(good[0]) + int(bad[0])) // 2 if abs(good[0] - bad[0]) > 1 else good[0])
        a, b = math.log(good[0]), math.log(bad[0])
        va, vb = (math.log(max(v, 1e-300)) for v in (good[1], bad[1]))
        wanted = math.log(self.target.limit * (1 - TOLERANCE / 2))
        share = (wanted - va) / (vb - va) if vb > va else 0.5
        return math.exp(a + (b - a) * min(0.95, max(0.05, share)))

    def _unreachable(self, reached: float) -> None:
        raise TargetUnreachableError(
            f"{self.codec} reached {self.target.describe(reached)} at best; asked for at most "
            f"{self.target.describe(self.target.limit)}. Ask for less, or try another codec or preset; "
            "no file was written"
        )
