"""A payload in memory: what a codec packs into, and what it opens again."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np

from krstore.source import Ids
from krstore.store.blocks import block_index

__all__ = ["MemoryPayload"]


class MemoryPayload:
    """Both the sink of `Codec.pack` and the reader of `Codec.open`."""

    def __init__(self) -> None:
        self.members: dict[str, bytes] = {}
        self.kept: Ids | None = None

    def write(self, name: str, data: bytes) -> None:
        self.members[name] = data

    def write_blocks(self, name: str, block_samples: int, blocks: Iterable[bytes]) -> None:
        parts = list(blocks)
        self.members[name] = b"".join(parts)
        self.members[f"{name}.index"] = block_index(block_samples, [*map(len, parts)], [*map(zlib.crc32, parts)])

    def keep(self, ids: Ids) -> None:
        self.kept = np.asarray(ids, np.int64)

    def names(self) -> list[str]:
        return list(self.members)

    def size(self, name: str) -> int:
        return len(self.members[name])

    def read(self, name: str) -> bytes:
        return self.members[name]

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        return self.members[name][offset : offset + size]
