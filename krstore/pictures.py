"""What a store holds, seen: samples beside the originals, as images or as points in a plane (the extra ``plots``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from krstore.errors import UsageError
from krstore.files import atomic_path
from krstore.plots import require_matplotlib
from krstore.source import Array, Ids, Source, class_indices

if TYPE_CHECKING:
    from krstore.store.reader import Store

__all__ = ["Points", "in_a_plane", "plot_plane", "plot_sheet"]

EACH, CLASSES, POINTS = 10, 10, 200
Points = NDArray[np.float64]


def plot_sheet(store: Store, source: Source, path: Path, *, classes: int = CLASSES, each: int = EACH) -> None:
    """Draw a contact sheet: of each class, samples of a store, and above each the one that it was encoded from.

    Args:
        store: of images.
        source: what it was encoded from.
        path: the .png file, replaced atomically.
        classes, each: how many classes, and at most how many samples of each.

    Raises:
        UsageError: the samples are no images of one or three channels, the source is another, or the path no .png.
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    _check(store, source, path)
    rows, kept = [], _by_class(store, classes)
    each = min(each, max(map(len, kept)))
    for ids in kept:
        for values in (source.read(ids[:each]), store.read(ids[:each])):
            shown = [_image(value) for value in values]
            blank = np.ones_like(shown[0])
            rows.append(np.concatenate([*shown, *[blank] * (each - len(shown))], axis=1))
    sheet = np.concatenate(rows)
    require_matplotlib()
    from matplotlib.image import imsave

    scale = max(1, 640 // sheet.shape[1])
    with atomic_path(path) as temporary:
        imsave(temporary, sheet.repeat(scale, 0).repeat(scale, 1), format="png")


def plot_plane(store: Store, source: Source, path: Path, *, classes: int = CLASSES, points: int = POINTS) -> None:
    """Draw samples of some classes and those that a store has of them in one plane, by t-SNE.

    Args:
        store, source, path: as for `plot_sheet`, of any samples.
        classes, points: how many classes, and how many samples of each.

    Raises:
        as `plot_sheet`, but that the samples may be of any shape.
    """
    _check(store, source, path)
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kept = _by_class(store, classes)
    whole = class_indices(source.labels) or {0: np.arange(source.spec.samples)}
    place = {int(i): label for label, ids in whole.items() for i in ids}
    originals = [whole[place[int(ids[0])]][:points] for ids in kept]
    values = [*map(source.read, originals), *(store.read(ids[:points]) for ids in kept)]
    places = in_a_plane(values)
    figure = Figure(figsize=(7.2, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (dots, crosses) in enumerate(zip(places[: len(kept)], places[len(kept) :], strict=True)):
        colour, once = f"C{number % 10}", number == 0
        axes.scatter(
            dots[:, 0], dots[:, 1], s=9, color=colour, alpha=0.3, linewidths=0, label="original" if once else None
        )
        axes.scatter(
            crosses[:, 0], crosses[:, 1], s=36, marker="X", color=colour, edgecolors="black", linewidths=0.6,
            label=store.codec if once else None,
        )  # fmt: skip
    axes.set(xticks=[], yticks=[])
    axes.legend(fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})


def in_a_plane(parts: Sequence[Array]) -> list[Points]:
    """Return where t-SNE puts samples (n, *shape), all parts together, as points (n, 2) of each part.

    Samples that are the same to the last bit are one point, or t-SNE would push the pairs to the rim of their cluster;
    where all are, it is (0, 0).

    Raises:
        UsageError: a value is NaN or infinite.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    rows = np.concatenate([part.reshape(len(part), math.prod(part.shape[1:])) for part in parts]).astype(np.float64)
    if not np.isfinite(rows).all():
        raise UsageError("a sample with a NaN or infinite value has no place in a plane; leave it out")
    values, place = np.unique(rows, axis=0, return_inverse=True)
    plane = np.zeros((1, 2))
    if len(values) > 1:
        values -= values[0].copy()
        values = np.pad(values / np.abs(values).max(), ((0, 0), (0, max(0, 2 - values.shape[1]))))  # of scalars too
        reduced = PCA(min(50, *values.shape), random_state=0).fit_transform(values)
        plane = TSNE(perplexity=min(30, (len(values) - 1) / 3), init="pca", random_state=0).fit_transform(reduced)
    return np.split(plane[place.reshape(-1)], np.cumsum([len(part) for part in parts])[:-1])


def _check(store: Store, source: Source, path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path}: a picture is a PNG file; name it .png")
    own, other = (store.source.samples, store.source.shape), (source.spec.samples, source.spec.shape)
    if own != other:
        raise UsageError(
            f"{store.path} was encoded from {own[0]:,} samples {own[1]}; the archive has {other[0]:,} {other[1]}"
        )


def _by_class(store: Store, classes: int) -> list[Ids]:
    """Return the source's IDs of the samples of some classes, evenly chosen."""
    own: list[Any] = list(class_indices(store.labels).values()) or [np.arange(len(store))]
    chosen = np.linspace(0, len(own) - 1, min(classes, len(own))).astype(int)
    return [store.ids[own[number]] for number in chosen]


def _image(values: Array) -> Array:
    """Return an image (H, W, 3) of 0..1."""
    if values.ndim == 2:
        values = values[:, :, None]
    elif values.ndim == 3 and values.shape[2] not in (1, 3) and values.shape[0] in (1, 3):
        values = np.moveaxis(values, 0, 2)
    if values.ndim != 3 or values.shape[2] not in (1, 3):
        raise UsageError(f"samples {values.shape} are no images of 1 or 3 channels; draw them in a plane (--tsne)")
    shown = values.astype(np.float64) / (255 if values.dtype == np.uint8 else 1)
    return np.broadcast_to(shown.clip(0, 1), (*shown.shape[:2], 3))
