"""Writing archives: streamed in any of three containers, appearing whole or not at all."""

from __future__ import annotations

import contextlib
import json
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from krstore.archives._common import CHANNEL_AXIS
from krstore.dtypes import numpy_dtype
from krstore.errors import ArchiveError
from krstore.files import atomic_path
from krstore.source import Array, Ids, SourceSpec, default_channel_axis

__all__ = ["ArchiveWriter", "write_archive"]

_SAFETENSORS_NAMES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64", "uint8": "U8"}


class ArchiveWriter(Protocol):
    """Takes the samples of an archive in order."""

    def append(self, features: Array) -> None:
        """Write the next samples (n, *shape)."""


@contextlib.contextmanager
def write_archive(path: str | Path, spec: SourceSpec, columns: Mapping[str, Ids]) -> Iterator[ArchiveWriter]:
    """Write an archive of `spec.samples` samples; the container follows the suffix (.h5, .npz, .safetensors).

    Args:
        path: the file to write, replaced atomically when the block ends.
        spec: what is written; `spec.attributes` become the file's attributes.
        columns: integer arrays (N,) beside the features, by name: labels, ids, task.

    Raises:
        ArchiveError: an unknown suffix, or an element type that the container cannot hold.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    attributes = dict(spec.attributes)
    if spec.channel_axis != default_channel_axis(len(spec.shape)):
        attributes[CHANNEL_AXIS] = spec.channel_axis
    match path.suffix.lower():
        case ".h5" | ".hdf5":
            write = _hdf5
        case ".npz":
            write = _npz
        case ".safetensors":
            write = _safetensors
        case other:
            raise ArchiveError(f"{path}: cannot write an archive as {other!r}; use .h5, .npz or .safetensors")
    if spec.dtype == "bfloat16" and write is not _safetensors:
        raise ArchiveError(f"{path}: only safetensors holds bfloat16 features; use -o {path.with_suffix('.safetensors')}")
    with atomic_path(path) as temporary, write(temporary, spec, columns, attributes) as writer:
        yield writer


class _Hdf5Writer:
    def __init__(self, dataset: Any) -> None:
        self._dataset, self._next = dataset, 0

    def append(self, features: Array) -> None:
        self._dataset[self._next : self._next + len(features)] = features
        self._next += len(features)


@contextlib.contextmanager
def _hdf5(path: Path, spec: SourceSpec, columns: Mapping[str, Ids], attributes: Mapping[str, Any]) -> Iterator[_Hdf5Writer]:
    import h5py

    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file.create_dataset(name, data=values)
        for name, value in attributes.items():
            file.attrs[name] = value if isinstance(value, str | int | float | bool) else json.dumps(value)
        yield _Hdf5Writer(file.create_dataset(spec.features_key, (spec.samples, *spec.shape), numpy_dtype(spec.dtype)))


class _StreamWriter:
    def __init__(self, stream: Any, dtype: np.dtype[Any]) -> None:
        self._stream, self._dtype = stream, dtype

    def append(self, features: Array) -> None:
        self._stream.write(np.ascontiguousarray(features, self._dtype).tobytes())


@contextlib.contextmanager
def _npz(path: Path, spec: SourceSpec, columns: Mapping[str, Ids], attributes: Mapping[str, Any]) -> Iterator[_StreamWriter]:
    dtype = numpy_dtype(spec.dtype)
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in columns.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)
        header = {"descr": dtype.str, "fortran_order": False, "shape": (spec.samples, *spec.shape)}
        with archive.open(f"{spec.features_key}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            yield _StreamWriter(member, dtype)


@contextlib.contextmanager
def _safetensors(path: Path, spec: SourceSpec, columns: Mapping[str, Ids], attributes: Mapping[str, Any]) -> Iterator[_StreamWriter]:
    header: dict[str, Any] = {"__metadata__": {"krstore": json.dumps(attributes)}}
    offset = 0
    for name, values in columns.items():
        header[name] = {"dtype": "I64", "shape": list(values.shape), "data_offsets": [offset, offset + values.nbytes]}
        offset += values.nbytes
    header[spec.features_key] = {
        "dtype": _SAFETENSORS_NAMES[spec.dtype],
        "shape": [spec.samples, *spec.shape],
        "data_offsets": [offset, offset + spec.bytes],
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for values in columns.values():
            file.write(np.ascontiguousarray(values, np.int64).tobytes())
        yield _StreamWriter(file, numpy_dtype(spec.dtype))
