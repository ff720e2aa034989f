"""The container of a store: a ZIP file of plainly stored members, checked in full when it is opened.

Any ZIP tool lists and unpacks it. krstore reads it at offsets, and refuses a hostile or damaged directory before
any of it is believed, which the standard library's `zipfile` cannot do. The layout is in `docs/format.md`.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import threading
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from krstore.errors import CorruptStoreError, KrstoreError, UsageError

__all__ = ["Container", "ContainerWriter", "Member", "MemberReader"]

HEADER = "header.json"
MAX_HEADER_BYTES = 8 << 20
MAX_MEMBERS = 4096
MAX_NAME = 255

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_DATE = (1 << 5) | 1  # 1980-01-01, the only date a store has
_MAX32, _MAX16 = 0xFFFFFFFF, 0xFFFF
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")


@dataclass(frozen=True)
class Member:
    """Where a member's bytes lie in the file."""

    name: str
    offset: int
    size: int
    crc: int


class MemberReader(Protocol):
    """Reads members of a payload, of a finished store or of one being written."""

    def size(self, name: str) -> int:
        """Return the number of bytes of a member."""

    def read(self, name: str) -> bytes:
        """Return a whole member."""

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        """Return `size` bytes of a member from `offset`."""

    def names(self) -> list[str]:
        """Return the members' names."""


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
        if not _is_name(name) or name in self._members or len(self._members) >= MAX_MEMBERS - 1:
            raise KrstoreError(
                f"member {name!r} cannot be written: a store has at most {MAX_MEMBERS} members, each named once, by "
                f"at most {MAX_NAME} ASCII letters, digits, '.', '_', '-' and '/' (no part beginning with '.' or '-')"
            )
        start = self.position()
        self._file.write(_local_header(name, 0, 0))
        offset, crc, size, digest = self._file.tell(), 0, 0, hashlib.sha256()
        for part in parts:
            self._file.write(part)
            digest.update(part)
            crc, size = zlib.crc32(part, crc), size + len(part)
        self._file.seek(start)
        self._file.write(_local_header(name, crc, size))
        self._members[name] = Member(name, offset, size, crc)
        self.hashes[name] = digest.hexdigest()
        self._directory += _central_header(name, 0, crc, size, size, start)

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
        self._file.write(_LOCAL.pack(b"PK\3\4", 45, 0, 8, 0, _DATE, *sizes, len(HEADER), 0) + HEADER.encode() + packed)
        self._directory += _central_header(HEADER, 8, *sizes, start)
        self._file.write(self._directory + _end_records(len(self._members) + 1, len(self._directory), self.position()))
        self._file.flush()

    def finished_bytes(self, header: bytes) -> int:
        """Return the size that the file would have if it were finished with this header."""
        start, packed = self.position(), len(deflate(header))
        directory = len(self._directory) + len(_central_header(HEADER, 8, 0, packed, len(header), start))
        before = start + _LOCAL.size + len(HEADER) + packed
        return before + directory + len(_end_records(len(self._members) + 1, directory, before))

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
        return _pread(self._file.fileno(), size, self._members[name].offset + offset)


def deflate(data: bytes) -> bytes:
    """Return data as a raw deflate stream."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(data) + compressor.flush()


def _is_name(name: str) -> bool:
    return len(name) <= MAX_NAME and _NAME.fullmatch(name) is not None


def _pread(descriptor: int, size: int, offset: int) -> bytes:
    """Read `size` bytes, fewer only where the file ends; one system call returns 2 GiB at most."""
    parts = []
    while size > 0 and (part := os.pread(descriptor, min(size, 1 << 30), offset)):
        parts.append(part)
        size, offset = size - len(part), offset + len(part)
    return b"".join(parts)


def _local_header(name: str, crc: int, size: int) -> bytes:
    """A stored member's local header, always with 64-bit sizes, so that it can be patched in place."""
    fixed = _LOCAL.pack(b"PK\3\4", 45, 0, 0, 0, _DATE, crc, _MAX32, _MAX32, len(name), 20)
    return fixed + name.encode("ascii") + struct.pack("<2H2Q", 1, 16, size, size)


def _central_header(name: str, method: int, crc: int, packed: int, unpacked: int, offset: int) -> bytes:
    wide = [value for value in (unpacked, packed, offset) if value >= _MAX32]
    extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    fixed = _CENTRAL.pack(
        b"PK\1\2", 45, 45, 0, method, 0, _DATE, crc, min(packed, _MAX32), min(unpacked, _MAX32), len(name), len(extra),
        0, 0, 0, 0, min(offset, _MAX32),
    )  # fmt: skip
    return fixed + name.encode("ascii") + extra


