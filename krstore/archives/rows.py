"""Archives whose samples lie one after another in a file: .npy, .npz and safetensors.

Rows are read at their place in the file, not through a memory map: mapped pages would count as memory in use.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import struct
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

import msgspec
import numpy as np

from krstore.archives._common import Archive, choose_key, choose_labels, json_attributes, make_spec, read_column
from krstore.dtypes import numpy_dtype
from krstore.errors import ArchiveError
from krstore.source import Array, Ids, SourceSpec

__all__ = ["NPZ_ATTRIBUTES", "open_npy", "open_npz", "open_safetensors"]

NPZ_ATTRIBUTES = "attributes.json"
MAX_HEADER_BYTES = 100_000_000  # of the safetensors format
MAX_ATTRIBUTES_BYTES = 16 << 20

_SAFETENSORS_TYPES = {
    "F16": "float16", "F32": "float32", "F64": "float64", "BOOL": "bool",
    "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16",
    "U32": "uint32", "I32": "int32", "U64": "uint64", "I64": "int64",
}  # fmt: skip

_MALFORMED = (
    ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, OverflowError, MemoryError, RuntimeError,
    SyntaxError, tokenize.TokenError, struct.error, zlib.error, zipfile.BadZipFile, msgspec.MsgspecError,
)  # fmt: skip


class Rows:
    """An array (N, ...) at an offset of an open file."""

    def __init__(self, file: BinaryIO, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.file, self.offset, self.dtype, self.shape = file, offset, dtype, shape
        self.row_bytes = math.prod(shape[1:]) * dtype.itemsize
        size = os.fstat(file.fileno()).st_size
        if min(shape, default=0) < 0 or offset + math.prod(shape) * dtype.itemsize > size:
            raise ValueError(f"an array of shape {shape} and type {dtype} does not fit into {size} bytes")

    def read(self, start: int, stop: int) -> Array:
        """Return rows start..stop."""
        rows = np.empty((stop - start, *self.shape[1:]), self.dtype)
        left, position = rows.reshape(-1).view(np.uint8).data, self.offset + start * self.row_bytes
        while left:
            count = os.preadv(self.file.fileno(), [left], position)
            if count == 0:
                raise ArchiveError(f"{self.file.name} ends at byte {position}, inside its samples")
            left, position = left[count:], position + count
        return rows

    def all(self) -> Array:
        """Return the whole array."""
        return self.read(0, self.shape[0])


def open_npy(path: Path, features_key: str | None, labels_key: str | None) -> Archive:
    """Open a .npy file; `labels_key` is the path of a second one with the labels."""
    with contextlib.ExitStack() as stack, _readable(path, ".npy"):
        rows = _npy_rows(stack.enter_context(path.open("rb")))
        spec = make_spec(path, rows.shape, rows.dtype, features_key or "features", None, {})
        labels = None if labels_key is None else _npy_labels(Path(labels_key), spec.samples)
        return Archive(spec, rows.read, labels, None, stack.pop_all().close)


def open_npz(path: Path, features_key: str | None, labels_key: str | None) -> Archive:
    """Open a .npz file; a compressed member is unpacked into an anonymous temporary file first."""
    with contextlib.ExitStack() as stack, _readable(path, ".npz"):
        file = stack.enter_context(path.open("rb"))
        archive = stack.enter_context(zipfile.ZipFile(file))
        members = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
        attributes = _npz_attributes(archive) if NPZ_ATTRIBUTES in archive.namelist() else {}

        def rows_of(key: str) -> Rows:
            with archive.open(members[key]) as member:
                info = archive.getinfo(members[key])
                if info.compress_type == zipfile.ZIP_STORED:
                    name_length, extra_length = struct.unpack(
                        "<2H", os.pread(file.fileno(), 4, info.header_offset + 26)
                    )
                    return _npy_rows(member, file, info.header_offset + 30 + name_length + extra_length)
                temporary = stack.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(member, temporary, 1 << 20)
                temporary.seek(0)
                return _npy_rows(temporary)

        return _open_rows(path, features_key, labels_key, members, rows_of, attributes, stack)


def _npz_attributes(archive: zipfile.ZipFile) -> Any:
    size = archive.getinfo(NPZ_ATTRIBUTES).file_size
    if size > MAX_ATTRIBUTES_BYTES:
        raise ValueError(f"{NPZ_ATTRIBUTES} claims {size:,} bytes; expected at most {MAX_ATTRIBUTES_BYTES:,}")
    return json.loads(archive.read(NPZ_ATTRIBUTES))


def open_safetensors(path: Path, features_key: str | None, labels_key: str | None) -> Archive:
    """Open a safetensors file: the only container here with bfloat16."""
    with contextlib.ExitStack() as stack, _readable(path, "safetensors"):
        file = stack.enter_context(path.open("rb"))
        (length,) = struct.unpack("<Q", file.read(8))
        data_bytes = path.stat().st_size - 8 - length
        if length > MAX_HEADER_BYTES or data_bytes < 0:
            raise ValueError(f"its header claims {length} bytes")
        header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        tensors = {key: msgspec.convert(entry, _Tensor) for key, entry in header.items()}
        _check_places(tensors, data_bytes)

        def rows_of(key: str) -> Rows:
            tensor = tensors[key]
            if tensor.dtype not in _SAFETENSORS_TYPES and tensor.dtype != "BF16":
                raise ArchiveError(f"{path}: {key!r} has element type {tensor.dtype}, which krstore does not read")
            dtype = numpy_dtype("bfloat16") if tensor.dtype == "BF16" else np.dtype(_SAFETENSORS_TYPES[tensor.dtype])
            begin, end = tensor.data_offsets
            if math.prod(tensor.shape) * dtype.itemsize != end - begin:
                raise ValueError(f"tensor {key!r} of shape {tensor.shape} has {end - begin} bytes")
            return Rows(file, 8 + length + begin, dtype, tensor.shape)

        attributes = json.loads(metadata["krstore"]) if "krstore" in metadata else metadata
        return _open_rows(path, features_key, labels_key, tensors, rows_of, attributes, stack)


class _Tensor(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def _check_places(tensors: dict[str, _Tensor], data_bytes: int) -> None:
    """Tensors follow one another without holes or overlaps and fill the file, as the format demands."""
    position = 0
    for key, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        begin, end = tensor.data_offsets
        if begin != position or end < begin:
            raise ValueError(f"tensor {key!r} lies at bytes {begin} to {end}; expected to begin at {position}")
        position = end
    if position != data_bytes:
        raise ValueError(f"its tensors end at byte {position} of {data_bytes}")


def _open_rows(
    path: Path,
    features_key: str | None,
    labels_key: str | None,
    known: dict[str, Any],
    rows_of: Callable[[str], Rows],
    attributes: dict[str, Any],
    stack: contextlib.ExitStack,
) -> Archive:
    key = choose_key(path, features_key, "features", known)
    rest = known.keys() - {key}
    label_key = choose_labels(path, labels_key, rest)
    rows = rows_of(key)
    spec = make_spec(path, rows.shape, rows.dtype, key, label_key, json_attributes(attributes))
    labels, task = (
        None if name is None else _column(path, name, rows_of(name), spec)
        for name in (label_key, "task" if "task" in rest else None)
    )
    return Archive(spec, rows.read, labels, task, stack.pop_all().close)


def _column(path: Path, key: str, rows: Rows, spec: SourceSpec) -> Ids:
    return read_column(path, key, rows.shape, rows.dtype, spec.samples, rows.all)


def _npy_labels(path: Path, samples: int) -> Ids:
    if not path.is_file():
        raise ArchiveError(f"{path} is not a file; for a .npy archive, --labels-key names a .npy file of labels")
    with path.open("rb") as file, _readable(path, ".npy"):
        rows = _npy_rows(file)
        return read_column(path, "labels", rows.shape, rows.dtype, samples, rows.all)


def _npy_rows(stream: IO[bytes], file: BinaryIO | None = None, offset: int = 0) -> Rows:
    """Parse the header of a .npy stream that lies in `file` (default: is a file itself) from `offset`."""
    major, _ = np.lib.format.read_magic(stream)
    if major not in (1, 2, 3):
        raise ValueError(f"version {major} of the .npy format is unknown")
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if fortran and len(shape) > 1:
        raise ValueError("it is stored in Fortran order; save np.ascontiguousarray(x) instead")
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which krstore never unpickles; save a plain array")
    return Rows(file or stream, offset + stream.tell(), dtype, shape)  # type: ignore[arg-type]


@contextlib.contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    """Turn what the parsers raise on a damaged file into an `ArchiveError`."""
    try:
        yield
    except _MALFORMED as error:
        raise ArchiveError(f"{path} cannot be read as {kind}: {error}") from error
