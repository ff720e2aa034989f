"""The pictures of docs/results.md, from the benchmarks' JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from scipy.stats import t as student

from krstore.files import atomic_path

__all__ = ["PICTURES"]

Document = dict[str, Any]
MARKERS = "osD^vPX*<>ph"
MANY = 9  # lines, beyond which their names stand beside the picture
COLOURS = [*colormaps["tab20"].colors[::2], *colormaps["tab20"].colors[1::2]]  # type: ignore[attr-defined]


def frontier(document: Document, path: Path) -> None:
    """Draw NMSE against ratio, a line a method."""
    rows = [row for row in document["rows"] if row["asked"] is not None and row["nmse"] < 1]
    lines = {name: _line(rows, name, "ratio", "nmse") for name in _names(rows)}
    _draw(lines, path, "ratio (bytes of the samples / bytes)", "NMSE", logarithmic=True)


def accuracy(document: Document, path: Path) -> None:
    """Draw accuracy against bytes a sample, a line a method, and the raw features' accuracy."""
    rows = [row for row in document["rows"] if row["nmse"] != 0]
    lines = {name: _line(rows, name, "sample_bytes", "mean") for name in _names(rows)}
    level = next(row["mean"] for row in document["rows"] if row["nmse"] == 0)
    _draw(lines, path, "bytes a sample", "accuracy", level=("raw features", level), spread=_spreads(rows))


def family(document: Document, path: Path) -> None:
    """Draw NMSE against the bytes of a sample's codes, at one file size."""
    rows = document["rows"]
    curve = [row for row in rows if row["codec"] == "krnet" and not row["name"].endswith("float32")]
    lines = {"krnet": _line(curve, "krnet", "code_bytes", "nmse", key="codec")}
    for row in rows:
        if row not in curve:
            lines[row["name"]] = ([row["code_bytes"]], [row["nmse"]])
    _draw(lines, path, f"bytes of codes a sample, in a file of ratio {document['ratio']}", "NMSE")


def learning(document: Document, path: Path) -> None:
    """Draw accuracy against classes seen, a line a method, means over seeds."""
    lines: dict[str, Line] = {}
    for name in _names(document["rows"]):
        rows = [row for row in document["rows"] if row["name"] == name]
        curves = [row["accuracy"] for row in rows]
        lines[name] = (rows[0]["classes"], [sum(step) / len(curves) for step in zip(*curves, strict=True)])
    _draw(lines, path, "classes seen", "accuracy on all of them")


def budgets(document: Document, path: Path) -> None:
    """Draw last accuracy against bytes of memory, a line a method, and the accuracy from all raw features."""
    rows = [row for row in document["rows"] if row["megabytes"] is not None]
    lines: dict[str, Line] = {}
    for name in _names(rows):
        groups = [[row for row in rows if (row["name"], row["megabytes"]) == (name, size)] for size in _sizes(rows)]
        means = [
            (sum(row["bytes"] for row in group) / len(group) / 1e6, sum(row["last"] for row in group) / len(group))
            for group in groups if group
        ]  # fmt: skip
        lines[name] = ([x for x, _ in means], [y for _, y in means])
    oracle = [row["last"] for row in document["rows"] if row["megabytes"] is None]
    level = ("all raw features", sum(oracle) / len(oracle)) if oracle else None
    _draw(lines, path, "megabytes of memory, all classes seen", "accuracy on all classes", level=level)


def generations(document: Document, path: Path) -> None:
    """Draw the earliest task's NMSE against the tasks that have come since, a line a way to keep them."""
    lines = {row["name"]: (list(map(float, range(len(row["nmse"])))), row["nmse"]) for row in document["rows"]}
    _draw(lines, path, "tasks since", "NMSE of the earliest task's features")


