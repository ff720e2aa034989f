"""The manifest of a memory: which stores it consists of. Replacing this one file is how a memory changes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from krstore.errors import CorruptStoreError, UsageError
from krstore.files import atomic_write

__all__ = ["MANIFEST", "MEMORY_VERSION", "Entry", "Manifest", "read_manifest", "write_manifest"]

MANIFEST = "manifest.json"
MEMORY_VERSION = 1
MAX_BYTES = 1 << 28

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One store of a memory.

    Attributes:
        sha256: of the store's file as it was appended; also its name here.
        bytes: of the file here, which lacks its networks.
        codec: the codec's name.
        classes: how many samples of each class it holds, by label.
        dropped: labels whose samples are replayed no more.
        networks: by member name, the SHA-256 of what is kept once for all stores that have it.
    """

    sha256: Sha256
    bytes: Count
    codec: str
    classes: dict[int, Count]
    dropped: tuple[int, ...] = ()
    networks: dict[str, Sha256] = {}

    @property
    def name(self) -> str:
        """The store's short name."""
        return self.sha256[:12]

    @property
    def live(self) -> dict[int, int]:
        """How many samples of each class are replayed."""
        return {label: count for label, count in self.classes.items() if label not in self.dropped}

    @property
    def samples(self) -> int:
        """How many samples are replayed."""
        return sum(self.live.values())


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The stores of a memory, the oldest first.

    Attributes:
        generation: how often the memory has changed.
    """

    memory_version: Annotated[int, msgspec.Meta(ge=1)] = MEMORY_VERSION
    generation: Annotated[int, msgspec.Meta(ge=0)] = 0
    stores: tuple[Entry, ...] = ()

    def changed(self, stores: list[Entry]) -> Manifest:
        """Return the next generation."""
        return Manifest(generation=self.generation + 1, stores=tuple(stores))

    @property
    def networks(self) -> set[str]:
        """The SHA-256 of everything that is kept apart from the stores."""
        return {sha256 for entry in self.stores for sha256 in entry.networks.values()}


class _Version(msgspec.Struct):
    memory_version: int


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a memory.

    Raises:
        UsageError: the folder is no memory.
        CorruptStoreError: the manifest is damaged, or needs a newer krstore.
    """
    path = folder / MANIFEST
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES)
    except FileNotFoundError:
        raise UsageError(f"{folder} is no memory: it has no {MANIFEST}; krstore memory create makes one") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    try:
        version = msgspec.json.decode(data, type=_Version).memory_version
        if version > MEMORY_VERSION:
            raise CorruptStoreError(f"{path}: version {version} of the format; this krstore reads {MEMORY_VERSION}")
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptStoreError(f"{path}: the manifest is malformed: {error}") from error
    if len({entry.sha256 for entry in manifest.stores}) != len(manifest.stores):
        raise CorruptStoreError(f"{path}: a store stands twice in the manifest")
    for entry in manifest.stores:
        if not entry.samples:
            raise CorruptStoreError(f"{path}: nothing is replayed of store {entry.name}, which such a memory lets go")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest of a memory, atomically.

    Raises:
        OutputError: it cannot be written.
    """
    data = msgspec.json.encode(manifest)
    msgspec.json.decode(data, type=Manifest)  # what nothing could open again must not take the old one's place
    with atomic_write(folder / MANIFEST) as file:
        file.write(msgspec.json.format(data, indent=1))
