"""Work ahead: the next items of an iterator are made in a thread while the last one is in use."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["ahead"]

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
