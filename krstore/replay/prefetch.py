"""Work ahead: the next batches are made in a thread while the last one is in use."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["Supply", "ahead"]

Item = TypeVar("Item")
_END = object()


def ahead(items: Iterator[Item], count: int) -> Iterator[Item]:
    """Yield what the iterator yields, having it make up to `count` items more in a thread; 0 uses none."""
    if count == 0:
        yield from items
        return
    pool = ThreadPoolExecutor(1, "krstore-replay")
    pending: deque[Future[object]] = deque()
    try:
        while True:
            while len(pending) <= count:
                pending.append(pool.submit(next, items, _END))
            item = pending.popleft().result()
            if item is _END:
                return
            yield item  # type: ignore[misc]
    finally:
        pool.shutdown(cancel_futures=True)


class Supply:
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
