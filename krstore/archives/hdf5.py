"""Archives in HDF5 files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from krstore.archives._common import check_integers, choose_key, choose_labels, json_attributes, make_spec
from krstore.dtypes import numpy_dtype
from krstore.errors import ArchiveError
from krstore.source import Array, Ids, SourceSpec

with contextlib.suppress(ImportError):  # registers the filters of Blosc, Zstd, Bitshuffle and others
    import hdf5plugin  # noqa: F401

__all__ = ["Hdf5Archive", "open_hdf5"]


class Hdf5Archive:
    """A dataset (N, *shape) of an HDF5 file, with its labels, as a source."""

    def __init__(self, path: Path, spec: SourceSpec, dataset: h5py.Dataset, labels: Ids | None, task: Ids | None):
        self.path, self.spec, self.labels, self.task = path, spec, labels, task
        self._dataset = dataset

    def read(self, ids: Ids) -> Array:
        """Return the samples of these IDs; contiguous IDs are one read."""
        with _readable(self.path):
            if len(ids) and np.array_equal(ids, np.arange(ids[0], ids[0] + len(ids))):
                values = self._dataset[int(ids[0]) : int(ids[0]) + len(ids)]
            else:
                unique, inverse = np.unique(ids, return_inverse=True)
                values = self._dataset[unique][inverse]
        return np.asarray(values, dtype=numpy_dtype(self.spec.dtype))


def open_hdf5(path: Path, features_key: str | None, labels_key: str | None, *, trust: bool) -> Hdf5Archive:
    """Open an HDF5 archive; see `krstore.archives.open_archive`."""
    with _readable(path):
        file = h5py.File(path, "r")
        known = list(_dataset_names(file, trust=trust))
        if not trust:
            for key in filter(None, (features_key, labels_key)):
                _refuse_foreign(path, file, key)
        key = choose_key(path, features_key, "features", known)
        label_key = choose_labels(path, labels_key, known)
        dataset = file[key]
        attributes = json_attributes({**file.attrs, **dataset.attrs})
        spec = make_spec(path, dataset.shape, dataset.dtype, key, label_key, attributes)
        labels = None if label_key is None else check_integers(path, label_key, file[label_key][()], spec.samples)
        task = check_integers(path, "task", file["task"][()], spec.samples) if "task" in known else None
    return Hdf5Archive(path, spec, dataset, labels, task)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what h5py raises on a damaged or unreadable file into an `ArchiveError`."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise ArchiveError(f"{path} cannot be read as HDF5: {error}") from error


def _dataset_names(group: h5py.Group, *, trust: bool, prefix: str = "") -> Iterator[str]:
    """Yield the paths of all datasets below a group, not through links that leave the file unless trusted."""
    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.ExternalLink) and not trust:
            continue
        item = group.get(name)
        if isinstance(item, h5py.Group):
            if isinstance(group.get(name, getlink=True), h5py.HardLink):
                yield from _dataset_names(item, trust=trust, prefix=f"{prefix}{name}/")
        elif isinstance(item, h5py.Dataset) and (trust or not (item.is_virtual or item.external)):
            yield prefix + name


def _refuse_foreign(path: Path, file: h5py.File, key: str) -> None:
    """Say plainly when a key that was asked for leads out of the file."""
    group: h5py.Group = file
    for part in key.strip("/").split("/"):
        if not isinstance(group, h5py.Group) or part not in group:
            return
        if isinstance(group.get(part, getlink=True), h5py.ExternalLink):
            raise ArchiveError(f"{path}: {key!r} is an external link to another file; use --trust to follow it")
        group = group[part]
    if isinstance(group, h5py.Dataset) and (group.is_virtual or group.external):
        raise ArchiveError(f"{path}: {key!r} keeps its data in other files; use --trust to read them")
