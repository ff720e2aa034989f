"""The commands learn and report, on runs of seconds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

FEW = "--model torch.nn:Flatten --base 1 --steps 2 --preset fast --set base_training.epochs=1 --set training.epochs=1"


@pytest.fixture
def learnt(cli: Any, archive: Path, tmp_path: Path) -> Any:
    """What learn said of two runs in the folder ``runs``, of three classes."""
    given = ["--data", archive, "--test", archive, "--seeds", "2", "-o", tmp_path / "runs"]
    return cli("learn", "finetune", *FEW.split(), *given)


def test_a_table_has_a_value_a_seed_and_no_top_5_of_three_classes(learnt: Any) -> None:
    head, first, *_ = learnt.out.splitlines()
    assert head.split() == ["step", "classes", "accuracy", "%", "(seeds", "0,", "1)", "bytes", "network", "s"]
    assert first.split()[:4] == ["0", "1", "100.00", "100.00"]


def test_a_report_calls_methods_as_it_is_told(cli: Any, learnt: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    said = cli("report", tmp_path / "runs", "-o", tmp_path / "report", "--names", "lower bound")
    assert said.out.splitlines()[1].startswith("lower bound      2")
    assert "lower bound" in (tmp_path / "report" / "report.html").read_text()
    line = cli("report", tmp_path / "runs", "-o", tmp_path / "report", "--names", "a, b").line
    assert "names are a, b; expected one for each of finetune" in line


@pytest.mark.parametrize(("encoding", "sign"), [("utf-8", "±"), ("ascii", "+-")])
def test_deviations_are_said_as_stdout_can(
    encoding: str, sign: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from krstore_cli.output import percent

    with (tmp_path / "stdout").open("w", encoding=encoding) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        said = percent(0.5, 0.125), percent(0.5, None)
    assert said == (f"50.00 {sign} 12.50", "50.00")


def test_all_seeds_are_checked_before_the_first_is_run(cli: Any, archive: Path, tmp_path: Path) -> None:
    given = ["--data", archive, "--test", archive, "-o", tmp_path / "runs"]
    said = cli("learn", "finetune", *FEW.split(), *given, "--seed", str(2**31 - 1), "--seeds", "2")
    assert "seed: Expected `int` <= 2147483647" in said.line
    assert not (tmp_path / "runs").exists()
    said = cli("learn", "finetune", *FEW.split(), *given, "--order", "9" * 5000)
    assert "A number of up to 18 digits is the seed of a random one." in said.line
