"""Comparing the checksums of a store's members."""

from __future__ import annotations

import hashlib
from pathlib import Path

from krstore.errors import CorruptStoreError
from krstore.store.blocks import check_blocks
from krstore.store.container import Container
from krstore.store.header import CommonHeader, Header

__all__ = ["check_members"]

PIECE = 16 << 20


def check_members(path: Path, container: Container, header: CommonHeader) -> dict[str, int]:
    """Check the SHA-256 of every member; where a block sequence is damaged, name the block.

    Raises:
        CorruptStoreError: the first damage found.
    """
    checked = {}
    for name, member in header.members.items():
        digest = hashlib.sha256()
        for offset in range(0, member.bytes, PIECE):
            digest.update(container.read_at(name, offset, min(PIECE, member.bytes - offset)))
        if digest.hexdigest() != member.sha256:
            if f"{name}.index" in header.members and isinstance(header, Header):
                check_blocks(container, name, header.kept)
            raise CorruptStoreError(f"{path}: member {name!r} does not match its SHA-256")
        checked[name] = member.bytes
    return checked
