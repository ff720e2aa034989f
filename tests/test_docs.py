"""The documentation: every Python example runs, every command line parses, every link leads somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import msgspec
import pytest
from typer.main import get_command

from krstore.learning.building import build_run_config, merged
from krstore.learning.config import RunConfig
from krstore.learning.learners import get_learner
from krstore.testing import example_source
from krstore_cli.app import run
from krstore_cli.commands import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def fenced(page: Path) -> list[tuple[str, str]]:
    """Return the fenced blocks as (language, text)."""
    return re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the texts of the fenced blocks of these languages."""
    return [text for language, text in fenced(page) if language in languages]


def command_lines(page: Path) -> Iterator[list[str]]:
    """Yield the words of each line that runs krstore, without its name, and of those in the tables of methods."""
    tabled = re.findall(r"\| `(krstore [^`]+)` \|", page.read_text()) if page.stem == "methods" else []
    for text in [*blocks(page, "sh", "console"), *tabled]:
        for line in text.replace("\\\n", " ").splitlines():
            words = line.removeprefix("$ ").removeprefix("krstore ")
            if line in (f"krstore {words}", f"$ krstore {words}"):
                yield shlex.split(words, comments=True)


def test_blocks_of_code_have_a_language_we_know() -> None:
    for page in PAGES:
        for language, _ in fenced(page):
            assert language in ("", "python", "sh", "console", "json", "toml", "text"), f"{name(page)}: {language}"


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python") and p.stem != "avalanche"], ids=name)
def test_the_python_examples_run(page: Path, tmp_path: Path) -> None:
    source = example_source(600, (16, 8, 8))
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["features"], file["labels"] = source.features, source.labels
    (tmp_path / "page.py").write_text("\n".join(blocks(page, "python")))
    done = subprocess.run(
        [sys.executable, "-W", "error", "page.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [page for page in PAGES if any(command_lines(page))], ids=name)
def test_the_command_lines_parse(page: Path) -> None:
    for words in command_lines(page):
        if words != ["--version"]:
            command, rest = COMMANDS[words[0]], words[1:]
            if hasattr(command, "commands"):
                command, rest = command.commands[rest[0]], rest[1:]
            command.make_context(words[0], rest)


def test_the_runs_that_are_shown_have_options_that_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(blocks(ROOT / "docs" / "learner-authors.md", "python")[0])  # writes the learner that is shown there
    shown = [words for page in PAGES for words in command_lines(page) if words[0] == "learn" and "-o" in words]
    assert len(shown) > 20
    built: list[RunConfig] = []

    def learn(config: RunConfig, *given: object, **options: object) -> None:
        built.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("krstore.learning.harness.learn", learn)
    for words in shown:
        run(words)
        check(built.pop())


def test_the_grids_that_are_shown_have_options_that_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in (text for page in PAGES for text in blocks(page, "toml") if re.match(r"# \w+\.toml\n", text)):
        Path(text.splitlines()[0].removeprefix("# ")).write_text(text)
    shown = [words for page in PAGES for words in command_lines(page) if words[0] == "frontier"]
    assert len(shown) >= 4
    asked: list[tuple[Any, ...]] = []

    def frontier(*given: Any, preset: str | None, **options: object) -> None:
        asked.append((*given, preset))
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("krstore.learning.frontier"), "frontier", frontier)
    for words in shown:
        run(words)
        methods, budgets, _, settings, preset = asked.pop()
        for method, own in methods.values():
            check(build_run_config(method, {**merged(settings, own), "budget": budgets[0]}, preset=preset))


def check(config: RunConfig) -> None:
    msgspec.convert(config.options, get_learner(config.method).Config, strict=False)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_page_is_in_the_contents() -> None:
    listed = set(re.findall(r"\]\(([^)#:\s]+)\)", (ROOT / "docs" / "index.md").read_text()))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"} <= listed


def test_the_readme_begins_with_two_commands_of_one_line_each() -> None:
    demo, tests = blocks(ROOT / "README.md", "sh")[:2]
    assert demo.count("\n") == tests.count("\n") == 1
    assert demo.strip().endswith("krstore demo")
    assert "pytest" in tests
    for command in (demo, tests):
        assert command.startswith("python3 -m venv .venv && ")
        assert "-c constraints.txt" in command


def test_the_constraints_name_every_direct_dependency() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    names = {re.split(r"[<>=\[]", wish)[0].lower() for wish in wanted} - {"krstore"}
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert {line.partition("==")[0].lower() for line in lines} == names
