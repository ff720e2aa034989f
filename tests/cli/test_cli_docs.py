"""The pages of the command line: one a command, complete, and with examples that run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from typer.main import get_command

from krstore_cli.app import run
from krstore_cli.commands import app

PAGES = Path(__file__).parents[2] / "docs" / "cli"
COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]


def options(command: Any) -> dict[str, Any]:
    """Return the long options of a command, or of all commands of a group."""
    if hasattr(command, "commands"):
        return {name: p for own in command.commands.values() for name, p in options(own).items()}
    return {opt: p for p in command.params for opt in p.opts if opt.startswith("--") and opt != "--help"}


def mentioned(page: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", re.sub(r"^torchrun .*? krstore ", "", page, flags=re.MULTILINE)))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_page_that_shows_it_and_names_its_function(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text()
    assert page.startswith(f"# krstore {name}\n")
    examples = "".join(re.findall(r"```(?:sh|console)\n(.*?)```", page, re.DOTALL))
    for own in getattr(COMMANDS[name], "commands", [""]):
        assert f"krstore {name} {own}".strip() in examples
    assert "In Python: `krstore." in page
    assert f"({name}.md)" in (PAGES / "README.md").read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_on_the_page_and_the_page_has_no_other(name: str) -> None:
    common = mentioned((PAGES / "README.md").read_text().partition("## Options of many commands")[2])
    page = mentioned((PAGES / f"{name}.md").read_text())
    assert not options(COMMANDS[name]).keys() - page - common, "options that no page explains"
    elsewhere = {option for command in COMMANDS.values() for option in options(command)}
    assert not page - elsewhere - {"--help"}, "options that do not exist"


def test_no_page_is_left_over() -> None:
    assert {page.stem for page in PAGES.glob("*.md")} == {*COMMANDS, "README"}


@pytest.mark.parametrize(
    "words", [[name, own] for name in COMMANDS for own in getattr(COMMANDS[name], "commands", [""])], ids=" ".join
)
def test_every_help_ends_with_an_example_and_every_option_has_its_variable(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in words if word]
    assert run([*words, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f" Example: krstore {' '.join(words)} " in shown
    command = COMMANDS[words[0]]
    own = options(command.commands[words[1]] if words[1:] else command)
    assert set(own) >= {"--json", "--quiet", "--verbose"}
    for option in own:
        assert f"KRSTORE_{option[2:].replace('-', '_').upper()}" in shown


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_the_examples_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["features"] = np.maximum(rng.normal(size=(1000, 16, 4, 4)), 0).astype(np.float32)
        file["labels"] = np.repeat([8, 23, 56, 65], 250)
    monkeypatch.chdir(tmp_path)
    text = "".join(re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL))
    for command in re.findall(r"^\$ krstore (.*)$", text, re.MULTILINE):
        assert run(shlex.split(command)) == 0, capsys.readouterr().err
