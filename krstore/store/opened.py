"""An open store file of any kind: its header checked, its bytes accounted, its codec found."""

from __future__ import annotations

import contextlib
import functools
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, Self

import msgspec
import zstandard

from krstore.errors import CorruptStoreError, KrstoreError, UsageError, WrongKindError
from krstore.store.container import Container
from krstore.store.header import HeaderT, decode_header
from krstore.store.layout import HEADER
from krstore.store.members import check_members

__all__ = ["COLUMNS", "PAYLOAD", "PayloadView", "Sizes", "StoreFile"]

PAYLOAD = "payload/"
COLUMNS = ("labels", "task", "ids")


class Sizes(msgspec.Struct, frozen=True):
    """Where the bytes of a store went.

    `file` is exactly `network` (what all samples, or all states, share) + `latent` (what each sample, group or state
    has) + `labels` (labels, tasks and source IDs) + `overhead` (header, directory, block indices, checksums).
    """

    source: int
    file: int
    network: int
    latent: int
    labels: int
    overhead: int


class PayloadView:
    """The payload's members by the names the codec gave them."""

    def __init__(self, container: Container) -> None:
        self._container = container

    def names(self) -> list[str]:
        """Return the payload members' names."""
        return [name.removeprefix(PAYLOAD) for name in self._container.names() if name.startswith(PAYLOAD)]

    def size(self, name: str) -> int:
        """Return the number of bytes of a member."""
        return self._container.size(PAYLOAD + name)

    def read(self, name: str) -> bytes:
        """Return a whole member."""
        return self._container.read(PAYLOAD + name)

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        """Return `size` bytes of a member from `offset`."""
        return self._container.read_at(PAYLOAD + name, offset, size)


class StoreFile(ABC, Generic[HeaderT]):
    """An open store.

    Opening reads and checks the directory and the header only. Everything else is loaded when it is first needed, and
    the file is held open only from the first of these reads on. A store pickles as its path, so it travels to
    `DataLoader` workers; several threads may read it at once.

    Args:
        path: a `.krs` file.
        device: where neural codecs decode: ``"auto"``, ``"cpu"``, ``"cuda"``...

    Raises:
        UsageError: there is no such file, or it cannot be opened.
        WrongKindError: it holds something else than this class reads.
        CorruptStoreError: the file is damaged, truncated, contradicts itself, or needs a newer krstore.
    """

    _header_type: type[HeaderT]

    def __init__(self, path: str | Path, *, device: str = "auto") -> None:
        self.path = Path(path)
        self.device = device
        self._container = self._open_container()
        try:
            with self._reading():
                self.header = self._checked_header()
        finally:
            self._container.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), device=self.device), (str(self.path.absolute()),)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_container"):
            self._container.close()

    def close(self) -> None:
        """Give the file descriptor back; a later read opens the file again."""
        self._container.close()

    @property
    def unchanged(self) -> bool:
        """Whether the file is there, and still the one that was opened."""
        return self._container.unchanged

    @property
    def container(self) -> Container:
        """The file's members, as they are."""
        return self._container

    @property
    def codec(self) -> str:
        """The codec's name."""
        return self.header.codec

    @property
    def config(self) -> dict[str, Any]:
        """The codec's options."""
        return self.header.config

    @property
    def ratio(self) -> float:
        """Bytes of the source over bytes of this file."""
        return self._source_bytes / self._container.file_bytes

    @functools.cached_property
    def bytes(self) -> Sizes:
        """Where the bytes went."""
        split = {"network": 0, "latent": 0, "labels": 0}
        for name, member in self.header.members.items():
            if name in COLUMNS:
                split["labels"] += member.bytes
            elif not self._is_index(name):
                split[name.split("/")[1]] += member.bytes
        file = self._container.file_bytes
        return Sizes(source=self._source_bytes, file=file, **split, overhead=file - sum(split.values()))

    def check(self) -> dict[str, int]:
        """Read everything and check every checksum; return the number of bytes checked by member.

        Raises:
            CorruptStoreError: names the first damaged member, or block with its samples.
        """
        return check_members(self.path, self._container, self.header)

    def _open_container(self) -> Container:
        return Container(self.path)

    @property
    @abstractmethod
    def _source_bytes(self) -> int:
        """Bytes of what was encoded."""

    @abstractmethod
    def _check_columns(self, header: HeaderT, columns: list[str]) -> None:
        """Refuse a header that contradicts the columns of the file."""

    def _check_installed(self) -> None:
        from krstore.registry import codec_names

        if self.codec not in codec_names():
            raise UsageError(
                f"{self.path} was written by codec {self.codec!r}, which is not installed; "
                f"known: {', '.join(codec_names())}"
            )

    def _is_index(self, name: str) -> bool:
        return name.endswith(".index") and name.removesuffix(".index") in self.header.members

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Name the file in every error, and turn what a codec trips over in a damaged payload into an error."""
        try:
            yield
        except CorruptStoreError as error:
            raise CorruptStoreError(f"{self.path}: {str(error).removeprefix(f'{self.path}: ')}") from error
        except (ValueError, LookupError, TypeError, ArithmeticError, struct.error, zstandard.ZstdError) as error:
            raise CorruptStoreError(f"{self.path}: the payload does not fit its codec: {error}") from error
        except MemoryError as error:
            raise KrstoreError(f"{self.path}: not enough memory ({error}); read fewer samples at a time") from error

    def _checked_header(self) -> HeaderT:
        try:
            header = decode_header(self._container.header(), self._header_type)
        except WrongKindError as error:
            raise WrongKindError(f"{self.path}: {error}") from None
        present = {name: self._container.size(name) for name in self._container.names() if name != HEADER}
        listed = {name: member.bytes for name, member in header.members.items()}
        if present != listed:
            odd = sorted({*present.items()} ^ {*listed.items()})[0][0]
            said = f"member {odd!r} is missing, unknown, or not of the listed size"
            memory = self.path.absolute().parent.parent
            if (memory / "manifest.json").exists():
                said += (
                    f"; if it is a store of the memory {memory}, its networks lie there: krstore memory info {memory}"
                )
            raise CorruptStoreError(said)
        allowed = (f"{PAYLOAD}network/", f"{PAYLOAD}latent/")
        strangers = [name for name in listed if name not in COLUMNS and not name.startswith(allowed)]
        if strangers:
            raise CorruptStoreError(f"member {strangers[0]!r} does not belong in a store")
        self._check_columns(header, [name for name in COLUMNS if name in listed])
        return header
