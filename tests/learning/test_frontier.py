"""Methods at equal bytes: a grid of runs that grows and goes on."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_runs import images

from krstore.errors import ConfigError, UsageError
from krstore.learning import frontier, harness
from krstore.learning.config import RunConfig
from krstore.learning.frontier import read_grid, summarised
from krstore.learning.results import read_result

QUICK = {"epochs": 1, "milestones": (), "learning_rate": 0.05, "batch_size": 16}
SETTINGS: dict[str, Any] = {
    "data": "given", "model": "image_runs:tiny", "base": 0, "steps": 2, "crop": 0, "device": "cpu",
    "base_training": QUICK, "training": QUICK, "memory": {"exemplars": "herding", "codec": "raw"},
}  # fmt: skip
METHODS: dict[str, tuple[str, dict[str, Any]]] = {"replay": ("replay", {}), "expanded": ("der", {"options": {}})}


def test_a_grid_is_run_once_and_grows(tmp_path: Path) -> None:
    dataset = images(40)
    rows = frontier(METHODS, [13_000, 40_000], tmp_path, SETTINGS, dataset=dataset)
    assert [(row["name"], row["budget"], "unreachable" in row) for row in rows] == [
        ("expanded", 13_000, True), ("expanded", 40_000, False), ("replay", 13_000, False), ("replay", 40_000, False),
    ]  # fmt: skip
    assert "bytes" in rows[0]["unreachable"]
    for row in rows[1:]:
        assert row["memory_bytes"] + row["held_bytes"] + row["network_bytes"] <= row["budget"]
        assert row["last"] == row["accuracy"][-1]
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "frontier.json").read_text()) == rows
    done = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}
    grown = frontier({"replay": METHODS["replay"]}, [40_000], tmp_path, SETTINGS, seeds=[0, 1], dataset=dataset)
    assert [row for row in grown if row["seed"] == 0] == rows
    assert len(grown) == 5
    assert {path: path.stat().st_mtime_ns for path in done} == done
    found = summarised(grown, "last")
    assert found["expanded"][13_000] is None
    values = [row["last"] for row in grown if (row["name"], row["budget"]) == ("replay", 40_000)]
    assert found["replay"][40_000] == pytest.approx((sum(values) / 2, abs(values[0] - values[1]) / 2**0.5))


def test_a_run_that_fails_does_not_keep_others_from_being_run(tmp_path: Path) -> None:
    fast = {"training": {"learning_rate": 1e9}, "base_training": {"learning_rate": 1e9}}
    with pytest.raises(UsageError, match="no longer finite"):
        frontier({"fast": ("replay", fast), "slow": ("replay", {})}, [40_000], tmp_path, SETTINGS, dataset=images(20))
    assert [row["name"] for row in json.loads((tmp_path / "frontier.json").read_text())] == ["slow"]
    assert (tmp_path / "frontier.png").exists()


def test_a_run_without_memory_does_not_keep_others_from_being_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("krstore.learning.frontier")

    def learn(config: RunConfig, *given: Any, **options: Any) -> Any:
        if config.method == "der":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return harness.learn(config, *given, **options)

    monkeypatch.setattr(module, "learn", learn)
    methods = {"large": ("der", {}), "small": ("replay", {})}
    with pytest.raises(torch.OutOfMemoryError):
        frontier(methods, [40_000], tmp_path, SETTINGS, dataset=images(20))
    assert [row["name"] for row in json.loads((tmp_path / "frontier.json").read_text())] == ["small"]


def test_what_a_grid_may_be(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text('[runs.a]\npreset = "fast"\n')
    with pytest.raises(ConfigError, match=r"runs\.a names no method"):
        read_grid(path)
    path.write_text("[")
    with pytest.raises(UsageError, match="cannot be read as TOML"):
        read_grid(path)
    with pytest.raises(ConfigError, match="a name is of letters"):
        frontier({"a/b": ("replay", {})}, [9], tmp_path, SETTINGS)
    with pytest.raises(ConfigError, match="a name is of letters"):
        frontier({"..": ("replay", {})}, [9], tmp_path, SETTINGS)
    with pytest.raises(ConfigError, match="budget is the grid's"):
        frontier({"a": ("replay", {"budget": 9})}, [9], tmp_path, SETTINGS)
    with pytest.raises(UsageError, match="name methods and budgets"):
        frontier({}, [9], tmp_path, SETTINGS)


def test_what_a_run_says_is_laid_over_what_all_say(tmp_path: Path) -> None:
    shared = {**SETTINGS, "training": {**QUICK, "epochs": 2}}
    own: dict[str, Any] = {"training": {"learning_rate": 0.01}, "memory": {"exemplars": "random"}}
    frontier({"a": ("replay", own)}, [40_000], tmp_path, shared, dataset=images())
    ran = read_result(tmp_path / "a" / "40000" / "seed0").config
    assert (ran.training.epochs, ran.training.learning_rate) == (2, 0.01)
    assert (ran.memory.exemplars, ran.memory.codec) == ("random", "raw")
    with pytest.raises(UsageError, match="is of another run"):
        frontier({"a": ("replay", {})}, [40_000], tmp_path, shared, dataset=images())


def test_why_a_budget_cannot_be_kept_is_that_runs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(method: str) -> dict[str, Any]:
        (row,) = frontier({"a": (method, {})}, [9_000], tmp_path, SETTINGS, dataset=images())
        return row

    why = of("der")["unreachable"]
    with monkeypatch.context() as patched:
        patched.setattr(sys.modules["krstore.learning.frontier"], "learn", None)
        assert of("der")["unreachable"] == why, "it is not tried again"
    assert of("finetune")["method"] == "finetune"
    assert "unreachable" not in of("finetune")
    with pytest.raises(UsageError, match="is of another run"):
        of("replay")


def test_each_run_has_its_own_data(tmp_path: Path) -> None:
    shared = {**SETTINGS, "memory": {**SETTINGS["memory"], "per_class": 2}}
    for name, classes in (("a", 4), ("b", 6)):
        (tmp_path / name).mkdir()
        labels = np.arange(60) % classes
        pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8)
        for part in ("train", "test"):
            np.savez(tmp_path / name / f"{part}.npz", features=pixels, labels=labels)
    methods: dict[str, tuple[str, dict[str, Any]]] = {
        name: ("replay", {"data": str(tmp_path / name), "test": None}) for name in ("a", "b")
    }
    frontier(methods, [60_000], tmp_path / "grid", shared)
    tasks = {name: read_result(tmp_path / "grid" / name / "60000" / "seed0").tasks for name in methods}
    assert {name: sum(map(len, own)) for name, own in tasks.items()} == {"a": 4, "b": 6}
