"""Feature archives: samples with labels in HDF5, NumPy or safetensors files, streamed and never loaded whole."""

from __future__ import annotations

from pathlib import Path

from krstore.archives.rows import open_npy, open_npz, open_safetensors
from krstore.archives.writer import ArchiveWriter, write_archive
from krstore.errors import ArchiveError
from krstore.snapshots import SnapshotSource
from krstore.source import Source

__all__ = ["SUFFIXES", "ArchiveWriter", "open_archive", "open_snapshots", "write_archive"]

SUFFIXES = (".h5", ".hdf5", ".npy", ".npz", ".safetensors", ".krs")


def open_archive(
    path: str | Path, *, features_key: str | None = None, labels_key: str | None = None, trust: bool = False
) -> Source:
    """Open an archive, or a store, as a streamed source.

    Args:
        path: a file ending in one of `SUFFIXES`.
        features_key: name of the array of samples; default ``features``.
        labels_key: name of the array of labels; default ``labels`` where present. For a `.npy` file, the
            path of a second `.npy` file.
        trust: follow HDF5 external links, external storage and virtual datasets, which read *other* files.

    Raises:
        ArchiveError: the file is missing, damaged or of an unknown kind, a key is missing, there are no samples,
            labels do not fit the features, or the element type is not supported.
    """
    path = Path(path)
    if not path.is_file():
        raise ArchiveError(f"{path} is not a file")
    match path.suffix.lower():
        case ".h5" | ".hdf5":
            from krstore.archives.hdf5 import open_hdf5

            return open_hdf5(path, features_key, labels_key, trust=trust)
        case ".npy":
            return open_npy(path, features_key, labels_key)
        case ".npz":
            return open_npz(path, features_key, labels_key)
        case ".safetensors":
            return open_safetensors(path, features_key, labels_key)
        case ".krs":
            from krstore.store.reader import Store, StoreSource

            return StoreSource(Store(path))
        case other:
            raise ArchiveError(f"{path}: unknown kind of archive {other!r}; expected one of {', '.join(SUFFIXES)}")


def open_snapshots(path: str | Path, *, trust: bool = False) -> SnapshotSource:
    """Open a snapshot archive (.h5, .hdf5), or a snapshot store (.krs), as a source.

    Args:
        path: the file.
        trust: follow HDF5 external links, external storage and virtual datasets, which read *other* files.

    Raises:
        ArchiveError: the file is missing, damaged or holds no network's states, a step is missing, or an array is of
            an element type that is not supported.
    """
    path = Path(path)
    if not path.is_file():
        raise ArchiveError(f"{path} is not a file")
    if path.suffix.lower() == ".krs":
        from krstore.store.snapshots import SnapshotStore

        return SnapshotStore(path)
    if path.suffix.lower() not in (".h5", ".hdf5"):
        raise ArchiveError(f"{path}: a snapshot archive is an HDF5 file (.h5, .hdf5) with a group step0, step1, ...")
    from krstore.archives.snapshots import open_hdf5_snapshots

    return open_hdf5_snapshots(path, trust=trust)
