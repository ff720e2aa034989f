"""Pictures of results, through matplotlib (the extra ``plots``)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from krstore.errors import MissingExtraError
from krstore.files import atomic_path

__all__ = ["plot_rate_distortion", "require_matplotlib"]

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
