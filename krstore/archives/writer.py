"""Writing archives: streamed in any of three containers, appearing whole or not at all."""

from __future__ import annotations

import contextlib
import itertools
import json
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from krstore.archives._common import archive_attributes
from krstore.archives.rows import NPZ_ATTRIBUTES
from krstore.dtypes import numpy_dtype
from krstore.errors import ArchiveError
from krstore.files import atomic_path
from krstore.source import Array, Ids, SourceSpec

__all__ = ["ArchiveWriter", "write_archive"]

METADATA = "__metadata__"

_SAFETENSORS_NAMES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64", "uint8": "U8"}


class ArchiveWriter:
    """Takes the samples of an archive in order, as bytes into an open stream."""

    def __init__(self, stream: IO[bytes], spec: SourceSpec) -> None:
        self._stream, self._spec, self._dtype = stream, spec, numpy_dtype(spec.dtype)
        self.samples = 0

    def append(self, features: Array) -> None:
        """Write the next samples (n, *shape).

        Raises:
            ArchiveError: they are of another shape.
        """
        if features.shape[1:] != self._spec.shape:
            raise ArchiveError(f"samples of shape {features.shape[1:]}; this archive holds {self._spec.shape}")
        values = np.ascontiguousarray(features, self._dtype)
        self._stream.write(values.reshape(-1).view(np.uint8).data)
        self.samples += len(features)


@contextlib.contextmanager
def write_archive(path: str | Path, spec: SourceSpec, columns: Mapping[str, Ids]) -> Iterator[ArchiveWriter]:
    """Write an archive of `spec.samples` samples; the container follows the suffix (.h5, .npz, .safetensors).

    Args:
        path: the file to write, replaced atomically when the block ends.
        spec: what is written; `spec.attributes` become the file's attributes.
        columns: integer arrays (N,) beside the features, by name: labels, ids, task.

    Raises:
        ArchiveError: an unknown suffix, an element type or a name that the container cannot hold, or samples missing.
        OutputError: the file cannot be written.
    """
    path = Path(path)
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
        raise ArchiveError(
            f"{path}: only safetensors holds bfloat16 features; use -o {path.with_suffix('.safetensors')}"
        )
    _check_names(path, [*columns, spec.features_key])
    with atomic_path(path) as temporary:
        with write(temporary, spec, columns) as stream:
            writer = ArchiveWriter(stream, spec)
            yield writer
        if writer.samples != spec.samples:
            raise ArchiveError(f"{path}: {writer.samples} samples were written; the archive should hold {spec.samples}")


def _check_names(path: Path, names: Sequence[str]) -> None:
    suffix = path.suffix.lower()
    if suffix == ".safetensors" and METADATA in names:
        raise ArchiveError(f"{path}: safetensors has no array called {METADATA!r}; use -o {path.with_suffix('.h5')}")
    for name, other in itertools.permutations(names, 2):
        if name == other:
            raise ArchiveError(f"{path}: two arrays of an archive cannot both be called {name!r}")
        if suffix in (".h5", ".hdf5") and other.startswith(f"{name}/"):
            raise ArchiveError(
                f"{path}: HDF5 has no array {other!r} beside an array {name!r}; use -o {path.with_suffix('.npz')}"
            )


@contextlib.contextmanager
def _hdf5(path: Path, spec: SourceSpec, columns: Mapping[str, Ids]) -> Iterator[IO[bytes]]:
    from krstore.archives.hdf5 import create_hdf5

    offset = create_hdf5(path, spec, columns)
    with path.open("r+b") as file:
        file.seek(offset)
        yield file


@contextlib.contextmanager
def _npz(path: Path, spec: SourceSpec, columns: Mapping[str, Ids]) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(path, "w") as archive:
        if attributes := archive_attributes(spec):
            archive.writestr(zipfile.ZipInfo(NPZ_ATTRIBUTES), json.dumps(attributes))
        for name, values in columns.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)
        header = {
            "descr": numpy_dtype(spec.dtype).str,
            "fortran_order": False,
            "shape": (spec.samples, *spec.shape),
        }
        with archive.open(f"{spec.features_key}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            yield member


@contextlib.contextmanager
def _safetensors(path: Path, spec: SourceSpec, columns: Mapping[str, Ids]) -> Iterator[IO[bytes]]:
    header: dict[str, Any] = {METADATA: {"krstore": json.dumps(archive_attributes(spec))}}
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
        yield file
