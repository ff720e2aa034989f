"""The pictures of a report of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from krstore.learning.blocks import alignment
from krstore.learning.data import open_dataset
from krstore.learning.feed import Feed
from krstore.learning.front import cut, seen_through
from krstore.learning.groups import Group
from krstore.learning.harness import MEMORY, scenario_of
from krstore.learning.network import build_network
from krstore.learning.results import RunResult
from krstore.learning.state import load_state
from krstore.memory import Memory
from krstore.pictures import in_a_plane
from krstore.source import Source

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

__all__ = ["blocks", "confusion", "curves", "kept", "tsne"]

MARKERS = "osD^vPX*"
TSNE_CLASSES, TSNE_SAMPLES = 10, 40


def _figure() -> tuple[Figure, Any]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.8, 4.4), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def curves(groups: Sequence[Group]) -> Figure:
    """Draw accuracy against classes seen, a line a group, a band of one standard deviation."""
    figure, axes = _figure()
    for number, group in enumerate(groups):
        values = 100 * group.curves
        style = {"color": f"C{number % 10}", "marker": MARKERS[number % len(MARKERS)], "markersize": 4}
        axes.plot(group.classes, values.mean(0), label=group.name, **style)
        if len(values) > 1:
            spread = values.std(0, ddof=1)
            axes.fill_between(
                group.classes, values.mean(0) - spread, values.mean(0) + spread, color=f"C{number % 10}", alpha=0.15
            )
    axes.set(xlabel="classes seen", ylabel="accuracy on all of them, %", xticks=groups[0].classes)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def kept(groups: Sequence[Group]) -> Figure:
    """Draw last accuracy against bytes kept, those of networks too."""
    figure, axes = _figure()
    for number, group in enumerate(groups):
        value, spread = group.figures()["last"]
        colour = f"C{number % 10}"
        axes.errorbar(
            group.bytes + group.network_bytes, 100 * value, 100 * (spread or 0), color=colour, capsize=3,
            marker=MARKERS[number % len(MARKERS)], label=group.name,
        )  # fmt: skip
    axes.set(xscale="log", xlabel="bytes kept, network included", ylabel="last accuracy, %")
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def confusion(group: Group) -> Figure:
    """Draw how often each class was taken for each other at the end, over the runs, as shares of each class."""
    figure, axes = _figure()
    counts = np.sum([run.steps[-1].confusion for run in group.runs], axis=0).astype(np.float64)
    image = axes.imshow(counts / np.maximum(1, counts.sum(1, keepdims=True)), vmin=0, vmax=1, cmap="magma")
    axes.set(xlabel="predicted, in the order of learning", ylabel="class", title=group.name)
    figure.colorbar(image)
    return figure


def tsne(group: Group) -> Figure:
    """Draw some classes' samples and what the memory decodes them to in one plane, as in the KRNet paper's Fig. 4."""
    memory = Memory(group.folders[0] / MEMORY, device="cpu")
    source, labels = _encoded(group.runs[0], group.folders[0]), memory.samples.labels
    assert source.labels is not None
    classes = group.classes[-1]
    chosen = np.linspace(0, classes - 1, min(TSNE_CLASSES, classes)).astype(int)
    parts = []
    for label in chosen:
        parts.append(source.read(np.flatnonzero(source.labels == label)[:TSNE_SAMPLES]))
        parts.append(memory.samples.read(np.flatnonzero(labels == label)[:TSNE_SAMPLES]))
    figure, axes = _figure()
    for number, own in enumerate(in_a_plane(parts)):
        colour, once = f"C{number // 2 % 10}", number < 2
        if number % 2:
            axes.scatter(*own.T, s=14, marker="x", linewidths=0.8, color=colour, label="replayed" if once else None)
        else:
            axes.scatter(
                *own.T, s=14, linewidths=0.8, facecolors="none", edgecolors=colour, label="original" if once else None
            )
    axes.set(title=f"{group.name}: {len(chosen)} classes", xticks=[], yticks=[])
    axes.legend(fontsize="small")
    return figure


def _encoded(run: RunResult, folder: Path) -> Source:
    """Return all training samples as the run encoded them: as the data has them, or as its front sees them."""
    config = run.config
    dataset = open_dataset(config.data, config.test, resize=config.resize)
    scenario = scenario_of(config, dataset)
    if config.features and config.frozen_until is not None:
        feed = Feed.of(config, dataset, scenario, "cpu")
        network = build_network(config.model, config.weights, feed.example(dataset), config.model_args)
        front = cut(network, config.frozen_until)
        front.load_state_dict(load_state(folder / f"step{len(run.steps)}.safetensors", "cpu")["front"])
        scenario = scenario_of(config, seen_through(dataset, front, feed.prepare, "cpu"))
    return scenario.train_until(len(scenario.tasks) - 1)


def blocks(group: Group, steps: Mapping[int, Mapping[str, torch.Tensor]]) -> Figure:
    """Draw what the blocks of the first run did: gradients, movement, and CKA of the first and the last block.

    MEMO's Fig. 3: gradients over the epochs of the last task, weights' movement within each task, and the likeness of
    feature maps between tasks.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 3.8), layout="constrained")
    FigureCanvasSVG(figure)
    gradients, moved, *kernels = figure.subplots(1, 4)
    trained = {step: found for step, found in steps.items() if len(found["gradients"])}
    last = max(trained, default=None)
    count = next(iter(steps.values()))["kernels"].shape[0]
    for block in range(count):
        style = {"color": f"C{block % 10}", "label": f"block {block + 1}"}
        if last is not None:
            gradients.plot(trained[last]["gradients"][:, block], **style)
            far = [float(found["moved"][block]) or np.nan for found in trained.values()]  # not drawn where it stays
            moved.plot([*trained], far, marker=".", **style)
    gradients.set(xlabel=f"epoch of task {last}", ylabel="norm of the gradient")
    moved.set(xlabel="task", ylabel="MSE of weights, first to last epoch", yscale="log")
    gradients.legend(fontsize="small", ncols=1 + count // 6)
    for block, axes in zip((0, count - 1), kernels, strict=True):
        alike = [
            [alignment(one["kernels"][block], other["kernels"][block]) for other in steps.values()]
            for one in steps.values()
        ]
        image = axes.imshow(np.array(alike), vmin=0, vmax=1, cmap="viridis")
        axes.set(title=f"CKA between tasks, block {block + 1}", xlabel="task", ylabel="task")
        figure.colorbar(image)
    figure.suptitle(group.name)
    return figure
