"""Archives in HDF5 files."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from krstore.archives._common import (
    Archive,
    archive_attributes,
    check_claim,
    choose_key,
    choose_labels,
    json_attributes,
    make_spec,
    read_column,
)
from krstore.dtypes import numpy_dtype
from krstore.errors import ArchiveError
from krstore.source import Array, Ids, SourceSpec

with contextlib.suppress(ImportError):  # registers the filters of Blosc, Zstd, Bitshuffle and others
    import hdf5plugin  # noqa: F401

__all__ = [
    "attributes_of",
    "create_file",
    "create_hdf5",
    "find_dataset",
    "is_group",
    "open_hdf5",
    "readable",
    "reserve",
]

CHUNK_CACHE_BYTES = 32 << 20
JSON_ATTRIBUTES = "krstore_json"
UNFIT = ("", JSON_ATTRIBUTES)  # names that no attribute of a file gets
MAX_LIST_BYTES = 16 << 10  # HDF5 refuses attributes from 64 kB


def open_hdf5(path: Path, features_key: str | None, labels_key: str | None, *, trust: bool) -> Archive:
    """Open an HDF5 archive; see `krstore.archives.open_archive`."""
    with contextlib.ExitStack() as stack, readable(path):
        file = stack.enter_context(h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE_BYTES))
        likely = (features_key or "features", labels_key or "labels", "task")
        known = {key for key in likely if find_dataset(path, file, key, trust=trust)}
        if likely[0] not in known or (labels_key and labels_key not in known):
            known.update(_names(file))
            if features_key is None and is_group(file, "step0"):
                raise ArchiveError(f"{path} holds a network's states, not samples: a snapshot codec encodes it")
        key = choose_key(path, features_key, "features", known)
        known.discard(key)
        label_key = choose_labels(path, labels_key, known)
        dataset = find_dataset(path, file, key, trust=trust)
        attributes = attributes_of(file) | attributes_of(dataset)
        spec = make_spec(path, dataset.shape or (), dataset.dtype, key, label_key, attributes)
        if not trust:  # which lets the samples be in other files
            check_claim(path, key, spec.samples * spec.elements)
        dtype = numpy_dtype(spec.dtype)

        def column(name: str) -> Ids:
            values = find_dataset(path, file, name, trust=trust)
            return read_column(path, name, values.shape or (), values.dtype, spec.samples, lambda: values[()])

        def rows(start: int, stop: int) -> Array:
            with readable(path):
                return np.asarray(dataset[start:stop], dtype=dtype)

        labels = None if label_key is None else column(label_key)
        task = column("task") if "task" in known else None
        return Archive(spec, rows, labels, task, stack.pop_all().close)


def create_hdf5(path: Path, spec: SourceSpec, columns: Mapping[str, Ids]) -> int:
    """Write an archive without its samples; return the offset at which their bytes belong, in order.

    Raises:
        OSError: the file cannot be written.
    """
    with create_file(path, archive_attributes(spec)) as file:
        for name, values in columns.items():
            file.create_dataset(name, data=values)
        return reserve(file, spec.features_key, (spec.samples, *spec.shape), numpy_dtype(spec.dtype))


@contextlib.contextmanager
def create_file(path: Path, attributes: Mapping[str, Any]) -> Iterator[h5py.File]:
    """Yield a file that is written when the block ends.

    It is whole but for the bytes of reserved datasets: whoever fills them in needs no HDF5, and a crash meanwhile
    leaves no half-written structure.

    Raises:
        OSError: the file cannot be written.
    """
    rest = {name: value for name, value in attributes.items() if name in UNFIT or not _native(value)}
    recorder = _Recorder()
    with h5py.File(recorder, "w") as file:
        file.attrs.update({name: value for name, value in attributes.items() if name not in rest})
        if rest:
            file.attrs[JSON_ATTRIBUTES] = json.dumps(rest)
        yield file
    with path.open("wb") as target:
        for position, data in recorder.pieces:
            target.seek(position)
            target.write(data)
        target.truncate(recorder.size)


def reserve(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Make a dataset without its elements; return the offset at which their bytes belong, in order (0 without any)."""
    early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    early.set_obj_track_times(False)
    folder, _, leaf = name.rpartition("/")
    group = file.require_group(folder) if folder else file
    space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
    kind = h5py.h5t.py_create(dtype, logical=True)
    return int(h5py.h5d.create(group.id, leaf.encode(), kind, space, early).get_offset() or 0)


