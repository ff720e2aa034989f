"""New samples with replayed ones beside them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from krstore.errors import UsageError

__all__ = ["Batch", "MixedBatch", "mixed"]

Batch = tuple[Tensor, Tensor]


class MixedBatch(NamedTuple):
    """New samples with old ones behind them.

    Attributes:
        x: features (B, *shape).
        y: labels (B,).
        replayed: which of them are old (B,), bool.
    """

    x: Tensor
    y: Tensor
    replayed: Tensor


def mixed(
    new: Iterable[Batch],
    old: Callable[[int], Iterator[Batch]],
    transform: Callable[[Batch], Batch],
    ratio: float,
    owed: float,
) -> Iterator[tuple[MixedBatch, int, float]]:
    """Yield each new batch with old samples added, how many these are, and what rounding owes behind it.

    Args:
        new: batches (x, y).
        old: called once, with how many samples the first batch takes; returns batches of old ones without end.
        transform: what becomes of the old ones that join a batch.
        ratio: old samples a new one.
        owed: part of an old sample that rounding owes at first.

    Raises:
        UsageError: a new batch is no pair of tensors, of as many samples as labels, or its samples have another shape.
    """
    supply: _Supply | None = None
    with contextlib.ExitStack() as open_until_the_end:
        for batch in new:
            x, y = _pair(batch)
            owed += len(x) * ratio
            count = math.floor(owed + 0.5)
            owed -= count
            replayed = torch.arange(len(x) + count, device=x.device) >= len(x)
            if count:
                if supply is None:
                    supply = _Supply(old(count))
                    open_until_the_end.callback(supply.close)
                x, y = _joined((x, y), transform(supply.take(count)))
            yield MixedBatch(x, y, replayed), count, owed


def _joined(new: Batch, old: Batch) -> Batch:
    (x, y), (old_x, old_y) = new, old
    if x.shape[1:] != old_x.shape[1:] or y.shape[1:] != old_y.shape[1:]:
        raise UsageError(
            f"new samples are {tuple(x.shape[1:])} with labels {tuple(y.shape[1:])}, replayed ones "
            f"{tuple(old_x.shape[1:])} with labels {tuple(old_y.shape[1:])}; bring them to one shape, by the loader of "
            "the new ones or the replay's transform"
        )
    return torch.cat([x, old_x.to(x.device, x.dtype)]), torch.cat([y, old_y.to(y.device, y.dtype)])


def _pair(batch: Any) -> Batch:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        said = f"{len(batch)} parts" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise UsageError(f"the new task's batches are {said}; mixing takes (x, y)")
    x, y = batch
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        raise UsageError(
            f"the new task's batches are of {type(x).__name__} and {type(y).__name__}; mixing takes tensors"
        )
    if len(x) != len(y):
        raise UsageError(f"a batch of the new task has {len(x)} samples and {len(y)} labels")
    return x, y


class _Supply:
    """Samples of batches (x, y), taken in any numbers.

    Args:
        batches: as many as are needed; a generator, closed in the end.
    """

    def __init__(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        self._batches = batches
        self._left: tuple[Tensor, Tensor] | None = None

    def take(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the next `count` samples."""
        x, y = self._left or next(self._batches)
        pieces = [(x[:count], y[:count])]
        while len(x) < count:
            count -= len(x)
            x, y = next(self._batches)
            pieces.append((x[:count], y[:count]))
        self._left = x[count:], y[count:]
        return torch.cat([x for x, _ in pieces]), torch.cat([y for _, y in pieces])

    def close(self) -> None:
        """Make no more batches."""
        self._batches.close()  # type: ignore[attr-defined]
