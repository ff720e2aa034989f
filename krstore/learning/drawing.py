"""The pictures of a report of runs."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from krstore.learning.blocks import alignment
from krstore.learning.groups import Group
from krstore.plots import MARKERS

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["blocks", "by_task", "confusion", "curves", "kept", "new_figure", "panels"]

ACROSS = 4  # panels in a row, at most
NAMED_CLASSES, NAMED_TASKS = 20, 10  # at most so many get a text of their own


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches, to be written as SVG."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def panels(groups: Sequence[Group], size: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with square axes of so many inches a group, titled by it, in rows."""
    down = math.ceil(len(groups) / ACROSS)
    across = math.ceil(len(groups) / down)
    figure = new_figure(size * across + 1, (size + 0.2) * down)
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for own, group in zip(axes, groups, strict=False):
        own.set_title(textwrap.fill(group.name, 28), fontsize="medium")
    for spare in axes[len(groups) :]:
        spare.remove()
    return figure, axes[: len(groups)]


def curves(groups: Sequence[Group]) -> Figure:
    """Draw accuracy against classes seen, a line a group, a band of one standard deviation."""
    figure = new_figure(5.8, 4.4)
    axes = figure.add_subplot()
    for number, group in enumerate(groups):
        values, style = 100 * group.curves, _style(number)
        axes.plot(group.classes, values.mean(0), label=group.name, markersize=5, **style)
        if len(values) > 1:
            spread = values.std(0, ddof=1)
            band = np.clip([values.mean(0) - spread, values.mean(0) + spread], 0, 100)
            axes.fill_between(group.classes, *band, color=style["color"], alpha=0.15, linewidth=0)
    axes.set(xlabel="classes seen", ylabel="accuracy on all classes seen, %", xticks=groups[0].classes)
    return _with_legend(figure, axes)


def kept(groups: Sequence[Group]) -> Figure:
    """Draw last accuracy against bytes kept, those of networks too; logarithmic where they go over a decade."""
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

    figure = new_figure(5.8, 4.4)
    axes = figure.add_subplot()
    sizes = [group.bytes + group.network_bytes for group in groups]
    for number, (group, size) in enumerate(zip(groups, sizes, strict=True)):
        value, spread = (100 * (part or 0) for part in group.figures()["last"])
        bars = [[min(spread, value)], [min(spread, 100 - value)]]
        axes.errorbar(size, value, bars, capsize=3, linestyle="", label=group.name, **_style(number))
    if max(sizes) > 10 * min(sizes):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(sizes) < 1000 * min(sizes) else (1,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
    axes.set(xlabel="kept, network included", ylabel="last accuracy, %")
    return _with_legend(figure, axes)


def by_task(groups: Sequence[Group]) -> Figure:
    """Draw the mean accuracy after each step (row) on each task (column), a panel a group."""
    figure, axes = panels(groups, 2.7)
    count = len(groups[0].classes)
    for own, group in zip(axes, groups, strict=True):
        image = own.imshow(100 * group.matrix, vmin=0, vmax=100, cmap="viridis")
        own.set(xlabel="on task", ylabel="after step")
        own.locator_params(integer=True)
        if count <= NAMED_TASKS:
            own.set(xticks=range(count), yticks=range(count))
            for (row, column), share in np.ndenumerate(group.matrix):
                if not np.isnan(share):
                    colour = "black" if share > 0.6 else "white"
                    own.text(
                        column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize="small"
                    )
    figure.colorbar(image, ax=axes, label="accuracy, %")
    return figure


def confusion(groups: Sequence[Group]) -> Figure:
    """Draw how often each class was taken for each other at the end, over the runs, as shares of each class."""
    figure, axes = panels(groups, 2.7)
    for own, group in zip(axes, groups, strict=True):
        counts = np.sum([run.steps[-1].confusion for run in group.runs], axis=0).astype(np.float64)
        shares = 100 * counts / np.maximum(1, counts.sum(1, keepdims=True))
        image = own.imshow(shares, vmin=0, vmax=100, cmap="magma")
        own.set(xlabel="predicted", ylabel="class")
        own.locator_params(integer=True)
        if len(group.class_names) in range(1, NAMED_CLASSES + 1):
            ticks = range(len(group.class_names))
            own.set_yticks(ticks, group.class_names, fontsize="small")
            own.set_xticks(ticks, group.class_names, fontsize="small", rotation=90)
    figure.colorbar(image, ax=axes, label="share of the class, %")
    return figure


def blocks(group: Group, steps: Mapping[int, Mapping[str, torch.Tensor]]) -> Figure:
    """Draw what the blocks of the first run did: gradients, movement, and CKA of the first and the last block.

    MEMO's Fig. 3: gradients over the epochs of the last task, weights' movement within each task, and the likeness of
    feature maps between tasks.
    """
    figure = new_figure(15, 3.8)
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


def _style(number: int) -> dict[str, Any]:
    return {"color": f"C{number % 10}", "marker": MARKERS[number % len(MARKERS)]}


def _with_legend(figure: Figure, axes: Axes) -> Figure:
    axes.grid(which="both", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure
