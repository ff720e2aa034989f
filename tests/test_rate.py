"""Rate control: the target is honoured from the right side, closely, in few trials; by any codec through `encode`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import krstore
from krstore.codec import Knob
from krstore.errors import TargetUnreachableError, UsageError
from krstore.store.rate import Target, make_target, search
from krstore.testing import ArraySource, example_source

SIZES, ERRORS = "bytes", "mse"


class Trials:
    """A synthetic codec: a value by knob, and the calls that were made."""

    def __init__(self, value: Callable[[float], float]) -> None:
        self.value, self.calls = value, []

    def __call__(self, knob: float) -> float:
        self.calls.append(knob)
        return self.value(knob)

    @property
    def chosen(self) -> float:
        """What the last call left behind."""
        return self.value(self.calls[-1])


def target(kind: str, limit: float) -> Target:
    return Target(max_bytes=int(limit)) if kind == SIZES else Target(max_mse=limit)


@st.composite
def curves(draw: st.DrawFn) -> tuple[str, Knob, Callable[[float], float]]:
    """A continuous knob and a value that falls (bytes) or rises (mse) along it, as a power with a bend and a floor."""
    kind = draw(st.sampled_from([SIZES, ERRORS]))
    low = draw(st.floats(1e-4, 1))
    knob = Knob(low, low * draw(st.floats(1, 1e3)), low * draw(st.floats(1e3, 1e6)))
    scale, power = draw(st.floats(1e6, 1e9)), draw(st.floats(0.05, 2.5))
    bend, floor = draw(st.floats(0, 3)), draw(st.floats(0, 0.3))

    def value(at: float) -> float:
        x = math.log(at / knob.low) / math.log(knob.high / knob.low)
        share = floor + (1 - floor) * math.exp(-power * 5 * x ** (1 + bend))
        return scale * share if kind == SIZES else 1 / (scale * share)

    return kind, knob, value


@given(curve=curves(), share=st.floats(0.02, 0.98))
@settings(max_examples=300, deadline=None)
def test_continuous_knobs_come_within_one_percent(
    curve: tuple[str, Knob, Callable[[float], float]], share: float
) -> None:
    kind, knob, value = curve
    ends = value(knob.low), value(knob.high)
    limit = min(ends) * (max(ends) / min(ends)) ** share
    trials = Trials(value)
    search("x", knob, target(kind, limit), trials)
    limit = math.floor(limit) if kind == SIZES else limit
    assert 0.99 * limit <= trials.chosen <= limit
    assert len(trials.calls) <= 30
    assert all(knob.low <= call <= knob.high for call in trials.calls)


@given(
    values=st.lists(st.integers(100, 10**6), min_size=1, max_size=60, unique=True),
    start=st.integers(0, 59), limit=st.integers(50, 10**6 + 100), kind=st.sampled_from([SIZES, ERRORS]),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_integer_knobs_find_the_best_setting(values: list[int], start: int, limit: int, kind: str) -> None:
    """A list of settings, largest file (smallest error) first: the first (last) that honours the target."""
    ordered = sorted(values, reverse=kind == SIZES)
    knob = Knob(0, min(start, len(values) - 1), len(values) - 1, integer=True)
    trials = Trials(lambda at: float(ordered[int(at)]))
    allowed = [value for value in values if value <= limit]
    if not allowed:
        with pytest.raises(TargetUnreachableError, match=f"reached .*{min(values):,.0f} bytes|reached mse"):
            search("x", knob, target(kind, limit), trials)
        return
    search("x", knob, target(kind, limit), trials)
    got = trials.chosen
    assert got <= limit
    assert got == max(allowed) or got >= 0.99 * limit
    assert all(call == int(call) for call in trials.calls)
    assert len(trials.calls) <= 30


def test_a_knob_of_steps_honours_the_target_still() -> None:
    trials = Trials(lambda at: float(1000 * math.ceil(100 / at)))
    search("x", Knob(1, 10, 100), Target(max_bytes=7500), trials)
    assert trials.chosen == 7000
    assert len(trials.calls) <= 30


@pytest.mark.parametrize("kind", [SIZES, ERRORS])
def test_an_unreachable_target_says_what_was_reached(kind: str) -> None:
    trials = Trials(lambda at: 5000 / at if kind == SIZES else 5000 * at)
    with pytest.raises(TargetUnreachableError) as caught:
        search("mycodec", Knob(1, 2, 4), target(kind, 1000), trials)
    said = {SIZES: "mycodec reached 1,250 bytes at best; asked for at most 1,000 bytes",
            ERRORS: "mycodec reached mse 5000 at best; asked for at most mse 1000"}[kind]  # fmt: skip
    assert said in str(caught.value)
    assert len(trials.calls) <= 30


def test_a_target_beyond_the_best_end_takes_that_end() -> None:
    """Nobody needs a smaller error than the least, or a larger file than the largest."""
    trials = Trials(lambda at: 5000 / at)
    search("x", Knob(1, 2, 4), Target(max_bytes=10**9), trials)
    assert trials.calls[-1] == 1
    trials = Trials(lambda at: at)
    search("x", Knob(1, 2, 4), Target(max_mse=10**9), trials)
    assert trials.calls[-1] == 4


def test_no_knob_is_one_trial() -> None:
    trials = Trials(lambda at: 700.0)
    search("x", None, Target(max_bytes=1000), trials)
    assert len(trials.calls) == 1
    with pytest.raises(TargetUnreachableError, match="reached 700 bytes at best"):
        search("x", None, Target(max_bytes=699), trials)


@pytest.mark.parametrize(
    ("asked", "limit"),
    [
        ((10.0, None, None), 123), ((None, 77, None), 77), ((None, None, 0.5), 0.5),
        ((1e-320, None, None), 1 << 62), ((None, 10**400, None), 1 << 62),
    ],
)  # fmt: skip
def test_targets(asked: tuple[Any, Any, Any], limit: float) -> None:
    made = make_target(1239, *asked)
    assert made is not None
    assert made.limit == limit


def test_no_target() -> None:
    assert make_target(1000, None, None, None) is None


@pytest.mark.parametrize("asked", [(2.0, 100, None), (None, 100, 0.1), (2.0, None, 0.1), (2.0, 100, 0.1)])
def test_one_target_only(asked: tuple[Any, Any, Any]) -> None:
    with pytest.raises(UsageError, match=r"give one target, not .* and "):
        make_target(1000, *asked)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
@pytest.mark.parametrize("place", range(3))
def test_targets_that_are_none(value: float, place: int) -> None:
    asked: list[Any] = [None, None, None]
    asked[place] = value
    with pytest.raises(UsageError, match="is not a positive number"):
        make_target(1000, *asked)


# through encode

SOURCE = example_source(600, (8, 4, 4))
FAST = {
    "krnet": {"iterations": 10},
    "autoencoder": {"iterations": 10},
    "transform": {"iterations": 10},
    "pq": {"iterations": 3, "train_points": 16},
}


def encode(path: Path, codec: str, source: ArraySource = SOURCE, **options: Any) -> krstore.Store:
    if codec == "pq":
        pytest.importorskip("faiss")
    return krstore.encode(source, path, codec, settings=FAST[codec], device="cpu", **options)


@pytest.mark.parametrize("codec", ["krnet", "autoencoder", "transform"])
@pytest.mark.parametrize("ratio", [4.0, 10.0])
def test_neural_codecs_spend_a_ratio(tmp_path: Path, codec: str, ratio: float) -> None:
    store = encode(tmp_path / "x.krs", codec, ratio=ratio)
    assert ratio <= store.ratio <= 1.02 * ratio
    assert store.ratio == SOURCE.features.nbytes / store.path.stat().st_size


@pytest.mark.parametrize("codec", FAST)
def test_a_size_is_honoured(tmp_path: Path, codec: str) -> None:
    store = encode(tmp_path / "x.krs", codec, max_bytes=50_001)
    assert (0.98 if codec != "pq" else 0.7) * 50_001 <= store.path.stat().st_size <= 50_001


@pytest.mark.parametrize("codec", FAST)
def test_an_error_is_honoured(tmp_path: Path, codec: str) -> None:
    """One that a few iterations can reach: that of a decoder which knows the mean only."""
    limit = float(SOURCE.features.var(dtype=np.float64))
    store = encode(tmp_path / "x.krs", codec, max_mse=limit)
    truth, decoded = SOURCE.features.astype(np.float64), store.read(slice(None)).astype(np.float64)
    assert np.square(truth - decoded).mean() == pytest.approx(store.quality.mse)
    assert store.quality.mse <= limit


def test_a_larger_error_buys_a_smaller_file(tmp_path: Path) -> None:
    stores = [encode(tmp_path / f"{mse}.krs", "pq", max_mse=mse) for mse in (0.2, 0.05, 0.01)]
    sizes = [store.path.stat().st_size for store in stores]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("codec", FAST)
@pytest.mark.parametrize("target", [{"ratio": 300.0}, {"max_bytes": 1000}, {"max_mse": 1e-12}])
def test_an_unreachable_target_leaves_no_file(tmp_path: Path, codec: str, target: dict[str, Any]) -> None:
    small = example_source(60)
    with pytest.raises(TargetUnreachableError, match=codec):
        encode(tmp_path / "x.krs", codec, small, **target)
    assert [entry.name for entry in tmp_path.iterdir() if not entry.name.endswith(".checkpoint")] == []


def test_two_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give one target, not ratio and max_mse"):
        encode(tmp_path / "x.krs", "krnet", ratio=2.0, max_mse=1.0)


def test_figures_of_many_classes_fit_into_the_target(tmp_path: Path) -> None:
    """A thousand errors by class are part of the file, and known only when it is packed."""
    features = np.maximum(np.random.default_rng(0).normal(size=(1000, 4, 2, 2)), 0).astype(np.float32)
    source = ArraySource(features, np.arange(1000) * 7 - 5)
    store = encode(tmp_path / "x.krs", "pq", source, ratio=1.0)
    assert store.ratio >= 1
    assert len(store.quality.per_class) == 1000
