"""Opening a store of whatever kind."""

from __future__ import annotations

from pathlib import Path

from krstore.errors import WrongKindError
from krstore.store.reader import Store
from krstore.store.snapshots import SnapshotStore

__all__ = ["open_store"]


def open_store(path: str | Path, *, device: str = "auto") -> Store | SnapshotStore:
    """Open a store of samples or of a network's states.

    Raises:
        UsageError: there is no such file, or it cannot be opened.
        CorruptStoreError: the file is damaged, truncated, contradicts itself, or needs a newer krstore.
    """
    try:
        return Store(path, device=device)
    except WrongKindError:
        return SnapshotStore(path, device=device)
