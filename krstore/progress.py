"""How long work reports itself: the library calls, a front end shows.

The library never prints. Whoever calls it passes a `Progress`, `krstore.Bars` for one; the default keeps silent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

__all__ = ["SILENT", "Progress", "Task"]


class Task(Protocol):
    """One piece of work under way."""

    def advance(self, amount: int = 1, **figures: float) -> None:
        """Say that `amount` more units are done; `figures` (for example ``loss=0.01``) are shown beside them."""


class Progress(Protocol):
    """Shows pieces of work."""

    def task(self, description: str, total: int, unit: str = "samples") -> contextlib.AbstractContextManager[Task]:
        """Open a piece of work of `total` units."""

    def note(self, message: str) -> None:
        """Say one line of what was decided, such as the sizes a codec chose."""


class _Silent:
    def advance(self, amount: int = 1, **figures: float) -> None:
        return

    @contextlib.contextmanager
    def task(self, description: str, total: int, unit: str = "samples") -> Iterator[Task]:
        yield self

    def note(self, message: str) -> None:
        return


SILENT: Progress = _Silent()
