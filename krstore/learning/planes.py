"""What memories of runs replay, beside the samples that it was encoded from, in one plane."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from krstore.learning.data import open_dataset
from krstore.learning.drawing import panels
from krstore.learning.feed import Feed
from krstore.learning.front import cut, seen_through
from krstore.learning.groups import Group
from krstore.learning.harness import MEMORY, scenario_of
from krstore.learning.network import build_network
from krstore.learning.results import RunResult
from krstore.learning.state import load_state, state_path
from krstore.memory import Memory
from krstore.pictures import Points, in_a_plane
from krstore.source import Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CLASSES", "SAMPLES", "tsne"]

CLASSES, SAMPLES = 10, 40
DOT: dict[str, Any] = {"s": 22, "alpha": 0.5, "linewidths": 0}
CROSS: dict[str, Any] = {"s": 20, "marker": "X", "edgecolors": "black", "linewidths": 0.5}


def tsne(groups: Sequence[Group]) -> Figure:
    """Draw some classes' samples and what the memory decodes them to, of each group's first run.

    As in the KRNet paper's Fig. 4.

    Args:
        groups: with a memory each; the data that their runs name are read.

    Raises:
        as `krstore.learning.data.open_dataset` and `krstore.memory.Memory`.
    """
    classes = groups[0].classes[-1]
    chosen = np.linspace(0, classes - 1, min(CLASSES, classes)).astype(int).tolist()
    figure, axes = panels(groups, 3.2)
    for own, group in zip(axes, groups, strict=True):
        for number, (original, replayed) in enumerate(_points(group, chosen)):
            own.scatter(original[:, 0], original[:, 1], color=f"C{number}", **DOT)
            own.scatter(replayed[:, 0], replayed[:, 1], color=f"C{number}", **CROSS)
        own.set(xticks=[], yticks=[])
    names = groups[0].class_names if len({tuple(group.class_names) for group in groups}) == 1 else []
    for number, label in enumerate(chosen):
        axes[0].scatter([], [], s=40, color=f"C{number}", label=f"class {names[label] if names else label}")
    axes[0].scatter([], [], color="grey", label="original", **DOT)
    axes[0].scatter([], [], color="grey", label="replayed", **CROSS)
    figure.legend(loc="outside right center", frameon=False)
    return figure


def _points(group: Group, classes: Sequence[int]) -> list[tuple[Points, Points]]:
    """Return where originals and replayed samples of each class lie."""
    source = _encoded(group.runs[0], group.folders[0])
    replayed = Memory(group.folders[0] / MEMORY, device="cpu").samples
    assert source.labels is not None
    parts = [
        samples.read(np.flatnonzero(labels == label)[:SAMPLES])
        for samples, labels in ((source, source.labels), (replayed, replayed.labels))
        for label in classes
    ]
    places = in_a_plane(parts)
    return list(zip(places[: len(classes)], places[len(classes) :], strict=True))


def _encoded(run: RunResult, folder: Path) -> Source:
    """Return all training samples as the run encoded them: as the data has them, or as its front sees them."""
    config = run.config
    dataset = open_dataset(config.data, config.test, resize=config.resize)
    scenario = scenario_of(config, dataset)
    if config.features and config.frozen_until is not None:
        feed = Feed.of(config, dataset, scenario, "cpu")
        network = build_network(config.model, None, feed.example(dataset), config.model_args)
        front = cut(network, config.frozen_until)
        front.load_state_dict(load_state(state_path(folder, "step", len(run.steps)))["front"])
        scenario = scenario_of(config, seen_through(dataset, front, feed.prepare, "cpu"))
    return scenario.train_until(len(scenario.tasks) - 1)
