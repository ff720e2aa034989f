"""What every container's reader shares: finding keys, checking arrays and columns, reading rows."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from krstore.dtypes import dtype_name, numpy_dtype
from krstore.errors import ArchiveError, UsageError
from krstore.files import encodable
from krstore.source import MAX_SAMPLES_PER_BYTE, Array, Ids, SourceSpec, default_channel_axis

__all__ = [
    "CHANNEL_AXIS",
    "Archive",
    "archive_attributes",
    "check_claim",
    "choose_key",
    "choose_labels",
    "json_attributes",
    "make_spec",
    "read_column",
]

CHANNEL_AXIS = "channel_axis"


class Archive:
    """An array (N, *shape) of an open file, with its labels, as a source.

    Args:
        spec: what the array holds.
        rows: returns rows start..stop of the array.
        labels, task: the columns (N,), or `None`.
        close: called when the archive is no longer used.
    """

    def __init__(
        self,
        spec: SourceSpec,
        rows: Callable[[int, int], Array],
        labels: Ids | None,
        task: Ids | None,
        close: Callable[[], object],
    ) -> None:
        self.spec, self.labels, self.task = spec, labels, task
        self._rows = rows
        weakref.finalize(self, close)

    def read(self, ids: Ids) -> Array:
        """Return the samples (len(ids), *shape) of these IDs; neighbours are read together.

        Raises:
            UsageError: an ID is not in 0..N-1.
            ArchiveError: the file is damaged.
        """
        ids = np.asarray(ids, np.int64)
        dtype = numpy_dtype(self.spec.dtype)
        if len(ids) == 0:
            return np.empty((0, *self.spec.shape), dtype)
        if ids.min() < 0 or ids.max() >= self.spec.samples:
            raise UsageError(f"sample IDs {ids.min()} to {ids.max()}; expected 0 to {self.spec.samples - 1}")
        if np.array_equal(ids, np.arange(ids[0], ids[0] + len(ids))):
            return self._rows(int(ids[0]), int(ids[-1]) + 1).astype(dtype, copy=False)
        unique, inverse = np.unique(ids, return_inverse=True)
        samples = np.empty((len(unique), *self.spec.shape), dtype)
        starts = np.flatnonzero(np.diff(unique, prepend=-2) > 1)
        for start, stop in zip(starts, [*starts[1:], len(unique)], strict=True):
            samples[start:stop] = self._rows(int(unique[start]), int(unique[stop - 1]) + 1)
        return samples[inverse]


def choose_key(path: Path, wanted: str | None, default: str, known: Iterable[str]) -> str:
    """Return the key to read: the wanted one, the default, or the only array there is."""
    names = sorted(known)
    if wanted is None and default not in names and len(names) == 1:
        return names[0]
    key = default if wanted is None else wanted
    if key in names:
        return key
    hint = ". Name one with --features-key (features_key=)" if wanted is None else ""
    raise ArchiveError(f"{path} has no array {key!r}; it has: {', '.join(names) or 'none'}{hint}")


def choose_labels(path: Path, wanted: str | None, rest: Iterable[str]) -> str | None:
    """Return the key of the labels among the arrays beside the features; `None` if neither asked for nor there."""
    names = sorted(rest)
    if wanted is None:
        return "labels" if "labels" in names else None
    if wanted in names:
        return wanted
    raise ArchiveError(
        f"{path} has no array {wanted!r} for labels; beside the features it has: {', '.join(names) or 'none'}"
    )


def check_claim(path: Path, key: str, count: int) -> None:
    """Refuse an array of more samples, or elements, than what is in its file can stand for."""
    size = path.stat().st_size
    if count > MAX_SAMPLES_PER_BYTE * size:
        raise ArchiveError(
            f"{path}: {key!r} claims {count:,} entries in a file of {size:,} bytes; --trust (trust=True) reads them"
        )


def make_spec(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    features_key: str,
    labels_key: str | None,
    attributes: Mapping[str, Any],
) -> SourceSpec:
    """Build the spec of an array (N, *shape), taking the channel axis from the attributes where they say it."""
    try:
        name = dtype_name(dtype)
    except ArchiveError as error:
        raise ArchiveError(f"{path}: {features_key!r}: {error}") from None
    if not shape:
        raise ArchiveError(f"{path}: {features_key!r} is a single value; expected an array (N, ...)")
    if 0 in shape:
        raise ArchiveError(f"{path}: {features_key!r} of shape {shape} holds nothing; expected at least one sample")
    attributes = dict(attributes)
    rank = len(shape) - 1
    axis = attributes.pop(CHANNEL_AXIS, default_channel_axis(rank))
    if axis is not None and not (type(axis) is int and 0 <= axis < rank):
        raise ArchiveError(
            f"{path}: attribute {CHANNEL_AXIS} is {axis!r}; samples of shape {shape[1:]} have axes 0 to {rank - 1}"
        )
    return SourceSpec(
        samples=shape[0],
        shape=tuple(shape[1:]),
        dtype=name,
        channel_axis=axis,
        features_key=features_key,
        labels_key=labels_key or "labels",
        attributes=attributes,
    )


def read_column(
    path: Path, key: str, shape: tuple[int, ...], dtype: np.dtype[Any], samples: int, read: Callable[[], Array]
) -> Ids:
    """Read a column of integers (N,) as int64, or say why the array is none; checked before it is read."""
    if dtype.kind not in "iu" or len(shape) != 1:
        raise ArchiveError(f"{path}: {key!r} has shape {shape} and type {dtype}; expected ({samples},) integers")
    if shape[0] != samples:
        raise ArchiveError(f"{path}: {key!r} has {shape[0]} entries for {samples} samples; expected one a sample")
    values = read()
    if dtype.itemsize == 8 and dtype.kind == "u" and values.max() > np.iinfo(np.int64).max:
        raise ArchiveError(f"{path}: {key!r} holds {values.max()}, above the 64-bit signed range")
    return values.astype(np.int64)


def json_attributes(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes that JSON can hold, NumPy scalars and arrays as plain numbers, strings and lists."""
    attributes: dict[str, Any] = {}
    for key, value in raw.items():
        plain = _plain(value)
        try:
            json.dumps(plain, allow_nan=False)
        except (TypeError, ValueError):
            continue
        attributes[_plain(key)] = plain
    return attributes


def _plain(value: Any) -> Any:
    match value:
        case np.ndarray() | np.generic():
            return _plain(value.tolist())
        case dict():
            return {_plain(key): _plain(item) for key, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case str():
            return encodable(value)
        case bytes():
            return value.decode("utf-8", "backslashreplace")
    return value


def archive_attributes(spec: SourceSpec) -> dict[str, Any]:
    """Return the attributes of the file: the source's, and the channel axis where its rank does not tell it."""
    attributes = {name: value for name, value in spec.attributes.items() if name != CHANNEL_AXIS}
    if spec.channel_axis != default_channel_axis(len(spec.shape)):
        attributes[CHANNEL_AXIS] = spec.channel_axis
    return attributes
