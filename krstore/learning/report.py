"""Runs side by side: tables, pictures, and one self-contained page."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from krstore.errors import OutputError, UsageError
from krstore.files import atomic_write
from krstore.learning.config import MemoryConfig
from krstore.learning.data import open_dataset
from krstore.learning.harness import MEMORY, scenario_of
from krstore.learning.results import RESULT, RunResult, read_result
from krstore.memory import Memory
from krstore.pictures import in_a_plane
from krstore.plots import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Group", "collect", "report"]

MARKERS = "osD^vPX*"
TSNE_CLASSES, TSNE_SAMPLES = 10, 40
FIGURES = ("last", "average_incremental", "average_incremental_later", "forgetting", "backward_transfer")


@dataclass(frozen=True)
class Group:
    """Runs of one method that differ in their seed alone.

    Attributes:
        name: the method, with its codec and rate where it has a memory.
        runs: finished ones, by seed.
        folders: of the runs.
    """

    name: str
    runs: list[RunResult]
    folders: list[Path]

    @property
    def classes(self) -> list[int]:
        """How many classes had been seen after each step."""
        return [int(count) for count in np.cumsum([len(task) for task in self.runs[0].tasks])]

    @property
    def curves(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Accuracy on all classes seen, by run and step."""
        return np.array([[step.accuracy for step in run.steps] for run in self.runs])

    @property
    def bytes(self) -> int:
        """The most that was kept at any step of any run."""
        return max(step.memory_bytes + sum(step.held_bytes.values()) for run in self.runs for step in run.steps)

    def figures(self) -> dict[str, tuple[float, float | None]]:
        """Return mean and standard deviation over the runs of each figure of `RunResult.summary`."""
        summaries = [run.summary() for run in self.runs]
        values = {name: [summary[name] for summary in summaries] for name in FIGURES}
        return {name: (mean(own), stdev(own) if len(own) > 1 else None) for name, own in values.items()}


