"""The one place that writes: data to stdout, everything else to stderr.

Commands never print. They call `begin` with their ``--json``, ``-q`` and ``-v``, and the `Output` they get.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from krstore.errors import OutputError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from krstore.progress import Progress

__all__ = ["SCHEMA_VERSION", "Output", "begin", "block", "current", "open_streams", "percent", "table"]

SCHEMA_VERSION = 1


class Output:
    """Where a command's results and messages go.

    Args:
        as_json: results are JSON instead of text.
        quiet: only results and errors.
        verbose: 1 adds details, 2 the tracebacks of errors.
    """

    def __init__(self, as_json: bool = False, quiet: bool = False, verbose: int = 0) -> None:
        self.as_json, self.quiet, self.verbose = as_json, quiet, verbose

    def result(self, data: Mapping[str, Any] | Sequence[Mapping[str, Any]], *shown: RenderableType) -> None:
        """Write a result to stdout: `data` with ``--json``, each object with its ``schema_version``; else `shown`.

        Raises:
            OutputError: stdout is closed, or cannot be written to.
        """
        with _named():
            if self.as_json:
                versioned = _versioned(data) if isinstance(data, Mapping) else [_versioned(item) for item in data]
                sys.stdout.write(json.dumps(versioned, indent=2) + "\n")
            else:
                for renderable in shown:
                    self._out.print(plain(renderable) if isinstance(renderable, str) else renderable, soft_wrap=True)

    def status(self, message: str) -> None:
        """Say on stderr what happened."""
        if not self.quiet:
            self.err.print(plain(message), soft_wrap=True)

    def detail(self, message: str) -> None:
        """Say on stderr what only ``-v`` asks for."""
        if self.verbose:
            self.status(message)

    def warning(self, message: str) -> None:
        """Say on stderr what may be wrong."""
        if not self.quiet:
            self._line("warning", "bold yellow", message)

    def error(self, message: str) -> None:
        """Say on stderr, in one line, what is wrong."""
        self._line("error", "bold red", message)

    def trace(self, text: str) -> None:
        """Show a traceback on stderr."""
        self.err.print(plain(text.rstrip()), soft_wrap=True)

    def progress(self) -> Progress:
        """Return what shows the library's work: bars, where stderr is a terminal that somebody looks at."""
        from krstore.bars import Bars

        live = not self.quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        return Bars(self.err, live=live, note=self.status, done=self.detail)

    def _line(self, kind: str, style: str, message: str) -> None:
        from rich.text import Text

        self.err.print(Text.assemble((f"{kind}: ", style), plain(" ".join(message.split()))), soft_wrap=True)

    @cached_property
    def _out(self) -> Console:
        return _console(sys.stdout)

    @cached_property
    def err(self) -> Console:
        """The console of stderr, which bars and messages share."""
        return _console(sys.stderr)


_current = Output()


def open_streams() -> None:
    """Make the streams take any text: what one cannot encode is escaped. Messages to a closed stderr go nowhere."""
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def begin(as_json: bool = False, quiet: bool = False, verbose: int = 0) -> Output:
    """Return the output of the command that begins."""
    global _current
    _current = Output(as_json, quiet, verbose)
    return _current


def current() -> Output:
    """Return the output of the command under way."""
    return _current


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> Table:
    """Return rows under column headings, numbers to the right."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title=title, title_justify="left", title_style="bold")
    cells = [[plain(cell) for cell in row] for row in rows]
    for number, column in enumerate(columns):
        numeric = all(row[number][:1].isdigit() or row[number] in ("", "-") for row in cells)
        shown.add_column(column, justify="right" if numeric else "left", header_style="bold")
    for row in cells:
        shown.add_row(*(Text(cell) for cell in row))
    return shown


def block(title: str, pairs: Iterable[tuple[str, str]]) -> RenderableType:
    """Return a title and, below it, names and values, aligned."""
    from rich.text import Text

    lines = list(pairs)
    width = max((len(name) for name, _ in lines), default=0)
    body = "".join(f"\n{name:<{width}}  {plain(value)}" for name, value in lines)
    return Text.assemble((plain(title), "bold"), body)


def percent(value: float, spread: float | None) -> str:
    """Return a share and its standard deviation, if there is one, in percent; ± where stdout can say it."""
    sign = "±" if (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf") else "+-"
    return f"{100 * value:.2f}" + ("" if spread is None else f" {sign} {100 * spread:.2f}")


def plain(text: str) -> str:
    """Return text with what a terminal would obey (escape sequences in a hostile header) made visible."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """Name standard output in what keeps a result from being written to it."""
    if sys.stdout is None:
        raise OutputError("standard output is closed; the result has nowhere to go")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output cannot be written to: {error.strerror or error}") from error


def _versioned(data: Mapping[str, Any]) -> dict[str, Any]:
    return {"schema_version": SCHEMA_VERSION, **data}


def _console(file: IO[str]) -> Console:
    """Return a console that wraps nothing unless it is a terminal, and keeps to NO_COLOR."""
    from rich.console import Console

    wide = None if file.isatty() else 10_000
    plain_text = bool(os.environ.get("NO_COLOR")) or not file.isatty()
    colours: Literal["auto"] | None = None if plain_text else "auto"
    return Console(file=file, width=wide, color_system=colours, highlight=False, markup=False, emoji=False)