class _Recorder(io.RawIOBase):
    """Keeps what HDF5 writes: after a write error of its own, such as a full disk, it brings the process down."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, bytes]] = []
        self.size = self._position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        return self._position

    def write(self, data: Any) -> int:
        self.pieces.append((self._position, bytes(data)))
        self._position += len(data)
        self.size = max(self.size, self._position)
        return len(data)

    def readinto(self, buffer: Any) -> int:
        begin, count = self._position, len(buffer)
        read = bytearray(count)
        for position, data in self.pieces:
            first, last = max(begin, position), min(begin + count, position + len(data))
            if first < last:
                read[first - begin : last - begin] = data[first - position : last - position]
        buffer[:] = read
        return count

    def truncate(self, size: int | None = None) -> int:
        self.size = self._position if size is None else size
        return self.size


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what h5py raises on a damaged or unreadable file into an `ArchiveError`."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:
        hint = "; pip install 'krstore[hdf5]' adds filters" if "required filter" in str(error) else ""
        raise ArchiveError(f"{path} cannot be read as HDF5: {error}{hint}") from error


def find_dataset(path: Path, file: h5py.File, key: str, *, trust: bool) -> h5py.Dataset:
    """Return a dataset by key, or `None`; what leads out of the file is refused unopened, unless trusted."""
    if not trust:
        key = _followed(path, file, key)
    item = file.get(key)
    if not isinstance(item, h5py.Dataset):
        return None
    if not trust and (item.is_virtual or item.external):
        raise ArchiveError(f"{path}: {key!r} keeps its data in other files; --trust (trust=True) reads them")
    return item


def is_group(file: h5py.File, name: str) -> bool:
    """Whether a name is that of a group of the file, not of a link to one, which is not followed."""
    return file.get(name, getclass=True, getlink=True) is h5py.HardLink and isinstance(file[name], h5py.Group)


def _followed(path: Path, file: h5py.File, key: str) -> str:
    """Replace soft links in a key by what they point to, and refuse external ones."""
    parts, done = key.split("/"), ""
    for _ in range(256):
        while parts and parts[0] in ("", "."):
            parts.pop(0)
        if not parts:
            return done or "/"
        done = f"{done}/{parts.pop(0)}"
        parent = file[done.rpartition("/")[0] or "/"]
        link = parent.get(done.rpartition("/")[2], getlink=True) if isinstance(parent, h5py.Group) else None
        if isinstance(link, h5py.ExternalLink):
            raise ArchiveError(f"{path}: {key!r} is a link to another file; --trust (trust=True) follows it")
        if isinstance(link, h5py.SoftLink):
            parts = link.path.split("/") + parts
            done = "" if link.path.startswith("/") else done.rpartition("/")[0]
        elif link is None:
            return key
    raise ArchiveError(f"{path}: {key!r} is a circle of links")


def _names(file: h5py.File) -> list[str]:
    """Return the paths of all datasets that are plainly in the file."""
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names


def attributes_of(item: h5py.HLObject) -> dict[str, Any]:
    """Return the attributes of a file, group or dataset that JSON can hold."""
    raw = {}
    for name in item.attrs:
        with contextlib.suppress(TypeError):  # a type that NumPy has no equivalent of
            raw[name] = item.attrs[name]
    return json_attributes(raw | json.loads(raw.pop(JSON_ATTRIBUTES, "{}")))


def _native(value: Any) -> bool:
    """Whether HDF5 gives this JSON value back as it is: text, a number, or a short list of one such type."""
    if isinstance(value, list):
        return (
            len(value) > 0
            and len(value) * 16 <= MAX_LIST_BYTES
            and len({type(item) for item in value}) == 1
            and not isinstance(value[0], list)
            and all(map(_native, value))
        )
    if isinstance(value, str):
        return "\0" not in value
    return isinstance(value, bool | float) or (isinstance(value, int) and -(1 << 63) <= value < 1 << 63)