def blocks(document: Document, path: Path) -> None:
    """Draw what blocks do, a line a block: gradients over epochs, movement by task, likeness to the first task."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    told = (
        ("gradients", "epoch of the last task", "norm of the gradient"),
        ("moved", "task", "MSE of weights, first to last epoch"),
        ("alike", "task", "CKA with the first task"),
    )
    for axes, (what, x, y) in zip(panels, told, strict=True):
        for number, row in enumerate(document["rows"]):
            colour = colormaps["viridis"](number / len(document["rows"]))
            axes.plot(row[what], color=colour, marker=".", label=row["name"])
        axes.set(xlabel=x, ylabel=y, yscale="linear" if what == "alike" else "log")
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize="small", loc="outside right upper")
    _save(figure, path)


def equal_memory(document: Document, path: Path) -> None:
    """Draw last accuracy against bytes of network and memory together, a line a method, means over seeds."""
    reached = [row for row in document["rows"] if "last" in row]
    lines: dict[str, Line] = {}
    for name in _names(reached):
        sizes = sorted({row["budget"] for row in reached if row["name"] == name})
        found = [[row["last"] for row in reached if (row["name"], row["budget"]) == (name, size)] for size in sizes]
        lines[name] = ([size / 1e6 for size in sizes], [mean(values) for values in found])
    _draw(lines, path, "megabytes of network and memory", "accuracy on all classes")


def exemplars(document: Document, path: Path) -> None:
    """Draw accuracy against classes seen, a panel a method and a line a selection, with 95 % intervals over seeds."""
    kinds = list(dict.fromkeys((row["method"], row["adjust"]) for row in document["rows"]))
    figure = Figure(figsize=(3.6 * -(-len(kinds) // 2), 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, -(-len(kinds) // 2), sharex=True, sharey=True).flat
    for (method, adjust), axes in zip(kinds, panels, strict=False):
        own = [row for row in document["rows"] if (row["method"], row["adjust"]) == (method, adjust)]
        for number, selection in enumerate(dict.fromkeys(row["selection"] for row in own)):
            curves = [row["accuracy"] for row in own if row["selection"] == selection]
            steps = [list(step) for step in zip(*curves, strict=True)]
            axes.errorbar(
                own[0]["classes"], [mean(step) for step in steps], [_interval(step) for step in steps],
                color=COLOURS[number], marker=MARKERS[number], capsize=2, label=selection,
            )  # fmt: skip
        axes.set_title(f"{method}, adjusted" if adjust else method)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.supxlabel("classes seen")
    figure.supylabel("accuracy on all of them")
    _save(figure, path)


def compressed(document: Document, path: Path) -> None:
    """Draw accuracy against classes seen, means over seeds, of what is the default; of iCaRL by its classifier too."""
    rows = [row for row in document["rows"] if "as they are" not in row["name"]]
    by_classifier = [
        row | {"name": f"{row['name']}, CNN", "accuracy": row["accuracy_cnn"]} for row in rows if "accuracy_cnn" in row
    ]
    learning({"rows": [*rows, *by_classifier]}, path)


PICTURES: dict[str, Callable[[Document, Path], None]] = {
    "frontier": frontier, "accuracy": accuracy, "family": family, "learning": learning,
    "budgets": budgets, "exemplars": exemplars, "compressed": compressed,
    "equal_memory": equal_memory, "generations": generations, "blocks": blocks,
}  # fmt: skip
Line = tuple[list[float], list[float]]


def _names(rows: list[Document]) -> list[str]:
    return list(dict.fromkeys(row["name"] for row in rows))


def _sizes(rows: list[Document]) -> list[float]:
    return sorted({row["megabytes"] for row in rows})


def _line(rows: list[Document], name: str, x: str, y: str, key: str = "name") -> Line:
    points = sorted((float(row[x]), float(row[y])) for row in rows if row[key] == name)
    return [point[0] for point in points], [point[1] for point in points]


def _spreads(rows: list[Document]) -> dict[str, list[float]]:
    ordered = sorted(rows, key=lambda row: float(row["sample_bytes"]))
    return {name: [row["deviation"] or 0.0 for row in ordered if row["name"] == name] for name in _names(rows)}


def _apart(values: list[int]) -> list[int]:
    """Return some of ascending values, each a fifth above the one before, so that their labels do not run together."""
    kept: list[int] = []
    for value in values:
        if not kept or value > 1.2 * kept[-1]:
            kept.append(value)
    return kept


def _draw(
    lines: dict[str, Line], path: Path, x: str, y: str, *, logarithmic: bool = False,
    level: tuple[str, float] | None = None, spread: dict[str, list[float]] | None = None,
) -> None:  # fmt: skip
    many = len(lines) > MANY
    figure = Figure(figsize=(9.6 if many else 7.2, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=y, yscale="log" if logarithmic else "linear")
    if logarithmic or level:
        axes.set_xscale("log")
    for number, (name, (xs, ys)) in enumerate(lines.items()):
        errors = spread[name] if spread else None
        axes.errorbar(xs, ys, errors, color=COLOURS[number % 20], marker=MARKERS[number % len(MARKERS)], label=name)
    if level:
        axes.axhline(level[1], color="black", linestyle="--", label=level[0])
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_formatter(plain)
    axes.yaxis.set_major_formatter(plain)
    if logarithmic or level:
        axes.set_xticks(_apart(sorted({round(value) for xs, _ in lines.values() for value in xs})))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="both", alpha=0.3)
    if many:
        figure.legend(fontsize="small", loc="outside right upper")
    else:
        axes.legend(fontsize="small")
    _save(figure, path)


def _interval(values: list[float]) -> float:
    """Return half the width of Student's 95 % interval of a mean; 0 for one value."""
    if len(values) == 1:
        return 0.0
    return float(student.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
