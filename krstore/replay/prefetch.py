"""Work ahead: the next items of an iterator are made in a thread while the last one is in use."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ClassVar, TypeVar

__all__ = ["ahead"]

Item = TypeVar("Item")
_END = object()


def ahead(items: Iterator[Item], count: int) -> Iterator[Item]:
    """Yield what the iterator yields, having it make up to `count` items more in a thread; 0 uses none."""
    if count == 0:
        yield from items
        return
    worker = _Worker.take()
    pending: deque[Future[object]] = deque()
    try:
        while True:
            while len(pending) <= count:
                pending.append(worker.submit(items))
            item = pending.popleft().result()
            if item is _END:
                return
            yield item  # type: ignore[misc]
    finally:
        worker.give_back(pending)


class _Worker:
    """A thread that makes items one after another, and stays when nobody needs it.

    Workers of a `DataLoader` are forks of this process. In one, MKL waits for ever for memory that a thread had which
    has ended, and for a lock that one holds which is at work; so threads do not end, and forking waits for their items.
    """

    every: ClassVar[list[_Worker]] = []
    idle: ClassVar[list[_Worker]] = []

    def __init__(self) -> None:
        self._pool, self._working = ThreadPoolExecutor(1, "krstore-replay"), threading.RLock()
        self.every.append(self)

    @classmethod
    def take(cls) -> _Worker:
        """Return one that nobody needs, or a new one."""
        try:
            return cls.idle.pop()
        except IndexError:
            return cls()

    def submit(self, items: Iterator[object]) -> Future[object]:
        """Have the next item made; `_END` when there is none."""
        return self._pool.submit(self._next, items)

    def give_back(self, pending: deque[Future[object]]) -> None:
        """Make nothing more of what is pending, and be there for another."""
        for future in pending:
            future.cancel()
        for future in pending:
            if not future.cancelled():
                future.exception()
        self.idle.append(self)

    def _next(self, items: Iterator[object]) -> object:
        with self._working:
            return next(items, _END)

    @classmethod
    def _before_fork(cls) -> None:
        for worker in cls.every:
            worker._working.acquire()

    @classmethod
    def _after_fork(cls) -> None:
        for worker in cls.every:
            worker._working.release()

    @classmethod
    def _in_child(cls) -> None:
        cls.every.clear()
        cls.idle.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_Worker._before_fork, after_in_parent=_Worker._after_fork, after_in_child=_Worker._in_child
    )
