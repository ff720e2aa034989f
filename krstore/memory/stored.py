"""A store inside a memory: its file without what it may share with others, which lies beside it, named by its hash."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from krstore.errors import CorruptStoreError, UsageError
from krstore.files import atomic_write
from krstore.store.container import Container
from krstore.store.container_writer import ContainerWriter
from krstore.store.layout import HEADER
from krstore.store.opened import PAYLOAD
from krstore.store.reader import Store

__all__ = ["MemoryStore", "shared_members", "write_apart", "write_rest"]

PIECE = 16 << 20
WORTH_SHARING = 512  # bytes; a smaller member would cost more as a file of its own


class MemoryStore(Store):
    """An open store whose networks are files of their own; otherwise as `krstore.store.reader.Store`.

    Args:
        path: the store's file.
        apart: the file of each member that it lacks, named by the SHA-256 of its bytes.
        device: where neural codecs decode.

    Raises:
        UsageError: there is no such file.
        CorruptStoreError: a file is damaged or missing.
    """

    def __init__(self, path: str | Path, apart: Mapping[str, Path], *, device: str = "auto") -> None:
        self._apart = dict(apart)
        try:
            super().__init__(path, device=device)
        except UsageError as error:
            raise UsageError(f"{error}; where another process has changed the memory, open it again") from None

    def __reduce__(self) -> tuple[Any, ...]:
        apart = {name: file.absolute() for name, file in self._apart.items()}
        return functools.partial(type(self), apart=apart, device=self.device), (str(self.path.absolute()),)

    def _open_container(self) -> Container:
        return _SplitContainer(self.path, self._apart)


class _SplitContainer(Container):
    """A container some of whose members are files of their own; `file_bytes` counts them."""

    def __init__(self, path: Path, apart: Mapping[str, Path]) -> None:
        super().__init__(path)
        self._apart = apart
        self._sizes: dict[str, int] = {}
        for name, file in apart.items():
            try:
                self._sizes[name] = file.stat().st_size
            except OSError as error:
                raise CorruptStoreError(f"{path}: its member {name!r} is missing: {error.strerror}: {file}") from error
        self.file_bytes += sum(self._sizes.values())

    def names(self) -> list[str]:
        return [*super().names(), *self._apart]

    def size(self, name: str) -> int:
        return self._sizes[name] if name in self._apart else super().size(name)

    def read(self, name: str) -> bytes:
        if name not in self._apart:
            return super().read(name)
        file = self._apart[name]
        try:
            data = file.read_bytes()
        except OSError as error:
            raise CorruptStoreError(f"{file} cannot be read: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != file.name:
            raise CorruptStoreError(f"{file} does not match the SHA-256 that is its name")
        return data

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        if name not in self._apart:
            return super().read_at(name, offset, size)
        return self.read(name)[offset : offset + size]


def shared_members(store: Store) -> dict[str, str]:
    """Return the SHA-256, by name, of the members that are kept apart: a store's networks, small parts excepted."""
    return {
        name: member.sha256
        for name, member in store.header.members.items()
        if name.startswith(f"{PAYLOAD}network/") and member.bytes >= WORTH_SHARING
    }


def write_apart(store: Store, name: str, target: Path) -> None:
    """Write one member to a file of its own."""
    with atomic_write(target) as file:
        for part in _parts(store.container, name):
            file.write(part)


def write_rest(store: Store, apart: Mapping[str, str], target: Path) -> None:
    """Write a store's file without the members that are kept apart."""
    container = store.container
    with atomic_write(target) as file:
        writer = ContainerWriter(file)
        for name in container.names():
            if name != HEADER and name not in apart:
                writer.write(name, _parts(container, name))
        writer.finish(container.header())


def _parts(container: Container, name: str) -> Iterator[bytes]:
    size = container.size(name)
    for offset in range(0, size, PIECE):
        yield container.read_at(name, offset, min(PIECE, size - offset))
