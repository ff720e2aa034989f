"""Runs side by side: tables, pictures, and one self-contained page."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from krstore.errors import OutputError
from krstore.files import atomic_write
from krstore.learning import drawing
from krstore.learning.blocks import read_analysis
from krstore.learning.groups import Group, collect, settings
from krstore.learning.harness import MEMORY
from krstore.learning.page import Picture, page
from krstore.learning.planes import CLASSES, SAMPLES
from krstore.learning.planes import tsne as plane
from krstore.plots import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["report"]


class _Drawn(NamedTuple):
    """A figure and what a reader is told of it; see `Picture`."""

    name: str
    figure: Figure
    title: str
    caption: str
    wide: bool = True


def report(
    folders: Sequence[str | Path], output: str | Path, *, tsne: bool = False, names: Sequence[str] = ()
) -> list[Group]:
    """Write a report of runs: ``report.html``, which needs no other file, ``report.json`` and the pictures in it.

    Args:
        folders: of runs, or with runs below them.
        output: a folder; made if need be, files of an earlier report are replaced.
        tsne: draw, of the first run of each method with a memory, the samples that it replays beside the originals,
            which are read from the data that the run names.
        names: of the methods, in the order of the folders; default made of what tells them apart.

    Raises:
        as `collect`; MissingExtraError: matplotlib is not installed; OutputError: something cannot be written.
    """
    require_matplotlib()
    groups, target = collect(folders, names), Path(output)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{target} cannot be made: {error.strerror}") from error
    pictures = []
    for drawn in list(_drawn(groups, tsne)):
        svg = _svg(drawn.figure, drawn.title)
        _write(target / f"{drawn.name}.svg", svg)
        pictures.append(Picture(svg, drawn.title, drawn.caption, drawn.wide))
    _write(target / "report.json", json.dumps([_facts(group) for group in groups], indent=1))
    _write(target / "report.html", page(groups, pictures))
    return groups


def _drawn(groups: Sequence[Group], tsne: bool) -> Iterator[_Drawn]:
    band = "; the band is ± 1 standard deviation" if any(len(group.runs) > 1 for group in groups) else ""
    bars = "; bars are ± 1 standard deviation" if band else ""
    yield _Drawn(
        "accuracy", drawing.curves(groups), "Accuracy over the steps",
        f"On the test samples of all classes seen, after each step; mean over the seeds{band}.", wide=False,
    )  # fmt: skip
    yield _Drawn(
        "bytes", drawing.kept(groups), "Accuracy against bytes",
        f"After the last step, against the most bytes that network and memory came to; mean over the seeds{bars}.",
        wide=False,
    )  # fmt: skip
    yield _Drawn(
        "tasks", drawing.by_task(groups), "Accuracy by task",
        "After each step on the test samples of each task, told from all classes seen; mean over the seeds.",
    )  # fmt: skip
    yield _Drawn(
        "confusion", drawing.confusion(groups), "Confusions after the last step",
        "What each class (row) was taken for (column), in the order of learning; all seeds together.",
    )  # fmt: skip
    with_memory = [group for group in groups if (group.folders[0] / MEMORY).exists()]
    if tsne and with_memory:
        yield _Drawn(
            "tsne", plane(with_memory), "What is replayed",
            f"t-SNE of the first run's training samples (dots, up to {SAMPLES} of each of up to {CLASSES} classes) and "
            "of what its memory replays (crosses); a sample that is kept exactly is one point, a cross on its dot "
            "if that is drawn.",
        )  # fmt: skip
    for number, group in enumerate(groups):
        steps = read_analysis(group.folders[0])
        if steps:
            yield _Drawn(
                f"blocks_{number}", drawing.blocks(group, steps), f"Blocks of the network: {group.name}",
                f"Gradients, movement and likeness (CKA) of the network's blocks, of the run with seed "
                f"{group.seeds[0]}; as in MEMO's Fig. 3.",
            )  # fmt: skip


def _facts(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "seeds": group.seeds,
        "folders": [str(folder) for folder in group.folders],
        "settings": settings(group.runs[0].config),
        "versions": group.runs[0].versions,
        "classes": group.classes,
        "class_names": group.class_names,
        "accuracy": group.curves.tolist(),
        "accuracy_by_task": [[step.by_task for step in run.steps] for run in group.runs],
        "forgetting_by_task": group.forgetting_by_task.tolist(),
        "bytes": group.bytes,
        "network_bytes": group.network_bytes,
        "seconds": group.seconds,
        "figures": {name: {"mean": one, "deviation": spread} for name, (one, spread) in group.figures().items()},
    }


def _svg(figure: Figure, title: str) -> str:
    import matplotlib

    data = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": title}):  # or its ids are other ones each time
        figure.savefig(data, format="svg", metadata={"Date": None, "Title": title})
    return data.getvalue()


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
