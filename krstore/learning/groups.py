"""Finished runs, grouped by what they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import msgspec
import numpy as np

from krstore.errors import UsageError
from krstore.learning import metrics
from krstore.learning.building import as_text, dotted
from krstore.learning.config import MemoryConfig, RunConfig
from krstore.learning.results import RESULT, RunResult, read_result

__all__ = ["FIGURES", "Group", "collect", "settings"]

CIRCUMSTANCES = ("seed", "device")

FIGURES = (
    "last", "average_incremental", "average_incremental_later", "forgetting", "initial_forgetting", "backward_transfer",
    "forward_transfer", "representation_backward_transfer", "representation_forward_transfer",
)  # fmt: skip


def settings(config: RunConfig) -> dict[str, str]:
    """Return a run's options by dotted name, as ``--set`` takes them, but for seed and device."""
    flat = dotted(msgspec.to_builtins(config))
    return {name: as_text(value) for name, value in flat.items() if name not in CIRCUMSTANCES}


@dataclass(frozen=True)
class Group:
    """Runs of one method that differ in their seed alone.

    Attributes:
        name: the method, with what tells it from others of that method, or as the caller calls it.
        runs: finished ones, by seed.
        folders: of the runs.
    """

    name: str
    runs: list[RunResult]
    folders: list[Path]

    @property
    def seeds(self) -> list[int]:
        """Of the runs."""
        return [run.config.seed for run in self.runs]

    @property
    def class_names(self) -> list[str]:
        """What the data call the classes, or their labels, in the order of learning; empty where runs differ in it."""
        first = self.runs[0]
        if any(run.tasks != first.tasks for run in self.runs):
            return []
        return first.class_names or [str(label) for task in first.tasks for label in task]

    @property
    def classes(self) -> list[int]:
        """How many classes had been seen after each step."""
        return [int(count) for count in np.cumsum([len(task) for task in self.runs[0].tasks])]

    @property
    def curves(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Accuracy on all classes seen, by run and step."""
        return np.array([[step.accuracy for step in run.steps] for run in self.runs])

    @property
    def matrix(self) -> metrics.Matrix:
        """Mean accuracy after each step (row) on each task (column); NaN for tasks yet to come."""
        average: metrics.Matrix = np.mean([run.matrix for run in self.runs], axis=0)
        return average

    @property
    def forgetting_by_task(self) -> metrics.Matrix:
        """Of each task but the last (T,), its best accuracy less its last one, mean over the runs."""
        average: metrics.Matrix = np.mean([metrics.forgetting_by_task(run.matrix) for run in self.runs], axis=0)
        return average

    @property
    def seconds(self) -> float:
        """Of training and evaluation, mean over the runs."""
        return mean(sum(step.seconds for step in run.steps) for run in self.runs)

    @property
    def bytes(self) -> int:
        """The most that was kept beside the network at any step of any run."""
        return max(step.memory_bytes + sum(step.held_bytes.values()) for run in self.runs for step in run.steps)

    @property
    def network_bytes(self) -> int:
        """The most that the network came to at any step of any run."""
        return max(step.network_bytes for run in self.runs for step in run.steps)

    def figures(self) -> dict[str, tuple[float, float | None]]:
        """Return mean and standard deviation over the runs of the figures of `RunResult.summary` that all have."""
        summaries = [run.summary() for run in self.runs]
        known = [name for name in FIGURES if all(name in summary for summary in summaries)]
        values = {name: [summary[name] for summary in summaries] for name in known}
        return {name: (mean(own), stdev(own) if len(own) > 1 else None) for name, own in values.items()}


def collect(folders: Sequence[str | Path], names: Sequence[str] = ()) -> list[Group]:
    """Read finished runs, in the folders given and below them, and group those that differ in their seed alone.

    Args:
        folders: of runs, or with runs below them.
        names: of the groups, in the order of the folders; default made of what tells them apart.

    Raises:
        UsageError: a folder has no finished run, runs are of different tasks, two are the same with the same seed, or
            names are not one a group.
        CorruptStoreError: a result is malformed.
    """
    found: dict[Path, RunResult] = {}
    for folder in map(Path, folders):
        own = {path.parent.resolve(): read_result(path.parent) for path in sorted(folder.rglob(RESULT))}
        finished = {place: run for place, run in own.items() if run.finished}
        if not finished:
            raise UsageError(f"{folder} has no finished run ({len(own)} unfinished); krstore learn goes on with one")
        found |= finished
    sizes = {tuple(map(len, run.tasks)) for run in found.values()}
    if len(sizes) > 1:
        raise UsageError(f"the runs have tasks of different sizes ({len(sizes)} kinds); report those of one kind")
    groups: dict[frozenset[tuple[str, str]], list[Path]] = {}
    for place, run in found.items():
        data = {"data": run.data, "test": ""} if run.data else {}  # wherever they lie
        groups.setdefault(frozenset((settings(run.config) | data).items()), []).append(place)
    for places in groups.values():
        _check_seeds({place: found[place].config.seed for place in places})
    made = _names([found[places[0]] for places in groups.values()])
    if names and (len(names) != len(made) or len({*names}) != len(made)):
        raise UsageError(f"names are {', '.join(names)}; expected one for each of {', '.join(made)}, no two the same")
    ordered = [sorted(places, key=lambda place: found[place].config.seed) for places in groups.values()]
    return [Group(name, [found[p] for p in own], own) for name, own in zip(names or made, ordered, strict=True)]


def _check_seeds(seeds: Mapping[Path, int]) -> None:
    """Refuse runs that differ in nothing: their mean and deviation would be of fewer runs than they say."""
    seen: dict[int, Path] = {}
    for place, seed in seeds.items():
        if seed in seen:
            raise UsageError(f"{seen[seed]} and {place} are the same run, seed {seed}; report one of them")
        seen[seed] = place


def _names(runs: Sequence[RunResult]) -> list[str]:
    """Name runs by their methods, and by what tells each from others of its method: labels, or else any option."""
    names = []
    for run in runs:
        same = [_labels(other) for other in runs if other.config.method == run.config.method]
        own = _labels(run)
        telling = [key for key in own if len({labels[key] for labels in same}) > 1]
        names.append(" ".join([run.config.method, *(own[key] for key in telling if own[key])]))
    told = []
    for run, name in zip(runs, names, strict=True):
        others = [settings(other.config) for other, its in zip(runs, names, strict=True) if its == name]
        pairs = settings(run.config).items()
        telling = [f"{key}={value}" for key, value in pairs if any(other.get(key) != value for other in others)]
        told.append(" ".join([name, *telling]))
    return told


def _labels(run: RunResult) -> dict[str, str]:
    config, memory = run.config, run.config.memory
    kept = run.steps[-1].memory_bytes > 0
    return {
        "codec": (memory.codec or "") if kept else "",
        "ratio": f"ratio {memory.ratio:g}" if kept and memory.ratio else "",
        "budget": f"{memory.budget:,} B" if kept and memory.budget else "",
        "exemplars": _exemplars(memory) if kept else "",
        "chosen": " ".join(f"{k}={v}" for k, v in memory.exemplar_settings.items()) if kept else "",
        "adjust": "adjusted" if memory.adjust is not None else "",
        "finetuning": "fine-tuned" if config.finetuning is not None else "",
        "transfer": "weight transfer" if config.transfer else "",
        "update": memory.update if kept else "",
        "through": {None: "", True: "", False: "raw new samples"}[memory.through_codec] if kept else "",
        "settings": " ".join(f"{k}={v}" for k, v in memory.settings.items()) if kept else "",
        "options": " ".join(f"{k}={v}" for k, v in config.options.items()),
        "order": config.order,
        "per_class": "" if config.per_class is None else f"{config.per_class} samples a class",
        "epochs": f"{config.training.epochs} epochs",
        "rate": f"learning rate {config.training.learning_rate:g}",
        "validation": f"{config.validation} for validation" if config.validation else "",
        "data": config.data,
        "model": config.model,
        "weights": config.weights or "",
    }


def _exemplars(memory: MemoryConfig) -> str:
    counts = {"a class": memory.per_class, "in all": memory.total}
    return " ".join([memory.exemplars or "", *(f"{n} {what}" for what, n in counts.items() if n is not None)]).strip()