def collect(folders: Sequence[str | Path]) -> list[Group]:
    """Read finished runs, in the folders given and below them, and group those that differ in their seed alone.

    Raises:
        UsageError: a folder has no finished run, or runs are of different tasks.
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
    groups: dict[bytes, list[Path]] = {}
    for place, run in found.items():
        alike = msgspec.structs.replace(run.config, seed=0, device="", precision="auto")
        groups.setdefault(msgspec.json.encode(alike), []).append(place)
    names = _names([found[places[0]] for places in groups.values()])
    ordered = [sorted(places, key=lambda place: found[place].config.seed) for places in groups.values()]
    return [Group(name, [found[p] for p in own], own) for name, own in zip(names, ordered, strict=True)]


def report(folders: Sequence[str | Path], output: str | Path, *, tsne: bool = False) -> list[Group]:
    """Write a report of runs: ``report.html``, which needs no other file, ``report.json`` and the pictures in it.

    Args:
        folders: of runs, or with runs below them.
        output: a folder; made if need be, files of an earlier report are replaced.
        tsne: draw, of the first run of each method with a memory, the samples that it replays beside the originals,
            which are read from the data that the run names.

    Raises:
        as `collect`; MissingExtraError: matplotlib is not installed; OutputError: something cannot be written.
    """
    require_matplotlib()
    groups, target = collect(folders), Path(output)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{target} cannot be made: {error.strerror}") from error
    pictures = {"accuracy": _curves(groups), "bytes": _bytes(groups)}
    pictures |= {f"confusion_{number}": _confusion(group) for number, group in enumerate(groups)}
    if tsne:
        kept = {number: group for number, group in enumerate(groups) if (group.folders[0] / MEMORY).exists()}
        pictures |= {f"tsne_{number}": _tsne(group) for number, group in kept.items()}
    drawn = {name: _svg(figure) for name, figure in pictures.items()}
    for name, svg in drawn.items():
        _write(target / f"{name}.svg", svg)
    _write(target / "report.json", json.dumps([_facts(group) for group in groups], indent=1))
    _write(target / "report.html", _page(groups, drawn))
    return groups


def _names(runs: Sequence[RunResult]) -> list[str]:
    """Name runs by their methods, and by what tells each from others of its method; numbers where nothing does."""
    names = []
    for run in runs:
        same = [_labels(other) for other in runs if other.config.method == run.config.method]
        own = _labels(run)
        telling = [key for key in own if len({labels[key] for labels in same}) > 1]
        names.append(" ".join([run.config.method, *(own[key] for key in telling if own[key])]))
    return [
        name if names.count(name) == 1 else f"{name} ({names[:number].count(name) + 1})"
        for number, name in enumerate(names)
    ]


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


def _facts(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "seeds": [run.config.seed for run in group.runs],
        "classes": group.classes,
        "accuracy": group.curves.tolist(),
        "bytes": group.bytes,
        "figures": {name: {"mean": one, "deviation": spread} for name, (one, spread) in group.figures().items()},
    }


def _figure() -> tuple[Figure, Any]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.8, 4.4), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _curves(groups: Sequence[Group]) -> Figure:
    """Draw accuracy against classes seen, a line a group, a band of one standard deviation."""
    figure, axes = _figure()
    for number, group in enumerate(groups):
        curves = 100 * group.curves
        style = {"color": f"C{number % 10}", "marker": MARKERS[number % len(MARKERS)], "markersize": 4}
        axes.plot(group.classes, curves.mean(0), label=group.name, **style)
        if len(curves) > 1:
            spread = curves.std(0, ddof=1)
            axes.fill_between(
                group.classes, curves.mean(0) - spread, curves.mean(0) + spread, color=f"C{number % 10}", alpha=0.15
            )
    axes.set(xlabel="classes seen", ylabel="accuracy on all of them, %", xticks=groups[0].classes)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def _bytes(groups: Sequence[Group]) -> Figure:
    """Draw last accuracy against bytes kept; what keeps nothing is a level."""
    figure, axes = _figure()
    for number, group in enumerate(groups):
        value, spread = group.figures()["last"]
        colour = f"C{number % 10}"
        if group.bytes:
            axes.errorbar(
                group.bytes, 100 * value, 100 * (spread or 0), color=colour, capsize=3,
                marker=MARKERS[number % len(MARKERS)], label=group.name,
            )  # fmt: skip
        else:
            axes.axhline(100 * value, color=colour, linestyle="--", label=f"{group.name} (keeps nothing)")
    axes.set(xscale="log", xlabel="bytes kept", ylabel="last accuracy, %")
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def _confusion(group: Group) -> Figure:
    """Draw how often each class was taken for each other at the end, over the runs, as shares of each class."""
    figure, axes = _figure()
    counts = np.sum([run.steps[-1].confusion for run in group.runs], axis=0).astype(np.float64)
    image = axes.imshow(counts / np.maximum(1, counts.sum(1, keepdims=True)), vmin=0, vmax=1, cmap="magma")
    axes.set(xlabel="predicted, in the order of learning", ylabel="class", title=group.name)
    figure.colorbar(image)
    return figure


def _tsne(group: Group) -> Figure:
    """Draw some classes' samples and what the memory decodes them to in one plane, as in the KRNet paper's Fig. 4."""
    run = group.runs[0]
    config, memory = run.config, Memory(group.folders[0] / MEMORY, device="cpu")
    scenario = scenario_of(config, open_dataset(config.data, config.test))
    source, labels = scenario.train_until(len(scenario.tasks) - 1), memory.samples.labels
    assert source.labels is not None
    chosen = np.linspace(0, scenario.classes - 1, min(TSNE_CLASSES, scenario.classes)).astype(int)
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


def _svg(figure: Figure) -> str:
    data = io.StringIO()
    figure.savefig(data, format="svg", metadata={"Date": None})
    return data.getvalue()


def _page(groups: Sequence[Group], pictures: dict[str, str]) -> str:
    heads = (
        "method",
        "seeds",
        "last, %",
        "average, %",
        "average without step 0, %",
        "forgetting, %",
        "BWT, %",
        "bytes",
    )
    rows = []
    for group in groups:
        figures = group.figures()
        cells = [group.name, str(len(group.runs)), *(_percent(*figures[name]) for name in FIGURES), f"{group.bytes:,}"]
        rows.append("".join(f"<td>{html.escape(cell)}</td>" for cell in cells))
    table = "".join(f"<tr>{row}</tr>" for row in rows)
    shown = "".join(f"<figure>{svg[svg.index('<svg') :]}</figure>" for svg in pictures.values())
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>krstore: runs</title><style>"
        "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem}"
        "table{border-collapse:collapse}td,th{padding:.25rem .75rem;text-align:right;border-bottom:1px solid #ddd}"
        "td:first-child,th:first-child{text-align:left}figure{display:inline-block;margin:1rem 0}"
        "svg{max-width:100%;height:auto}</style>"
        "<h1>Class-incremental runs</h1>"
        f"<p>{groups[0].classes[-1]} classes in {len(groups[0].classes)} tasks; mean and standard deviation over "
        "seeds; bytes are the most kept at any step.</p>"
        f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{table}</table>{shown}</html>\n"
    )


def _percent(value: float, spread: float | None) -> str:
    return f"{100 * value:.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}")


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
