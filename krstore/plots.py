"""Pictures of results, through matplotlib (the extra ``plots``)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from krstore.errors import MissingExtraError
from krstore.files import atomic_path

__all__ = ["MARKERS", "plot_lines", "plot_rate_distortion", "require_matplotlib"]

MARKERS = "osD^vPX*"


def require_matplotlib() -> None:
    """Check, before expensive work, that pictures can be drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plots", "drawing the rate-distortion picture")


def plot_rate_distortion(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw NMSE against ratio, both logarithmic, a line a codec; a lossless store is a vertical line at its ratio.

    Args:
        rows: facts of stores, as `krstore.store.summary.summarise` returns them; rows without ``quality`` are left out.
        path: the .png file, replaced atomically.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xscale="log", yscale="log", xlabel="ratio (bytes of the samples / bytes of the file)")
    axes.set_ylabel("NMSE (mse / variance)")
    done = [row for row in rows if "quality" in row]
    for number, codec in enumerate(dict.fromkeys(row["codec"] for row in done)):
        stores = sorted((row for row in done if row["codec"] == codec), key=lambda row: float(row["ratio"]))
        lossy = [row for row in stores if row["quality"]["nmse"] > 0]
        colour, marker = f"C{number % 10}", MARKERS[number % len(MARKERS)]
        if lossy:
            ratios, errors = [row["ratio"] for row in lossy], [row["quality"]["nmse"] for row in lossy]
            axes.plot(ratios, errors, color=colour, marker=marker, label=codec)
        for row in stores:
            if row["quality"]["nmse"] == 0:
                label = f"{codec} (lossless, {row['ratio']:.2f})"
                axes.axvline(row["ratio"], color=colour, linestyle="--", label=label)
    if done:
        ratios = sorted({round(float(row["ratio"]), 1) for row in done})
        axes.set_xlim(ratios[0] / 1.2, ratios[-1] * 1.2)
        asked = sorted({row["asked_ratio"] for row in done if row.get("asked_ratio")} or set(ratios))
        axes.set_xticks(asked)
        axes.legend()
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_formatter(plain)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(plain)
    axes.grid(which="both", alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})


def plot_lines(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]]],
    path: Path,
    xlabel: str,
) -> None:
    """Draw panels side by side, in each a line a name with its deviations, against an axis they share.

    Args:
        panels: by what their y axis shows, by name: x, y, and how far y goes up and down.
        path: the .png file, replaced atomically.

    Raises:
        as `plot_rate_distortion`.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(panels) + 1.8, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    handles = {}
    for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        axes.set(xlabel=xlabel, ylabel=title)
        for name, (x, y, spread) in lines.items():
            number = names.index(name)
            style = {"color": f"C{number % 10}", "marker": MARKERS[number % len(MARKERS)], "capsize": 2}
            handles[name] = axes.errorbar(x, y, yerr=spread, label=name, **style)
        axes.grid(alpha=0.3)
    figure.legend(list(handles.values()), list(handles), loc="outside right center")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
