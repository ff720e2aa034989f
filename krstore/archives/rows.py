"""Archives whose samples lie one after another in a file: .npy, .npz and safetensors.

Rows are read with `pread`, not through a memory map: mapped pages would count as memory in use.
"""

from __future__ import annotations

import json
import math
import os
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from krstore.archives._common import check_integers, choose_key, choose_labels, json_attributes, make_spec
from krstore.dtypes import numpy_dtype
from krstore.errors import ArchiveError
from krstore.source import Array, Ids, SourceSpec

__all__ = ["RowArchive", "open_npy", "open_npz", "open_safetensors"]

_SAFETENSORS_TYPES = {
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16",
    "U32": "uint32", "I32": "int32", "U64": "uint64", "I64": "int64",
}  # fmt: skip


class Rows:
    """An array (N, ...) at an offset of an open file."""

    def __init__(self, file: BinaryIO, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]):
        self.file, self.offset, self.dtype, self.shape = file, offset, dtype, shape
        self.row_bytes = math.prod(shape[1:]) * dtype.itemsize

    def read(self, start: int, count: int) -> Array:
        """Return rows start..start+count."""
        data = os.pread(self.file.fileno(), count * self.row_bytes, self.offset + start * self.row_bytes)
        if len(data) != count * self.row_bytes:
            raise ArchiveError(f"{self.file.name}: the file ends inside row {start + len(data) // self.row_bytes}")
        return np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])

    def all(self) -> Array:
        """Return the whole array."""
        return self.read(0, self.shape[0])


class RowArchive:
    """Rows of a file with their labels, as a source."""

    def __init__(self, spec: SourceSpec, rows: Rows, labels: Ids | None, task: Ids | None):
        self.spec, self.labels, self.task = spec, labels, task
        self._rows = rows

    def read(self, ids: Ids) -> Array:
        """Return the samples of these IDs; contiguous IDs are one read."""
        dtype = numpy_dtype(self.spec.dtype)
        if len(ids) and np.array_equal(ids, np.arange(ids[0], ids[0] + len(ids))):
            return self._rows.read(int(ids[0]), len(ids)).astype(dtype, copy=False)
        out = np.empty((len(ids), *self.spec.shape), dtype)
        for row, sample in enumerate(ids):
            out[row] = self._rows.read(int(sample), 1)[0]
        return out


def open_npy(path: Path, features_key: str | None, labels_key: str | None) -> RowArchive:
    """Open a .npy file; `labels_key` is the path of a second one with the labels."""
    rows = _npy_rows(path, path.open("rb"))
    spec = make_spec(path, rows.shape, rows.dtype, features_key or "features", None, {})
    if labels_key is None:
        return RowArchive(spec, rows, None, None)
    if not Path(labels_key).is_file():
        raise ArchiveError(f"{labels_key} is not a file; for a .npy archive, --labels-key names a .npy of labels")
    with Path(labels_key).open("rb") as file:
        labels = check_integers(path, labels_key, _npy_rows(Path(labels_key), file).all(), spec.samples)
    return RowArchive(spec, rows, labels, None)


def open_npz(path: Path, features_key: str | None, labels_key: str | None) -> RowArchive:
    """Open a .npz file; a compressed member is unpacked into an anonymous temporary file first."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}

            def unpacked(key: str) -> Rows:
                temporary = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the source
                with archive.open(members[key]) as member:
                    while block := member.read(1 << 20):
                        temporary.write(block)
                temporary.flush()
                temporary.seek(0)
                return _npy_rows(path, temporary)

            key = choose_key(path, features_key, "features", members)
            label_key = choose_labels(path, labels_key, members)
            rows = unpacked(key)
            spec = make_spec(path, rows.shape, rows.dtype, key, label_key, {})
            labels, task = (
                None if name is None else check_integers(path, name, unpacked(name).all(), spec.samples)
                for name in (label_key, "task" if "task" in members else None)
            )
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise ArchiveError(f"{path} cannot be read as .npz: {error}") from error
    return RowArchive(spec, rows, labels, task)


def open_safetensors(path: Path, features_key: str | None, labels_key: str | None) -> RowArchive:
    """Open a safetensors file: the only container here with bfloat16."""
    file = path.open("rb")
    size = path.stat().st_size
    try:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > size - 8:
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        header = json.loads(file.read(length))
        attributes = header.pop("__metadata__", {})

        def rows_of(key: str) -> Rows:
            entry = header[key]
            dtype = np.dtype(_SAFETENSORS_TYPES[entry["dtype"]]) if entry["dtype"] != "BF16" else numpy_dtype("bfloat16")
            shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
            if math.prod(shape) * dtype.itemsize != end - begin or not 0 <= begin <= end <= size - 8 - length:
                raise ValueError(f"tensor {key!r} of shape {shape} does not fit its place in the file")
            return Rows(file, 8 + length + begin, dtype, shape)

        key = choose_key(path, features_key, "features", header)
        label_key = choose_labels(path, labels_key, header)
        rows = rows_of(key)
        spec = make_spec(path, rows.shape, rows.dtype, key, label_key, json_attributes(_unpack(attributes)))
        labels, task = (
            None if name is None else check_integers(path, name, rows_of(name).all(), spec.samples)
            for name in (label_key, "task" if "task" in header else None)
        )
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArchiveError(f"{path} cannot be read as safetensors: {error}") from error
    return RowArchive(spec, rows, labels, task)


def _npy_rows(path: Path, file: BinaryIO) -> Rows:
    try:
        major, _ = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except ValueError as error:
        raise ArchiveError(f"{path} cannot be read as .npy: {error}") from error
    if fortran and len(shape) > 1:
        raise ArchiveError(f"{path} is stored in Fortran order; save np.ascontiguousarray(x) instead")
    if dtype.hasobject:
        raise ArchiveError(f"{path} holds Python objects, which krstore never unpickles; save a plain array")
    return Rows(file, file.tell(), dtype, shape)


def _unpack(metadata: dict[str, str]) -> dict[str, Any]:
    """Safetensors metadata are strings; `krstore.archives.writer` keeps its attributes as one JSON string."""
    return dict(json.loads(metadata["krstore"])) if "krstore" in metadata else dict(metadata)
