"""The payload of a store that is being written: codecs write members, and what is written is read back."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np

from krstore.codec import PayloadSink
from krstore.errors import KrstoreError
from krstore.source import Ids
from krstore.store.blocks import block_index
from krstore.store.container import MemberReader
from krstore.store.container_writer import ContainerWriter
from krstore.store.header import MemberInfo
from krstore.store.opened import PAYLOAD

__all__ = ["Sink"]


class Sink(PayloadSink, MemberReader):
    """Writes a payload into a container, keeping what an exemplar codec says it keeps."""

    def __init__(self, file: BinaryIO) -> None:
        self.container = ContainerWriter(file)
        self.kept: Ids | None = None

    def write(self, name: str, data: bytes) -> None:
        self.container.write(self._checked(name), [data])

    def write_blocks(self, name: str, block_samples: int, blocks: Iterable[bytes]) -> None:
        sizes: list[int] = []
        checksums: list[int] = []

        def counted() -> Iterable[bytes]:
            for block in blocks:
                sizes.append(len(block))
                checksums.append(zlib.crc32(block))
                yield block

        self.container.write(self._checked(name), counted())
        self.container.write(self._checked(f"{name}.index"), [block_index(block_samples, sizes, checksums)])

    def keep(self, ids: Ids) -> None:
        self.kept = np.asarray(ids, np.int64)

    def members(self) -> dict[str, MemberInfo]:
        """Return what the header lists."""
        container = self.container
        return {name: MemberInfo(container.size(name), container.hashes[name]) for name in container.names()}

    def _checked(self, name: str) -> str:
        if not name.startswith(("network/", "latent/")):
            raise KrstoreError(f"payload member {name!r}: a codec's members begin with network/ or latent/")
        return PAYLOAD + name

    # what has been written is read back through these, to measure the quality of the very bytes of the file

    def names(self) -> list[str]:
        return [name.removeprefix(PAYLOAD) for name in self.container.names() if name.startswith(PAYLOAD)]

    def size(self, name: str) -> int:
        return self.container.size(PAYLOAD + name)

    def read(self, name: str) -> bytes:
        return self.container.read(PAYLOAD + name)

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        return self.container.read_at(PAYLOAD + name, offset, size)
