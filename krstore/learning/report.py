"""Runs side by side: tables, pictures, and one self-contained page."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krstore.errors import OutputError
from krstore.files import atomic_write
from krstore.learning import drawing
from krstore.learning.blocks import read_analysis
from krstore.learning.groups import FIGURES, Group, collect
from krstore.learning.harness import MEMORY
from krstore.plots import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["report"]


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
    pictures = {"accuracy": drawing.curves(groups), "bytes": drawing.kept(groups)}
    pictures |= {f"confusion_{number}": drawing.confusion(group) for number, group in enumerate(groups)}
    if tsne:
        kept = {number: group for number, group in enumerate(groups) if (group.folders[0] / MEMORY).exists()}
        pictures |= {f"tsne_{number}": drawing.tsne(group) for number, group in kept.items()}
    analysed = {number: read_analysis(group.folders[0]) for number, group in enumerate(groups)}
    pictures |= {f"blocks_{n}": drawing.blocks(groups[n], steps) for n, steps in analysed.items() if steps}
    drawn = {name: _svg(figure) for name, figure in pictures.items()}
    for name, svg in drawn.items():
        _write(target / f"{name}.svg", svg)
    _write(target / "report.json", json.dumps([_facts(group) for group in groups], indent=1))
    _write(target / "report.html", _page(groups, drawn))
    return groups


def _facts(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "seeds": [run.config.seed for run in group.runs],
        "classes": group.classes,
        "accuracy": group.curves.tolist(),
        "bytes": group.bytes,
        "network_bytes": group.network_bytes,
        "figures": {name: {"mean": one, "deviation": spread} for name, (one, spread) in group.figures().items()},
    }


def _svg(figure: Figure) -> str:
    data = io.StringIO()
    figure.savefig(data, format="svg", metadata={"Date": None})
    return data.getvalue()


def _page(groups: Sequence[Group], pictures: dict[str, str]) -> str:
    heads = (
        "method", "seeds", "last, %", "average, %", "average without step 0, %", "forgetting, %", "F, %", "BWT, %",
        "FWT, %", "BWT of representations, %", "FWT of representations, %", "bytes", "of the network",
    )  # fmt: skip
    rows = []
    for group in groups:
        figures = group.figures()
        cells = [
            group.name, str(len(group.runs)),
            *(_percent(*figures[name]) if name in figures else "" for name in FIGURES),
            f"{group.bytes:,}", f"{group.network_bytes:,}",
        ]  # fmt: skip
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
        "seeds; F is what the first task's accuracy has fallen by; bytes are the most kept at any step, beside the "
        "network and of the network.</p>"
        f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{table}</table>{shown}</html>\n"
    )


def _percent(value: float, spread: float | None) -> str:
    return f"{100 * value:.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}")


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
