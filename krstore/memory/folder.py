"""Where a memory lies: its files, the lock on them, and what may be removed.

    DIR/manifest.json       which stores there are; replaced by a rename, and only under the lock
    DIR/stores/HASH.krs     the stores, without their networks
    DIR/networks/HASH       the networks, each once, however many stores share it
    DIR/unfinished          encodes under way
    DIR/lock                held while the manifest is replaced

A change writes its new files first, then the manifest, and only then removes files that no store needs any more. What
a killed process leaves behind of these is removed by the next change; what is unfinished is taken up when the same is
asked for again.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from krstore.errors import CorruptStoreError, OutputError, TargetUnreachableError
from krstore.files import locked, sole_writer
from krstore.memory.manifest import MANIFEST, Entry, Manifest, write_manifest
from krstore.memory.stored import MemoryStore, shared_members, write_apart, write_rest
from krstore.source import class_indices
from krstore.store.reader import Store

__all__ = ["Folder"]

STORES, NETWORKS, UNFINISHED, LOCK = "stores", "networks", "unfinished", "lock"


class Folder:
    """The folder of a memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self) -> None:
        """Make it, for an empty memory.

        Raises:
            OutputError: it has something in it, or cannot be made.
        """
        try:
            self.path.mkdir(exist_ok=True)
            self._check_empty()
            with self.locked():
                self._check_empty()  # another process may have made it meanwhile
                self._make_folders()
                write_manifest(self.path, Manifest())
        except OSError as error:
            raise OutputError(f"a memory cannot be made in {self.path}: {error.strerror}") from error

    @property
    def made(self) -> bool:
        """Whether there is a memory, not one that a process was killed at making."""
        return (self.path / MANIFEST).exists()

    @property
    def manifest_bytes(self) -> int:
        """The bytes of the manifest."""
        return _size(self.path / MANIFEST)

    def network_bytes(self, sha256: str) -> int:
        """Return the bytes of what is kept apart under this hash.

        Raises:
            CorruptStoreError: it is missing.
        """
        return _size(self.path / NETWORKS / sha256)

    @property
    def unfinished_bytes(self) -> int:
        """The bytes of encodes that were interrupted, or are under way."""
        total = 0
        for file in (self.path / UNFINISHED).rglob("*"):
            with contextlib.suppress(OSError):  # others may be at work
                status = file.stat()
                total += status.st_size if stat.S_ISREG(status.st_mode) else 0
        return total

    def open(self, entry: Entry, device: str) -> MemoryStore:
        """Open a store.

        Raises:
            CorruptStoreError: a file of it is missing, damaged, or not the one that the manifest is of.
        """
        size = _size(self._file(entry))
        apart = {name: self.path / NETWORKS / sha256 for name, sha256 in entry.networks.items()}
        store = MemoryStore(self._file(entry), apart, device=device)
        found = {"bytes": size, "codec": store.codec, "networks": shared_members(store), "classes": _classes(store)}
        for name, value in found.items():
            if value != getattr(entry, name):
                raise CorruptStoreError(f"{store.path}: its {name} are {value}; {MANIFEST} has {getattr(entry, name)}")
        return store

    def adopt(self, store: Store) -> Entry:
        """Write a store's files, and return what the manifest is to say of it."""
        self._make_folders()
        apart = shared_members(store)
        entry = Entry(sha256=self.identity(store), bytes=0, codec=store.codec, networks=apart, classes=_classes(store))
        for name, network in apart.items():
            target = self.path / NETWORKS / network
            if not _intact(target):
                write_apart(store, name, target)
        write_rest(store, apart, self._file(entry))
        return msgspec.structs.replace(entry, bytes=_size(self._file(entry)))

    @staticmethod
    def identity(store: Store) -> str:
        """Return the SHA-256 of a store's file, whole; a memory's own are named by it."""
        if isinstance(store, MemoryStore):
            return store.path.stem
        with store.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def sweep(self, manifest: Manifest) -> None:
        """Remove the files that no store of the manifest needs."""
        needed = {STORES: {self._file(entry).name for entry in manifest.stores}, NETWORKS: manifest.networks}
        for folder, names in needed.items():
            for file in (self.path / folder).glob("*"):
                if file.name not in names:
                    with contextlib.suppress(OSError):
                        file.unlink()

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the lock against other processes while the block lasts.

        Raises:
            OutputError: its file cannot be opened or locked.
        """
        return locked(self.path / LOCK)

    @contextlib.contextmanager
    def working(self, name: str, *, rank: int | None = None) -> Iterator[Path]:
        """Yield where an encode under way may write; nothing of it stays where it ends well, or cannot be done at all.

        Args:
            name: of the work; the same for the same work.
            rank: of this process among those that share the work, the first of which cleans up; `None`: it is alone.

        Raises:
            OutputError: the folder cannot be made, or another process is at the same work alone.
        """
        folder = self.path / UNFINISHED / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder} cannot be made: {error.strerror}") from error
        with sole_writer(folder) if rank is None else contextlib.nullcontext():
            try:
                yield folder
            except TargetUnreachableError:  # others, as a full disk, may be worth going on after
                if rank is None:
                    shutil.rmtree(folder, ignore_errors=True)
                raise
            if rank:
                return
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # others may be at work
            folder.parent.rmdir()

    def _make_folders(self) -> None:
        """Make what stores and networks lie in; copies of a memory may lack an empty one."""
        for name in (STORES, NETWORKS):
            (self.path / name).mkdir(exist_ok=True)

    def _check_empty(self) -> None:
        begun = {self.path / STORES, self.path / NETWORKS}  # by a process that was killed at it
        entries = [entry for entry in self.path.iterdir() if entry.name != LOCK]
        found = {entry for entry in entries if not entry.name.endswith(".partial")}
        if found - begun or any(any(entry.iterdir()) for entry in found):
            raise OutputError(f"{self.path} is not empty; a memory begins in a new folder")

    def _file(self, entry: Entry) -> Path:
        return self.path / STORES / f"{entry.sha256}.krs"


def _classes(store: Store) -> dict[int, int]:
    """Return how many samples of each class a store has, by label."""
    return {label: len(ids) for label, ids in class_indices(store.labels).items()}


def _intact(network: Path) -> bool:
    """Whether there is a network of this name, with the hash that the name is."""
    try:
        with network.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == network.name
    except FileNotFoundError:
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise CorruptStoreError(f"{path} is missing: {error.strerror}") from error
