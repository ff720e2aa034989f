"""Writing the container of a store."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable
from typing import BinaryIO

from krstore.errors import KrstoreError
from krstore.store.layout import (
    DATE,
    HEADER,
    LOCAL,
    MAX_HEADER_BYTES,
    MAX_MEMBERS,
    MAX_NAME,
    Member,
    central_header,
    deflate,
    end_records,
    is_name,
    local_header,
    pread,
)

__all__ = ["ContainerWriter"]


class ContainerWriter:
    """Writes members one after another into an open file; what is written can be read back at once.

    A writer may be abandoned at any point and another begun on the same file, which `zipfile.ZipFile` does not
    allow: it writes its directory even when it is garbage-collected.
    """

    def __init__(self, file: BinaryIO) -> None:
        file.seek(0)
        file.truncate()
        self._file = file
        self._directory = b""
        self._members: dict[str, Member] = {}
        self.hashes: dict[str, str] = {}

    def write(self, name: str, parts: Iterable[bytes]) -> None:
        """Write a member from its parts, in order.

        Raises:
            KrstoreError: a name that is malformed or already there, or too many members.
        """
        if not is_name(name) or name in self._members or len(self._members) >= MAX_MEMBERS - 1:
            raise KrstoreError(
                f"member {name!r} cannot be written: a store has at most {MAX_MEMBERS} members, each named once, by "
                f"at most {MAX_NAME} ASCII letters, digits, '.', '_', '-' and '/' (no part beginning with '.' or '-')"
            )
        start = self.position()
        self._file.write(local_header(name, 0, 0))
        offset, crc, size, digest = self._file.tell(), 0, 0, hashlib.sha256()
        for part in parts:
            self._file.write(part)
            digest.update(part)
            crc, size = zlib.crc32(part, crc), size + len(part)
        self._file.seek(start)
        self._file.write(local_header(name, crc, size))
        self._members[name] = Member(name, offset, size, crc)
        self.hashes[name] = digest.hexdigest()
        self._directory += central_header(name, 0, crc, size, size, start)

    def finish(self, header: bytes) -> None:
        """Write the header and the directory: from here on the file is a store.

        Raises:
            KrstoreError: the header is larger than readers accept.
        """
        if len(header) > MAX_HEADER_BYTES:
            raise KrstoreError(
                f"the header would have {len(header)} bytes; at most {MAX_HEADER_BYTES} are allowed: "
                "remove large attributes from the archive"
            )
        start, packed, crc = self.position(), deflate(header), zlib.crc32(header)
        sizes = (crc, len(packed), len(header))
        self._file.write(LOCAL.pack(b"PK\3\4", 45, 0, 8, 0, DATE, *sizes, len(HEADER), 0) + HEADER.encode() + packed)
        self._directory += central_header(HEADER, 8, *sizes, start)
        self._file.write(self._directory + end_records(len(self._members) + 1, len(self._directory), self.position()))
        self._file.flush()

    def finished_bytes(self, header: bytes) -> int:
        """Return the size that the file would have if it were finished with this header."""
        start, packed = self.position(), len(deflate(header))
        directory = len(self._directory) + len(central_header(HEADER, 8, 0, packed, len(header), start))
        before = start + LOCAL.size + len(HEADER) + packed
        return before + directory + len(end_records(len(self._members) + 1, directory, before))

    def position(self) -> int:
        """Go to the end of the file and return how many bytes it has so far."""
        return self._file.seek(0, os.SEEK_END)

    def names(self) -> list[str]:
        """Return the names of the members written so far."""
        return list(self._members)

    def size(self, name: str) -> int:
        """Return the number of bytes of a member."""
        return self._members[name].size

    def read(self, name: str) -> bytes:
        """Return a member written before."""
        return self.read_at(name, 0, self._members[name].size)

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset` of a member written before."""
        self._file.flush()
        return pread(self._file.fileno(), size, self._members[name].offset + offset)
