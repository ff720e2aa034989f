"""Stores in a folder: what they hold, and the changes that neither a crash nor another process can spoil."""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from krstore.errors import CorruptStoreError, KrstoreError, OutputError, UsageError
from krstore.memory.folder import Folder
from krstore.memory.manifest import Entry, Manifest, read_manifest, write_manifest
from krstore.memory.samples import MemorySamples
from krstore.memory.stored import MemoryStore
from krstore.progress import SILENT, Progress
from krstore.source import Ids, Source, SourceSpec
from krstore.store.header import SourceInfo
from krstore.store.reader import Store

__all__ = ["AnyStore", "Collection"]

CHANGED = "{} was changed by another process meanwhile; try again"

AnyStore = Store | str | Path


class Collection:
    """Labelled stores in a folder, as `krstore.memory.Memory` has them: all that is atomic."""

    def __init__(self, path: str | Path, *, device: str = "auto") -> None:
        self.path, self.device = Path(path), device
        self.folder = Folder(self.path)
        self._opened: dict[str, MemoryStore] = {}  # what is kept of them in memory outlives a change of the others
        self.reload()

    @classmethod
    def create(cls, path: str | Path, *, device: str = "auto") -> Self:
        """Make an empty one in a folder that does not exist yet, or is empty, and open it.

        Raises:
            OutputError: the folder has something in it, or cannot be made.
        """
        Folder(Path(path)).create()
        return cls(path, device=device)

    @classmethod
    def ensure(cls, path: str | Path, *, device: str = "auto") -> Self:
        """Open the one in a folder, made first where there is none.

        Raises:
            OutputError: as `create`.
        """
        folder = Folder(Path(path))
        try:
            if not folder.made:
                folder.create()
        except OutputError:
            if not folder.made:  # by another process, meanwhile
                raise
        return cls(path, device=device)

    def __len__(self) -> int:
        return sum(entry.samples for entry in self.manifest.stores)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}: {len(self.manifest.stores)} stores, {len(self)} samples)"

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
        """The bytes of its files: manifest, stores, and the networks, each once; unfinished encodes do not count."""
        networks = sum(map(self.folder.network_bytes, self.manifest.networks))
        return self.folder.manifest_bytes + sum(entry.bytes for entry in self.manifest.stores) + networks

    @functools.cached_property
    def stores(self) -> list[MemoryStore]:
        """The open stores, in the manifest's order.

        Where another process has removed one since the manifest was read, the manifest is read again.
        """
        while True:
            known = {name: store for name, store in self._opened.items() if store.unchanged}
            try:
                self._opened = {
                    entry.sha256: known.get(entry.sha256) or self.folder.open(entry, self.device)
                    for entry in self.manifest.stores
                }
                return list(self._opened.values())
            except (UsageError, CorruptStoreError):
                newer = read_manifest(self.path)
                if newer == self.manifest:
                    raise
                self._take(newer)

    def pairs(self) -> list[tuple[Entry, Store]]:
        """Return each store's entry and the open store."""
        stores = self.stores  # opening them may read the manifest again
        return list(zip(self.manifest.stores, stores, strict=True))

    def opened(self, entries: Sequence[Entry]) -> list[Store]:
        """Return the open stores of entries.

        Raises:
            KrstoreError: another process has removed one of them meanwhile.
        """
        found = {entry.sha256: store for entry, store in self.pairs()}
        if any(entry.sha256 not in found for entry in entries):
            raise KrstoreError(CHANGED.format(self.path))
        return [found[entry.sha256] for entry in entries]

    @functools.cached_property
    def samples(self) -> MemorySamples:
        """All samples that are replayed, as one source.

        Raises:
            UsageError: the memory is empty.
        """
        pairs = self.pairs()
        return MemorySamples(self.path, [store for _, store in pairs], [entry.dropped for entry, _ in pairs])

    def check_source(self, source: Source, path: Path) -> None:
        """Refuse samples that cannot be appended, before they are encoded.

        Args:
            path: of them, for messages.

        Raises:
            UsageError: they have no labels, or another shape or dtype than the memory's.
        """
        self._check(path, source.labels, source.spec, self.manifest.stores)

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

    def drop(self, classes: Sequence[int]) -> int:
        """Replay these classes no more, and return how many bytes that frees.

        Stores are immutable: one of which nothing is left goes; of others these samples are hidden, and go when the
        store is next merged, or shrunk to fewer bytes.

        Raises:
            UsageError: a class is not in the memory, or no integer.
        """
        before, unwanted = self.bytes, {_label(label) for label in classes}
        with self._changing() as (manifest, commit):
            known = {label for entry in manifest.stores for label in entry.live}
            missing = sorted(unwanted - known)
            if missing:
                raise UsageError(f"class {missing[0]} is not in {self.path}; it has {sorted(known)}")
            entries = []
            for entry in manifest.stores:
                hidden = sorted({*entry.dropped, *(unwanted & entry.classes.keys())})
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
                raise KrstoreError(CHANGED.format(self.path))
            place = manifest.stores.index(old[0])
            entries = [entry for entry in manifest.stores if entry not in old]
            before = len(entries)
            added = [self._adopt(store, entries) for store in opened]
            commit([*entries[:place], *entries[before:], *entries[place:before]])
        return added

    def verify(self, progress: Progress = SILENT) -> dict[str, int]:
        """Compare every checksum of every store, and return the bytes checked by store name.

        Raises:
            CorruptStoreError: names the first damage found.
        """
        checked = {}
        pairs = self.pairs()
        with progress.task("verify", len(pairs), "stores") as task:
            for entry, store in pairs:
                checked[entry.name] = sum(store.check().values())
                task.advance()
        return checked

    def _take(self, manifest: Manifest) -> None:
        self.manifest = manifest
        there = {entry.sha256 for entry in manifest.stores}
        self._opened = {name: store for name, store in self._opened.items() if name in there}
        for name in ("stores", "samples"):
            self.__dict__.pop(name, None)

    def _adopt(self, store: Store, entries: list[Entry]) -> Entry:
        """Take a store into `entries`; one that is there is written anew, and replays all of its classes again."""
        sha256 = self.folder.identity(store)
        known = [number for number, entry in enumerate(entries) if entry.sha256 == sha256]
        self._check(store.path, store.labels, store.source, () if known else entries)
        store.check()
        adopted = self.folder.adopt(store)
        if known:
            entries[known[0]] = adopted
        else:
            entries.append(adopted)
        return adopted

    def _check(self, path: Path, labels: Ids | None, spec: SourceSpec | SourceInfo, entries: Sequence[Entry]) -> None:
        if labels is None:
            raise UsageError(f"{path} has no labels; a memory replays samples with labels")
        if not entries:
            return
        known = self._opened.get(entries[0].sha256)
        first = known if known is not None and known.unchanged else self.folder.open(entries[0], self.device)
        own, other = ((s.shape, s.dtype, s.channel_axis) for s in (spec, first.source))
        if own != other:
            raise UsageError(
                f"{path} holds samples of {own[0]} {own[1]}; those of {self.path} have {other[0]} {other[1]}"
            )

    @contextlib.contextmanager
    def _changing(self) -> Iterator[tuple[Manifest, Callable[[list[Entry]], None]]]:
        """Hold the lock; yield the manifest as it is now, and what replaces its entries."""

        def commit(entries: list[Entry]) -> None:
            manifest = self.manifest.changed(entries)
            write_manifest(self.path, manifest)
            self._take(manifest)
            self.folder.sweep(manifest)

        with self.folder.locked():
            self.reload()
            yield self.manifest, commit


def _label(label: object) -> int:
    try:
        if not isinstance(label, bool):
            return operator.index(label)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise UsageError(f"class {label!r} is no integer label")
