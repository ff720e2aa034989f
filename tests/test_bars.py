"""Bars for those who call the library."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

import krstore
from krstore.testing import example_source


def written(console: Console, folder: Path, bars: krstore.Bars) -> str:
    krstore.encode(example_source(200, (4, 4, 4)), folder / "x.krs", "pq", ratio=8, device="cpu", progress=bars)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("live", [False, True])
def test_bars_are_where_somebody_looks(live: bool, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=live, width=120)
    shown = written(console, tmp_path, krstore.Bars(console))
    assert ("samples" in shown) == live


def test_no_bars_unless_wanted(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    assert not written(console, tmp_path, krstore.Bars(console, live=False, note=lambda message: None))


def test_notes_are_lines_of_the_console(capsys: pytest.CaptureFixture[str]) -> None:
    krstore.Bars().note("[bold] 3 of 4")
    assert capsys.readouterr().err == "[bold] 3 of 4\n"


def test_finished_work_is_said() -> None:
    done: list[str] = []
    with krstore.Bars(done=done.append).task("fit", 3, "iterations") as task:
        task.advance(3, loss=0.5)
    assert done[0].startswith("fit: 3 iterations in 0.")
    assert done[0].endswith("loss=0.5")
