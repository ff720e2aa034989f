"""A memory: what it holds, and the changes that neither a crash nor another process can spoil.

    DIR/manifest.json       which stores there are; replaced by a rename, and only under the lock
    DIR/stores/HASH.krs     the stores, without their networks
    DIR/networks/HASH       the networks, each once, however many stores share it
    DIR/work/               encodes under way
    DIR/lock                held while the manifest is replaced

A change writes its new files first, then the manifest, and only then removes files that no store needs any more. What
a killed process leaves behind of these is removed by the next change; what it leaves in ``work`` is taken up when the
same is asked for again.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from krstore.errors import CorruptStoreError, KrstoreError, OutputError, UsageError
from krstore.memory.manifest import MANIFEST, Entry, Manifest, read_manifest, write_manifest
from krstore.memory.samples import MemorySamples
from krstore.memory.stored import MemoryStore, shared_members, write_apart, write_rest
from krstore.progress import SILENT, Progress
from krstore.source import class_indices
from krstore.store.reader import Store

if TYPE_CHECKING:
    from krstore.replay import Replay

__all__ = ["Memory"]

STORES, NETWORKS, WORK, LOCK = "stores", "networks", "work", "lock"
PIECE = 16 << 20

AnyStore = Store | str | Path


class Memory:
    """An open memory, as it was when it was opened, last reloaded, or last changed through this object.

    Args:
        path: the folder; `Memory.create` makes one.
        device: where its stores decode.

    Attributes:
        manifest: its stores, the oldest first.

    Raises:
        UsageError: the folder is no memory.
        CorruptStoreError: its manifest is damaged. Stores are opened when they are first needed.
    """

    def __init__(self, path: str | Path, *, device: str = "auto") -> None:
        self.path, self.device = Path(path), device
        self.reload()

    @classmethod
    def create(cls, path: str | Path, *, device: str = "auto") -> Memory:
        """Make an empty memory in a folder that does not exist yet, or is empty, and open it.

        Raises:
            OutputError: the folder has something in it, or cannot be made.
        """
        folder = Path(path)
        try:
            folder.mkdir(exist_ok=True)
            begun = {folder / STORES, folder / NETWORKS}  # by a process that was killed at it
            found = {entry for entry in folder.iterdir() if entry.name != LOCK and not entry.name.endswith(".partial")}
            if found - begun or any(any(entry.iterdir()) for entry in found):
                raise OutputError(f"{folder} is not empty; a memory begins in a new folder")
            for entry in begun:
                entry.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"a memory cannot be made in {folder}: {error.strerror}") from error
        write_manifest(folder, Manifest())
        return cls(folder, device=device)

    def __len__(self) -> int:
        return sum(entry.samples for entry in self.manifest.stores)

    def __repr__(self) -> str:
        return f"Memory({str(self.path)!r}: {len(self.manifest.stores)} stores, {len(self)} samples)"

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), device=self.device), (str(self.path.absolute()),)

    def reload(self) -> None:
        """Look again at what the memory holds; other processes may have changed it."""
        self._take(read_manifest(self.path))

    @property
    def classes(self) -> dict[int, int]:
        """How many samples of each class are replayed, by label, ascending."""
        counts: dict[int, int] = {}
        for entry in self.manifest.stores:
            for label, count in entry.live.items():
                counts[label] = counts.get(label, 0) + count
        return dict(sorted(counts.items()))

    @property
    def bytes(self) -> int:
        """The bytes of all its files: manifest, stores, and the networks, each once."""
        networks = sum(map(self.network_bytes, self.manifest.networks))
        return self.manifest_bytes + sum(entry.bytes for entry in self.manifest.stores) + networks

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

    @functools.cached_property
    def stores(self) -> list[Store]:
        """The open stores, in the manifest's order.

        Where another process has removed one since the manifest was read, the manifest is read again.
        """
        while True:
            try:
                return [self._open(entry) for entry in self.manifest.stores]
            except (UsageError, CorruptStoreError):
                newer = read_manifest(self.path)
                if newer == self.manifest:
                    raise
                self._take(newer)

    @functools.cached_property
    def samples(self) -> MemorySamples:
        """All samples that are replayed, as one source.

        Raises:
            UsageError: the memory is empty.
        """
        return MemorySamples(self.path, self.stores, [entry.dropped for entry in self.manifest.stores])

    def replay(self, batch_size: int = 128, **options: Any) -> Replay:
        """Return batches of (features, labels) of all its samples; see `krstore.replay.Replay`."""
        from krstore.replay import Replay

        return Replay(self.samples, batch_size=batch_size, **options)

    def append(self, *stores: AnyStore, progress: Progress = SILENT) -> list[Entry]:
        """Take copies of stores into the memory, all or none; a store that is in it already is not taken twice.

        Every checksum is compared first. What was dropped of a store that is appended again is replayed again. Stores
        may be another memory's.

        Returns:
            the entries of these stores.

        Raises:
            UsageError: a store has no labels, or its samples have another shape or dtype than the memory's.
            CorruptStoreError: a store is damaged.
            OutputError: the memory cannot be written.
        """
        opened = [store if isinstance(store, Store) else Store(store) for store in stores]
        with progress.task("append", len(opened), "stores") as task, self._changing() as (manifest, commit):
            entries, added = list(manifest.stores), []
            for store in opened:
                added.append(self._adopt(store, entries))
                task.advance()
            commit(entries)
        return added

    def extend(self, archives: Sequence[str | Path], codec: str = "transform", **options: Any) -> list[Entry]:
        """Encode archives into stores, several processes sharing the work; see `krstore.memory.parallel.extend`."""
        from krstore.memory.parallel import extend

        return extend(self, archives, codec, **options)

    def drop(self, classes: Sequence[int]) -> int:
        """Replay these classes no more, and return how many bytes that frees.

        Stores are immutable: one of which nothing is left goes; of others these samples are hidden, and go when the
        store is next merged or shrunk.

        Raises:
            UsageError: a class is not in the memory.
        """
        before = self.bytes
        with self._changing() as (manifest, commit):
            known = {label for entry in manifest.stores for label in entry.live}
            missing = sorted(set(classes) - known)
            if missing:
                raise UsageError(f"class {missing[0]} is not in {self.path}; it has {sorted(known)}")
            entries = []
            for entry in manifest.stores:
                hidden = sorted({*entry.dropped, *(set(classes) & entry.classes.keys())})
                if set(hidden) != entry.classes.keys():
                    entries.append(msgspec.structs.replace(entry, dropped=tuple(hidden)))
            commit(entries)
        return before - self.bytes

    def replace(self, old: Sequence[Entry], new: Sequence[AnyStore]) -> list[Entry]:
        """Put stores in the place of others, and return their entries; what merging and shrinking end with.

        Raises:
            KrstoreError: another process has changed one of the old ones meanwhile; nothing is changed.
        """
        opened = [store if isinstance(store, Store) else Store(store) for store in new]
        with self._changing() as (manifest, commit):
            if any(entry not in manifest.stores for entry in old):
                raise KrstoreError(f"{self.path} was changed by another process meanwhile; try again")
            place = manifest.stores.index(old[0])
            entries = [entry for entry in manifest.stores if entry not in old]
            before = len(entries)
            added = [self._adopt(store, entries) for store in opened]
            commit([*entries[:place], *entries[before:], *entries[place:before]])
        return added

    def merge(self, codec: str | None = None, **options: Any) -> Entry:
        """Encode all samples into one store, which takes the others' place; see `krstore.memory.reshape.merge`."""
        from krstore.memory.reshape import merge

        return merge(self, codec, **options)

    def shrink(self, budget: int, codec: str | None = None, **options: Any) -> None:
        """Encode every store into fewer bytes, `budget` in all; see `krstore.memory.reshape.shrink`."""
        from krstore.memory.reshape import shrink

        shrink(self, budget, codec, **options)

    def verify(self, progress: Progress = SILENT) -> dict[str, int]:
        """Compare every checksum of every store, and return the bytes checked by store name.

        Raises:
            CorruptStoreError: names the first damage found.
        """
        checked = {}
        with progress.task("verify", len(self.manifest.stores), "stores") as task:
            for entry, store in zip(self.manifest.stores, self.stores, strict=True):
                checked[entry.name] = sum(store.check().values())
                task.advance()
        return checked

    @contextlib.contextmanager
    def working(self, name: str, *, leave: bool = False) -> Iterator[Path]:
        """Yield where an encode under way may write; when it ends well, nothing of it stays unless `leave` says so."""
        folder = self.path / WORK / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder} cannot be made: {error.strerror}") from error
        yield folder
        if leave:
            return
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # others may be at work
            folder.parent.rmdir()

    def _take(self, manifest: Manifest) -> None:
        self.manifest = manifest
        for name in ("stores", "samples"):
            self.__dict__.pop(name, None)

    def _open(self, entry: Entry) -> Store:
        apart = {name: self.path / NETWORKS / sha256 for name, sha256 in entry.networks.items()}
        _size(self._file(entry))
        return MemoryStore(self._file(entry), apart, device=self.device)

    def _file(self, entry: Entry) -> Path:
        return self.path / STORES / f"{entry.sha256}.krs"

    def _adopt(self, store: Store, entries: list[Entry]) -> Entry:
        """Write a store's files, and add its entry to `entries`; one that is there replays all of its classes again."""
        sha256 = store.path.stem if isinstance(store, MemoryStore) else _hash(store.path)
        for number, entry in enumerate(entries):
            if entry.sha256 == sha256:
                entries[number] = msgspec.structs.replace(entry, dropped=())
                return entries[number]
        self._check(store, entries)
        apart = shared_members(store)
        entry = Entry(
            sha256=sha256, bytes=0, codec=store.codec, networks=apart,
            classes={label: len(ids) for label, ids in class_indices(store.labels).items()},
        )  # fmt: skip
        for name, network in apart.items():
            target = self.path / NETWORKS / network
            if not target.exists():
                write_apart(store, name, target)
        write_rest(store, apart, self._file(entry))
        entry = msgspec.structs.replace(entry, bytes=self._file(entry).stat().st_size)
        entries.append(entry)
        return entry

    def _check(self, store: Store, entries: list[Entry]) -> None:
        if store.labels is None:
            raise UsageError(f"{store.path} has no labels; a memory replays samples with labels")
        if entries:
            with self._open(entries[0]) as first:
                own, other = ((s.source.shape, s.source.dtype, s.source.channel_axis) for s in (store, first))
            if own != other:
                raise UsageError(
                    f"{store.path} holds samples of {own[0]} {own[1]}; those of {self.path} have {other[0]} {other[1]}"
                )
        store.check()

    @contextlib.contextmanager
    def _changing(self) -> Iterator[tuple[Manifest, Callable[[list[Entry]], None]]]:
        """Hold the lock; yield the manifest as it is now, and what replaces its entries."""

        def commit(entries: list[Entry]) -> None:
            manifest = self.manifest.changed(entries)
            write_manifest(self.path, manifest)
            self._take(manifest)
            self._sweep()

        with _locked(self.path / LOCK):
            self.reload()
            yield self.manifest, commit

    def _sweep(self) -> None:
        """Remove the files that no store of the manifest needs."""
        needed = {
            STORES: {self._file(entry).name for entry in self.manifest.stores},
            NETWORKS: self.manifest.networks,
        }
        for folder, names in needed.items():
            for file in (self.path / folder).iterdir():
                if file.name not in names:
                    with contextlib.suppress(OSError):
                        file.unlink()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock against other processes; the system frees it when this one ends, however it ends."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise OutputError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise CorruptStoreError(f"{path} is missing: {error.strerror}") from error


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
