"""Accuracy against bytes: a grid of methods and budgets, run or gone on with, as one table and one picture."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import msgspec

from krstore.errors import ConfigError, KrstoreError, OutputError, TargetUnreachableError, UsageError
from krstore.files import atomic_write
from krstore.learning.building import build_run_config, merged
from krstore.learning.data import Dataset, open_dataset
from krstore.learning.harness import learn
from krstore.learning.learners import get_learner
from krstore.learning.results import RESULT, read_result
from krstore.plots import plot_lines, require_matplotlib
from krstore.progress import SILENT, Progress

__all__ = ["frontier", "read_grid", "summarised"]

UNREACHABLE = "unreachable.json"  # in a run's folder: its config, and why that cannot keep to its budget
NAME = r"\w[\w .,+-]*"
FILES = ("frontier.json", "frontier.png")

Methods = Mapping[str, tuple[str, Mapping[str, Any]]]
Rows = list[dict[str, Any]]


def read_grid(path: str | Path) -> tuple[dict[str, tuple[str, dict[str, Any]]], dict[str, Any]]:
    """Read a TOML file of what a grid compares.

    Its table ``runs`` has a table for each name, with ``method`` and what is said of that run alone; all else holds for
    all runs. The names are those of `krstore.learning.config.RunConfig`.

    Returns:
        method and own settings by name, and the settings of all.

    Raises:
        UsageError: it cannot be read as TOML.
        ConfigError: a run has no method.
    """
    try:
        shared = tomllib.loads(Path(path).read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as TOML: {error}") from error
    found, runs = {}, shared.pop("runs", {})
    if not isinstance(runs, dict):
        raise ConfigError(f"{path}: runs={runs} is no table of runs")
    for name, own in runs.items():
        if not isinstance(own, dict) or not isinstance(own.get("method"), str):
            raise ConfigError(f"{path}: runs.{name} names no method")
        found[name] = (own.pop("method"), own)
    return found, shared


def frontier(
    methods: Methods,
    budgets: Sequence[int],
    folder: str | Path,
    settings: Mapping[str, Any],
    *,
    preset: str | None = None,
    seeds: Sequence[int] = (0,),
    dataset: Dataset | None = None,
    progress: Progress = SILENT,
) -> Rows:
    """Run every method at every budget of network and memory together, with every seed.

    Runs that are there already are not run again, unfinished ones go on, and what an earlier call has added to the
    folder with other methods, budgets or seeds is in the table too. `frontier.json` has the rows, `frontier.png` the
    picture of accuracy against bytes, of all that have ended, after each run. One that fails does not keep the others
    from being run; its error is raised in the end.

    Args:
        methods: name of the row -> the method's name and its own settings.
        budgets: bytes.
        folder: has a folder for each name, in it one for each budget, in it one for each seed.
        settings, preset: of all runs; see `krstore.learning.building.build_run_config`.
        dataset: of all runs; default what each one names.

    Returns:
        a row a run, with ``name``, ``method``, ``budget``, ``seed``, ``accuracy`` by step and the figures of
        `RunResult.summary`; or with ``unreachable``, why the method cannot keep to the budget.

    Raises:
        MissingExtraError: matplotlib is not installed.
        as `krstore.learning.learn`, the first run's that failed, but for budgets that cannot be kept to.
    """
    require_matplotlib()
    target = Path(folder)
    _check(methods, settings)
    configs = {
        (name, budget, seed): build_run_config(
            method, {**merged(settings, own), "budget": budget, "seed": seed}, preset=preset
        )
        for seed in seeds
        for name, (method, own) in methods.items()
        for budget in budgets
    }
    if not configs:
        raise UsageError("name methods and budgets")
    named = {(config.data, config.test, config.resize) for config in configs.values()}
    opened = {given: dataset or open_dataset(*given[:2], resize=given[2]) for given in named}
    failed: list[Exception] = []
    with progress.task("frontier", len(configs), "runs") as bar:
        for (name, budget, seed), config in configs.items():
            place = target / name / str(budget) / f"seed{seed}"
            told = json.loads(msgspec.json.encode(config))
            if _unreachable(place).get("config") != told:
                try:
                    learn(config, place, dataset=opened[config.data, config.test, config.resize], progress=progress)
                    (place / UNREACHABLE).unlink(missing_ok=True)
                except TargetUnreachableError as error:
                    _write(place / UNREACHABLE, json.dumps({"config": told, "why": str(error)}))
                except OutputError:
                    raise
                except (KrstoreError, RuntimeError, MemoryError) as error:  # a GPU's memory is a RuntimeError
                    failed.append(error)
                    progress.note(f"{name}, {budget} bytes, seed {seed}: {error}")
                _shown(target)
            bar.advance(1)
    if failed:
        progress.note(f"{len(failed)} of {len(configs)} runs failed")
        raise failed[0]
    return _shown(target)


def _shown(target: Path) -> Rows:
    """Write the table and the picture of all runs that have ended, and return its rows."""
    rows = _rows(target)
    _write(target / "frontier.json", json.dumps(rows, indent=1))
    _draw(rows, target / "frontier.png")
    return rows


def summarised(rows: Rows, figure: str) -> dict[str, dict[int, tuple[float, float | None] | None]]:
    """Return, by name and budget, mean and standard deviation of a figure over the seeds; `None` where unreachable."""
    found: dict[str, dict[int, tuple[float, float | None] | None]] = {}
    for name, budget in dict.fromkeys((row["name"], row["budget"]) for row in rows):
        alike = [row for row in rows if (row["name"], row["budget"]) == (name, budget)]
        values = [row[figure] for row in alike if "unreachable" not in row]
        spread = stdev(values) if len(values) > 1 else None
        found.setdefault(name, {})[budget] = (mean(values), spread) if values else None
    return found


def _check(methods: Methods, settings: Mapping[str, Any]) -> None:
    for name, (method, own) in methods.items():
        if not re.fullmatch(NAME, name) or name in FILES:
            raise ConfigError(f"runs.{name}: a name is of letters, digits, spaces and .,+-_ (it is a folder's too)")
        for said in ("budget", "seed"):
            if said in own or said in settings:
                raise ConfigError(f"runs.{name}: {said} is the grid's; leave it out of what runs say")
        get_learner(method)


def _rows(target: Path) -> Rows:
    """Return a row for each run that a grid's folder has, but for unfinished ones."""
    rows: Rows = []
    for place in sorted(target.glob("*/*/seed*")):
        name, budget, seed = place.parts[-3], place.parts[-2], place.parts[-1].removeprefix("seed")
        if not (budget.isdecimal() and seed.isdecimal()):
            continue
        row: dict[str, Any] = {"name": name, "budget": int(budget), "seed": int(seed)}
        if why := _unreachable(place).get("why"):
            rows.append(row | {"unreachable": why})
            continue
        if not (place / RESULT).exists() or not (result := read_result(place)).finished:
            continue
        accuracy = [step.accuracy for step in result.steps]
        rows.append(row | {"method": result.config.method, "accuracy": accuracy} | result.summary())
    return sorted(rows, key=lambda row: (row["name"], row["budget"], row["seed"]))


def _unreachable(place: Path) -> dict[str, Any]:
    """Return what a run's folder says of a budget that is out of reach, if it does."""
    try:
        found = json.loads((place / UNREACHABLE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _draw(rows: Rows, path: Path) -> None:
    """Draw last and average incremental accuracy against budgets, a line a name, with standard deviations."""
    titles = {"last": "last accuracy, %", "average_incremental": "average incremental accuracy, %"}
    panels = {}
    for figure, title in titles.items():
        lines = {}
        for name, found in summarised(rows, figure).items():
            points = [(budget, *at) for budget, at in sorted(found.items()) if at is not None]
            if points:
                sizes, means, spreads = zip(*points, strict=True)
                lines[name] = (
                    [size / 1e6 for size in sizes], [100 * value for value in means],
                    [100 * (spread or 0.0) for spread in spreads],
                )  # fmt: skip
        panels[title] = lines
    plot_lines(panels, path, "network and memory, MB")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
