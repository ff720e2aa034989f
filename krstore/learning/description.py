"""What runs are of, as text: what they share, and what is each one's own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from krstore.learning.config import RunConfig
from krstore.learning.groups import Group, settings

__all__ = ["described", "places", "together"]

ALWAYS_SAID = {"data", "order", "base", "steps", "model"}
TRAININGS = ("base_training.", "training.")
FEW = 20  # classes that are named one by one


def described(groups: Sequence[Group]) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Return what all groups share, and what is each one's own: data, tasks, options, versions.

    Options that have their default are left out, but for data, scenario, network and training.
    """
    facts = [_facts(group) for group in groups]
    first, *others = facts
    shared = {name: value for name, value in first.items() if all(own.get(name) == value for own in others)}
    return shared, [{name: value for name, value in own.items() if name not in shared} for own in facts]


def together(facts: Mapping[str, str]) -> dict[str, str]:
    """Return facts with those of one table, as ``training``, as one."""
    found: dict[str, str] = {}
    for name, value in facts.items():
        table, dot, own = name.partition(".")
        said = f"{own} {value}" if dot else value
        found[table] = f"{found[table]}, {said}" if table in found else said
    return found


def places(groups: Sequence[Group]) -> tuple[Path, list[list[Path]]]:
    """Return the folder that all runs lie below, and where in it those of each group do."""
    above = Path(os.path.commonpath([folder.parent for group in groups for folder in group.folders]))
    return above, [[folder.relative_to(above) for folder in group.folders] for group in groups]


def _facts(group: Group) -> dict[str, str]:
    run, names = group.runs[0], group.class_names
    sizes = [str(len(task)) for task in run.tasks]
    bounds = zip([0, *group.classes], group.classes, strict=False)
    listed = "; ".join(", ".join(names[first:stop]) for first, stop in bounds)
    versions = sorted({", ".join(f"{name} {own}" for name, own in run.versions.items()) for run in group.runs})
    return {
        "tasks": " + ".join(sizes) + " classes",
        **({"classes": listed} if names and len(names) <= FEW else {}),
        **_stated(run.config),
        **({"data.fingerprint": run.data[:12]} if run.data else {}),
        "versions": "; ".join(versions),
    }


def _stated(config: RunConfig) -> dict[str, str]:
    """Return the options that a reader has to know."""
    default, own = settings(RunConfig(method="", data="")), settings(config)
    unused = {
        f"{table}{name}"
        for table in TRAININGS
        if own[f"{table}schedule"] != "milestones"
        for name in ("milestones", "gamma")
    }
    return {
        name: value for name, value in own.items()
        if name not in unused and (name in ALWAYS_SAID or name.startswith(TRAININGS) or default.get(name) != value)
    }  # fmt: skip