def _end_records(count: int, size: int, start: int) -> bytes:
    end = _END.pack(b"PK\5\6", 0, 0, count, count, size, min(start, _MAX32), 0)
    if start < _MAX32:
        return end
    end64 = _END64.pack(b"PK\6\6", _END64.size - 12, 45, 45, 0, 0, count, count, size, start)
    return end64 + _LOCATOR64.pack(b"PK\6\7", 0, start + size, 1) + end


class Container:
    """A store file: its directory checked, its members readable at any offset, by several threads at once.

    Raises:
        UsageError: the file cannot be opened, or was replaced after it had been opened.
        CorruptStoreError: the file is no such container, is truncated, or its directory contradicts itself.
    """

    _descriptor: int | None = None
    _identity: tuple[int, ...] | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            self.file_bytes = os.fstat(self._open()).st_size
            self.members = self._directory()
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Give the file descriptor back; the next read opens the file again."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _open(self) -> int:
        """Return the file's descriptor, opening the file where it is closed; only the very same file will do."""
        with self._lock:
            if self._descriptor is not None:
                return self._descriptor
            try:
                if not self.path.is_file():
                    raise UsageError(f"{self.path} is not a file")
                descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise UsageError(f"{self.path} cannot be opened: {error.strerror}") from error
            status = os.fstat(descriptor)
            identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if self._identity not in (None, identity):
                os.close(descriptor)
                raise UsageError(f"{self.path} was replaced or changed after it had been opened; open it again")
            self._identity, self._descriptor = identity, descriptor
            return descriptor

    def names(self) -> list[str]:
        """Return the members' names."""
        return list(self.members)

    def size(self, name: str) -> int:
        """Return the number of stored bytes of a member."""
        return self._member(name).size

    def read(self, name: str) -> bytes:
        """Return a whole member, checked against the directory's CRC-32."""
        member = self._member(name)
        data = self._pread(member.offset, member.size)
        if name != HEADER and zlib.crc32(data) != member.crc:
            raise self._corrupt(f"member {name!r} does not match its checksum")
        return data

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        """Return `size` bytes of a member from `offset`; the caller checks them (blocks carry checksums)."""
        member = self._member(name)
        if offset < 0 or size < 0 or offset + size > member.size:
            raise self._corrupt(f"bytes {offset}..{offset + size} lie outside member {name!r} of {member.size}")
        return self._pread(member.offset + offset, size)

    def header(self) -> bytes:
        """Return `header.json`, inflated and checked."""
        member = self._member(HEADER)
        if member.size > MAX_HEADER_BYTES:
            raise self._corrupt(f"a header of {member.size} bytes; at most {MAX_HEADER_BYTES} are allowed")
        inflate = zlib.decompressobj(-15)
        try:
            data = inflate.decompress(self._pread(member.offset, member.size), MAX_HEADER_BYTES)
        except zlib.error as error:
            raise self._corrupt(f"the header does not inflate: {error}") from error
        if inflate.unconsumed_tail or not inflate.eof or inflate.unused_data:
            raise self._corrupt(f"the header is cut, or inflates to more than {MAX_HEADER_BYTES} bytes")
        if zlib.crc32(data) != member.crc:
            raise self._corrupt("the header does not match its checksum")
        return data

    def _member(self, name: str) -> Member:
        if name not in self.members:
            raise self._corrupt(f"member {name!r} is missing")
        return self.members[name]

    def _corrupt(self, what: str) -> CorruptStoreError:
        return CorruptStoreError(f"{self.path}: {what}")

    def _pread(self, offset: int, size: int) -> bytes:
        try:
            data = _pread(self._open(), size, offset)
        except OSError as error:
            raise self._corrupt(f"bytes {offset}..{offset + size} cannot be read: {error.strerror}") from error
        if len(data) != size:
            raise self._corrupt(f"the file ends at byte {offset + len(data)}, inside a member")
        return data

    def _directory(self) -> dict[str, Member]:
        """Parse the directory and check that header, members and directory tile the file without gap or overlap."""
        start, size, count = self._end()
        if count > MAX_MEMBERS or size > count * (_CENTRAL.size + MAX_NAME + 28):
            raise self._corrupt(f"a directory of {count} members in {size} bytes; at most {MAX_MEMBERS} are allowed")
        data, at, expected = self._pread(start, size), 0, 0
        members: dict[str, Member] = {}
        for _ in range(count):
            if at + _CENTRAL.size > size:
                raise self._corrupt("the directory is cut")
            (magic, _made, _need, flags, method, time, date, crc, packed, unpacked, name_size, extra_size, comment_size,
             disk, _internal, _external, offset) = _CENTRAL.unpack_from(data, at)  # fmt: skip
            at += _CENTRAL.size
            raw_name, extra = data[at : at + name_size], data[at + name_size : at + name_size + extra_size]
            at += name_size + extra_size
            packed, unpacked, offset = self._zip64(extra, packed, unpacked, offset)
            name = self._name(raw_name)
            plain = method == 0 and packed == unpacked and name != HEADER
            deflated = method == 8 and name == HEADER
            if magic != b"PK\1\2" or flags or comment_size or disk or time or date != _DATE or not (plain or deflated):
                raise self._corrupt(f"the directory entry of {name!r} is not one a store may have")
            if name in members:
                raise self._corrupt(f"member {name!r} stands twice in the directory")
            if offset != expected:
                raise self._corrupt(f"member {name!r} starts at byte {offset}; expected {expected}")
            begin = self._local(name, offset, method, crc, packed, unpacked)
            members[name] = Member(name, begin, packed, crc)
            expected = begin + packed
            if expected > start:
                raise self._corrupt(f"member {name!r} runs into the directory")
        if at != size or expected != start:
            raise self._corrupt("there are bytes that belong to no member")
        return members

    def _end(self) -> tuple[int, int, int]:
        """Return (start, size, entries) of the directory from the records that end the file."""
        if self.file_bytes < _END.size:
            raise self._corrupt(f"{self.file_bytes} bytes are too few for a store; is this a .krs file?")
        end_at = self.file_bytes - _END.size
        magic, disk, first_disk, here, count, size, start, comment = _END.unpack(self._pread(end_at, _END.size))
        if magic != b"PK\5\6" or comment:
            raise self._corrupt("no directory at the end: the file is truncated, or not a .krs file")
        if disk or first_disk or here != count:
            raise self._corrupt("the end record is not one a store may have")
        if _MAX32 in (size, start) or count == _MAX16:
            locator_at = end_at - _LOCATOR64.size
            if locator_at < _END64.size:
                raise self._corrupt("the 64-bit end record is missing")
            magic, disk, end64_at, disks = _LOCATOR64.unpack(self._pread(locator_at, _LOCATOR64.size))
            if magic != b"PK\6\7" or disk or disks != 1 or end64_at != locator_at - _END64.size:
                raise self._corrupt("the 64-bit end record is not where it should be")
            magic, record, _made, _need, disk, first_disk, here, count, size, start = _END64.unpack(
                self._pread(end64_at, _END64.size)
            )
            if magic != b"PK\6\6" or record != _END64.size - 12 or disk or first_disk or here != count:
                raise self._corrupt("the 64-bit end record is not one a store may have")
            end_at = end64_at
        if start + size != end_at:
            raise self._corrupt("the directory does not end where its record says")
        return start, size, count

    def _local(self, name: str, offset: int, method: int, crc: int, packed: int, unpacked: int) -> int:
        """Check a member's local header against its directory entry and return where its bytes begin."""
        (magic, _need, flags, own_method, time, date, own_crc, own_packed, own_unpacked, name_size, extra_size) = (
            _LOCAL.unpack(self._pread(offset, _LOCAL.size))
        )
        rest = self._pread(offset + _LOCAL.size, name_size + extra_size)
        own_packed, own_unpacked, _ = self._zip64(rest[name_size:], own_packed, own_unpacked, 0)
        own = (rest[:name_size].decode("ascii", "replace"), own_method, own_crc, own_packed, own_unpacked)
        if magic != b"PK\3\4" or flags or time or date != _DATE or own != (name, method, crc, packed, unpacked):
            raise self._corrupt(f"the local header of member {name!r} contradicts the directory")
        return offset + _LOCAL.size + len(rest)

    def _name(self, raw: bytes) -> str:
        name = raw.decode("ascii", "replace")
        if not _is_name(name):
            raise self._corrupt(f"member name {name[:MAX_NAME]!r} is not one a store may have")
        return name

    def _zip64(self, extra: bytes, packed: int, unpacked: int, offset: int) -> tuple[int, int, int]:
        """Take the 64-bit sizes from an extra field where the 32-bit ones are saturated; nothing else is allowed."""
        if not extra:
            return packed, unpacked, offset
        saturated = [value == _MAX32 for value in (unpacked, packed, offset)]
        wide = 8 * sum(saturated)
        if len(extra) != 4 + wide or struct.unpack_from("<2H", extra) != (1, wide):
            raise self._corrupt("an extra field that a store may not have")
        values = list(struct.unpack_from(f"<{sum(saturated)}Q", extra, 4))
        unpacked = values.pop(0) if saturated[0] else unpacked
        packed = values.pop(0) if saturated[1] else packed
        offset = values.pop(0) if saturated[2] else offset
        return packed, unpacked, offset
