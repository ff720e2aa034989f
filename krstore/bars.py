"""How long work shows itself on a terminal, or in a notebook."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from rich.progress import TaskID

__all__ = ["Bars"]

DAY = 24 * 3600.0  # seconds that a rate is taken over; rich's half a minute is less than a step of a run may take


class Bars:
    """A `krstore.progress.Progress` of bars with rate, figures and time left: ``krstore.encode(..., progress=Bars())``.

    Bars are for somebody who looks: a terminal or a notebook. Elsewhere there are notes alone.

    Args:
        console: where; default stderr.
        live: show bars; default where somebody looks.
        note: says what was decided; default a line on the console.
        done: says what each piece of work came to; default nothing.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        live: bool | None = None,
        note: Callable[[str], None] | None = None,
        done: Callable[[str], None] | None = None,
    ) -> None:
        self._console = Console(stderr=True) if console is None else console
        if live is None:
            live = self._console.is_jupyter or (self._console.is_terminal and os.environ.get("TERM") != "dumb")
        self._note, self._done = note, done
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:,}/{task.total:,} {task.fields[unit]}", markup=False),
            _Rate(),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
            speed_estimate_period=DAY,
            disable=not live,
        )

    def note(self, message: str) -> None:
        """Say one line of what was decided."""
        if self._note is None:
            self._console.print(Text(message), soft_wrap=True)
        else:
            self._note(message)

    @contextlib.contextmanager
    def task(self, description: str, total: int, unit: str = "samples") -> Iterator[_Work]:
        """Show a bar while the block runs; bars of nested blocks stand below each other."""
        began = time.monotonic()
        self._bars.start()
        number = self._bars.add_task(description, total=total, unit=unit, figures="")
        work = _Work(self._bars, number)
        try:
            yield work
            if self._done is not None:
                self._done(f"{description}: {work.done:,} {unit} in {time.monotonic() - began:.1f} s {work.figures}")
        finally:
            self._bars.remove_task(number)
            if not self._bars.tasks:
                self._bars.stop()


class _Work:
    def __init__(self, bars: Progress, number: TaskID) -> None:
        self._bars, self._number = bars, number
        self.done, self.figures = 0, ""

    def advance(self, amount: int = 1, **figures: float) -> None:
        self.done += amount
        if figures:
            self.figures = " ".join(f"{name}={value:.4g}" for name, value in figures.items())
        self._bars.update(self._number, advance=amount, figures=self.figures)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s")
