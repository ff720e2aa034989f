"""What every container's reader checks in the same way."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from krstore.dtypes import dtype_name
from krstore.errors import ArchiveError
from krstore.source import Array, Ids, SourceSpec, default_channel_axis

CHANNEL_AXIS = "channel_axis"


def choose_key(path: Path, wanted: str | None, default: str, known: Iterable[str]) -> str:
    """Return the key to read: the wanted one, the default, or the only array there is."""
    names = sorted(known)
    if wanted is not None:
        if wanted in names:
            return wanted
        raise ArchiveError(f"{path} has no array {wanted!r}; it has: {', '.join(names) or 'none'}")
    if default in names or len(names) == 1:
        return default if default in names else names[0]
    raise ArchiveError(
        f"{path} has no array {default!r}; it has: {', '.join(names) or 'none'}. Name one with --features-key"
    )


def choose_labels(path: Path, wanted: str | None, known: Iterable[str]) -> str | None:
    """Return the key of the labels, or `None` when none were asked for and there are none."""
    names = sorted(known)
    if wanted is None:
        return "labels" if "labels" in names else None
    if wanted in names:
        return wanted
    raise ArchiveError(f"{path} has no array {wanted!r} for labels; it has: {', '.join(names) or 'none'}")


def make_spec(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    features_key: str,
    labels_key: str | None,
    attributes: Mapping[str, Any],
) -> SourceSpec:
    """Build the spec of an array (N, *shape), taking the channel axis from the attributes where they say it."""
    if not shape:
        raise ArchiveError(f"{path}: {features_key!r} is a single value; expected an array (N, ...)")
    attributes = dict(attributes)
    rank = len(shape) - 1
    axis = attributes.pop(CHANNEL_AXIS, default_channel_axis(rank))
    if axis is not None and not (isinstance(axis, int) and 0 <= axis < rank):
        raise ArchiveError(f"{path}: attribute {CHANNEL_AXIS} is {axis!r}; expected 0..{rank - 1}, within a sample")
    try:
        name = dtype_name(dtype)
    except ArchiveError as error:
        raise ArchiveError(f"{path}: {features_key!r}: {error}") from None
    return SourceSpec(
        samples=shape[0],
        shape=tuple(shape[1:]),
        dtype=name,
        channel_axis=axis,
        features_key=features_key,
        labels_key=labels_key or "labels",
        attributes=attributes,
    )


def check_integers(path: Path, key: str, values: Array, samples: int) -> Ids:
    """Return a column of integers (N,) as int64, or say why it is none."""
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise ArchiveError(
            f"{path}: {key!r} has shape {values.shape} and type {values.dtype}; expected ({samples},) integers"
        )
    if len(values) != samples:
        raise ArchiveError(f"{path}: {key!r} has {len(values)} entries for {samples} samples")
    if values.dtype == np.uint64 and values.max(initial=0) > np.iinfo(np.int64).max:
        raise ArchiveError(f"{path}: {key!r} holds values above the 64-bit signed range")
    return values.astype(np.int64)


def json_attributes(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes that JSON can hold, NumPy scalars and arrays as plain numbers and lists."""
    attributes: dict[str, Any] = {}
    for key, value in raw.items():
        plain = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        if isinstance(plain, bytes):
            plain = plain.decode("utf-8", "replace")
        try:
            json.dumps(plain, allow_nan=False)
        except (TypeError, ValueError):
            continue
        attributes[key] = plain
    return attributes
