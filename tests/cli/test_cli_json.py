"""The keys of what commands say in JSON: those of their pages, all of them, and no others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "cli"
FEW = (
    "--model torch.nn:Flatten --base 1 --steps 2 --preset fast --set base_training.epochs=1 --set training.epochs=1 "
    "--set alone=true --set probe=true"
)
OPEN = {"per_class", "held_bytes", "by_task", "checked", "other_accuracy"}  # whose own keys are the data's


def documented(page: str) -> set[str]:
    """Every name in the JSON section of a page."""
    section = (PAGES / f"{page}.md").read_text().split("## JSON")[1].split("\n## ")[0]
    return set(re.findall(r"`([a-z_0-9]+)`", section))


def keys(value: Any) -> Iterator[str]:
    """Every key of a value and of what is in it."""
    for inner in value if isinstance(value, list) else ():
        yield from keys(inner)
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield key
        if key not in OPEN:
            yield from keys(inner)


def test_of_memories(cli: Any, archive: Path, tmp_path: Path) -> None:
    cli("encode", archive, "--codec", "pq", "--ratio", "4", "-o", tmp_path / "a.krs")
    memory, said = tmp_path / "memory", set[str]()
    for command in (
        ("create", memory),
        ("append", memory, tmp_path / "a.krs"),
        ("drop", memory, "--classes", "40"),
        ("info", memory),
        ("verify", memory),
    ):
        facts = cli("memory", *command, "--json").json
        assert facts["schema_version"] == 1
        said |= {*keys(facts)}
    assert said - {"schema_version"} == documented("memory") - {"verify"}
    info = cli("memory", "info", memory, "--json").json
    assert (info["stores"], info["samples"], info["classes"], info["unfinished"]) == (1, 60, 2, 0)
    assert info["entries"][0]["dropped"] == [40]


def test_of_runs_and_their_report(cli: Any, archive: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    given = ["--data", archive, "--test", archive, "-o", tmp_path / "run", "--json"]
    facts = cli("learn", "finetune", *FEW.split(), *given).json
    said = {*keys(facts)} - {"schema_version"}
    told = documented("learn")
    assert said <= told, said - told
    of_a_run = {"last_cnn", "average_incremental_cnn", "cnn"}  # of methods that predict in other ways
    listed = {*keys(cli("learn", "--list", "--json").json), *keys(cli("learn", "kril", "--list", "--json").json)}
    assert told - said - of_a_run <= listed | {"nothing", "optional", "memory", "everything", "null"}, (
        told - said - listed
    )
    report = cli("report", tmp_path / "run", "-o", tmp_path / "report", "--json").json
    assert {*keys(report)} - {"schema_version"} <= documented("report") | told


def test_groups_of_commands_alone_are_their_help(cli: Any) -> None:
    alone, asked = cli("memory"), cli("memory", "--help")
    assert alone == asked
    assert (alone.code, alone.err) == (0, "")
    assert "append" in alone.out
