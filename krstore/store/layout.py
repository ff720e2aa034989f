"""The records of a store's ZIP container, as bytes: what its writer and its reader share."""

from __future__ import annotations

import os
import re
import struct
import zlib
from dataclasses import dataclass

__all__ = [
    "CENTRAL", "DATE", "END", "END64", "HEADER", "LOCAL", "LOCATOR64", "MAX16", "MAX32", "MAX_HEADER_BYTES",
    "MAX_MEMBERS", "MAX_NAME", "Member", "central_header", "deflate", "end_records", "is_name", "local_header", "pread",
    "wide_sizes",
]  # fmt: skip

HEADER = "header.json"
MAX_HEADER_BYTES = 8 << 20
MAX_MEMBERS = 4096
MAX_NAME = 255

LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")
END64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR64 = struct.Struct("<4sIQI")
DATE = (1 << 5) | 1  # 1980-01-01, the only date a store has
MAX32, MAX16 = 0xFFFFFFFF, 0xFFFF
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")


@dataclass(frozen=True)
class Member:
    """Where a member's bytes lie in the file."""

    name: str
    offset: int
    size: int
    crc: int


def deflate(data: bytes) -> bytes:
    """Return data as a raw deflate stream."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(data) + compressor.flush()


def is_name(name: str) -> bool:
    """Whether a member may have this name."""
    return len(name) <= MAX_NAME and _NAME.fullmatch(name) is not None


def pread(descriptor: int, size: int, offset: int) -> bytes:
    """Read `size` bytes, fewer only where the file ends; one system call returns 2 GiB at most."""
    parts = []
    while size > 0 and (part := os.pread(descriptor, min(size, 1 << 30), offset)):
        parts.append(part)
        size, offset = size - len(part), offset + len(part)
    return b"".join(parts)


def local_header(name: str, crc: int, size: int) -> bytes:
    """A stored member's local header, always with 64-bit sizes, so that it can be patched in place."""
    fixed = LOCAL.pack(b"PK\3\4", 45, 0, 0, 0, DATE, crc, MAX32, MAX32, len(name), 20)
    return fixed + name.encode("ascii") + struct.pack("<2H2Q", 1, 16, size, size)


def central_header(name: str, method: int, crc: int, packed: int, unpacked: int, offset: int) -> bytes:
    """A member's entry in the directory, with 64-bit values only where they are needed."""
    wide = [value for value in (unpacked, packed, offset) if value >= MAX32]
    extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    fixed = CENTRAL.pack(
        b"PK\1\2", 45, 45, 0, method, 0, DATE, crc, min(packed, MAX32), min(unpacked, MAX32), len(name), len(extra),
        0, 0, 0, 0, min(offset, MAX32),
    )  # fmt: skip
    return fixed + name.encode("ascii") + extra


def end_records(count: int, size: int, start: int) -> bytes:
    """The records after a directory of `count` members in `size` bytes from `start`."""
    end = END.pack(b"PK\5\6", 0, 0, count, count, size, min(start, MAX32), 0)
    if start < MAX32:
        return end
    end64 = END64.pack(b"PK\6\6", END64.size - 12, 45, 45, 0, 0, count, count, size, start)
    return end64 + LOCATOR64.pack(b"PK\6\7", 0, start + size, 1) + end


def wide_sizes(extra: bytes, packed: int, unpacked: int, offset: int) -> tuple[int, int, int]:
    """Return (packed, unpacked, offset), the 64-bit values from an extra field where the 32-bit ones are saturated.

    Raises:
        ValueError: an extra field of any other kind.
    """
    if not extra:
        return packed, unpacked, offset
    saturated = [value == MAX32 for value in (unpacked, packed, offset)]
    wide = 8 * sum(saturated)
    if len(extra) != 4 + wide or struct.unpack_from("<2H", extra) != (1, wide):
        raise ValueError("an extra field that a store may not have")
    values = list(struct.unpack_from(f"<{sum(saturated)}Q", extra, 4))
    unpacked = values.pop(0) if saturated[0] else unpacked
    packed = values.pop(0) if saturated[1] else packed
    offset = values.pop(0) if saturated[2] else offset
    return packed, unpacked, offset
