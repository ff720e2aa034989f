"""What a store says of itself, as one dictionary that JSON can hold: what `krstore info` prints."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from krstore.errors import CorruptStoreError
from krstore.store.reader import Store

__all__ = ["summarise"]


def summarise(store: Store, *, per_class: bool = False) -> dict[str, Any]:
    """Return the facts of a store; reads its header, and its labels with `per_class`. Never needs the codec's code.

    Args:
        store: an open store.
        per_class: add ``quality["per_class"]``, the mse of each class by its label (a string, as JSON's keys are).

    Returns:
        ``path``, ``codec``, ``kind``, ``config``; ``samples`` of the source, ``kept`` of them here, their ``shape``
        and ``dtype``, ``classes`` (`None` without labels); ``ratio``; ``bytes`` as `krstore.store.reader.Sizes`;
        ``quality`` as `krstore.store.header.Quality`; ``source``, where the samples came from.

    Raises:
        CorruptStoreError: the labels are damaged, or their classes are not those whose error is listed.
    """
    header = store.header
    quality = msgspec.structs.asdict(header.quality)
    errors = quality.pop("per_class")
    if per_class:
        quality["per_class"] = _by_label(store, errors)
    return {
        "path": str(store.path),
        "codec": header.codec,
        "kind": header.kind,
        "config": dict(header.config),
        "samples": header.source.samples,
        "kept": header.kept,
        "shape": list(header.source.shape),
        "dtype": header.source.dtype,
        "classes": header.classes,
        "ratio": store.ratio,
        "bytes": msgspec.structs.asdict(store.bytes),
        "quality": quality,
        "source": {
            "sha256": header.source.sha256,
            "channel_axis": header.source.channel_axis,
            "features_key": header.source.features_key,
            "labels_key": header.source.labels_key,
            "attributes": dict(header.source.attributes),
        },
    }


def _by_label(store: Store, errors: tuple[float, ...]) -> dict[str, float]:
    labels = [] if store.labels is None else np.unique(store.labels).tolist()
    if len(labels) != len(errors):
        raise CorruptStoreError(f"{store.path}: {len(errors)} errors by class for {len(labels)} classes")
    return {str(label): error for label, error in zip(labels, errors, strict=True)}
