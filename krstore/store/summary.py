"""What a store says of itself, as one dictionary that JSON can hold: what `krstore info` prints."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from krstore.errors import CorruptStoreError
from krstore.store.reader import Store
from krstore.store.snapshots import SnapshotStore

__all__ = ["summarise"]


def summarise(store: Store | SnapshotStore, *, per_class: bool = False) -> dict[str, Any]:
    """Return the facts of a store; reads its header, and its labels with `per_class`. Never needs the codec's code.

    Args:
        store: an open store.
        per_class: add ``quality["per_class"]``, the mse of each class by its label (a string, as JSON's keys are).

    Returns:
        ``path``, ``codec``, ``kind``, ``config``; ``ratio``; ``bytes`` as `krstore.store.opened.Sizes`; ``quality`` as
        `krstore.store.header.Quality` or `SnapshotQuality`; ``source``, where the samples or states came from. Of
        samples, ``samples`` of the source, ``kept`` of them here, their ``shape`` and ``dtype``, ``classes`` (`None`
        without labels); of a network's states, ``steps``, and ``arrays`` and ``elements`` of the last one.

    Raises:
        CorruptStoreError: the labels are damaged, or their classes are not those whose error is listed.
    """
    common = {
        "path": str(store.path),
        "codec": store.codec,
        "kind": store.header.kind,
        "config": dict(store.config),
        "ratio": store.ratio,
        "bytes": msgspec.structs.asdict(store.bytes),
    }
    return common | (_states(store) if isinstance(store, SnapshotStore) else _samples(store, per_class))


def _states(store: SnapshotStore) -> dict[str, Any]:
    last = store.spec.steps[-1]
    return {
        "steps": len(store),
        "arrays": len(last),
        "elements": sum(array.elements for array in last.values()),
        "quality": {**msgspec.structs.asdict(store.quality), "per_step": list(store.quality.per_step)},
        "source": {"sha256": store.header.source.sha256, "attributes": dict(store.spec.attributes)},
    }


def _samples(store: Store, per_class: bool) -> dict[str, Any]:
    header = store.header
    quality = msgspec.structs.asdict(header.quality)
    errors = quality.pop("per_class")
    if per_class:
        quality["per_class"] = _by_label(store, errors)
    return {
        "samples": header.source.samples,
        "kept": header.kept,
        "shape": list(header.source.shape),
        "dtype": header.source.dtype,
        "classes": header.classes,
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
