"""The container of a store: a ZIP file of plainly stored members, checked in full when it is opened.

Any ZIP tool lists and unpacks it. krstore reads it at offsets, and refuses a hostile or damaged directory before
any of it is believed, which the standard library's `zipfile` cannot do. The format is in `docs/format.md`.
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import weakref
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Protocol

from krstore.errors import CorruptStoreError, UsageError
from krstore.store import layout
from krstore.store.layout import HEADER, Member

__all__ = ["Container", "MemberReader"]


class _Room:
    """How many more files containers may hold open: of 256 in all, or of a quarter of what the process may."""

    def __init__(self) -> None:
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._left = 256 if allowed == resource.RLIM_INFINITY else min(256, allowed // 4)
        self.renew()

    def renew(self) -> None:
        """Begin with a lock that nobody holds, as a forked process has to."""
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Return whether one more may be held, and count it."""
        with self._lock:
            if self._left <= 0:
                return False
            self._left -= 1
            return True

    def give_back(self) -> None:
        with self._lock:
            self._left += 1


class _Opened:
    """A descriptor that is held open; whoever is last closes it, of those who read and who gave it up.

    Attributes:
        readers: how many are reading.
        given_up: whether nobody else is to read.
        counted: whether it is one of those that there is room for.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.readers = descriptor, 1
        self.given_up = self.counted = False


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


class Container:
    """A store file: its directory checked, its members readable at any offset, by several threads at once.

    The file is held open from one read to the next, where not too many are by now; then each read opens it anew, and
    fails if it was removed meanwhile.

    Raises:
        UsageError: the file cannot be opened, or was replaced after it had been opened.
        CorruptStoreError: the file is no such container, is truncated, or its directory contradicts itself.
    """

    _room: ClassVar[_Room] = _Room()
    _open: _Opened | None = None
    _identity: tuple[int, ...] | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._renew()
        _ALL.add(self)
        try:
            with self._reading() as descriptor:
                self.file_bytes = os.fstat(descriptor).st_size
            self.members = self._directory()
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
        self.close()

    def close(self, close: Callable[[int], None] = os.close) -> None:  # bound: the module may be gone when Python ends
        """Give the file descriptor back; the next read opens the file again."""
        with self._lock:
            held, self._open = self._open, None
            if held is not None:
                held.given_up = True
            last = held is not None and not held.readers
        if held is not None and last:
            close(held.descriptor)
            self._room.give_back()

    @property
    def unchanged(self) -> bool:
        """Whether the file is there, and still the one that was opened."""
        try:
            return _identity(self.path.stat()) == self._identity
        except OSError:
            return False

    @contextlib.contextmanager
    def _reading(self) -> Iterator[int]:
        """Yield the file's descriptor, opening the file where it is closed; only the very same file will do."""
        with self._lock:
            held = self._open
            if held is not None:
                held.readers += 1
        if held is None:
            held = self._opened()
        try:
            yield held.descriptor
        finally:
            with self._lock:
                held.readers -= 1
                last = held.given_up and not held.readers
            if last:
                os.close(held.descriptor)
                if held.counted:
                    self._room.give_back()

    def _opened(self) -> _Opened:
        """Open the file, to be held from now on if there is room; the lock is not held while the disk is waited for."""
        try:
            if not self.path.is_file():
                said = "a folder, not a file; krstore memory info and verify are for memories"
                raise UsageError(f"{self.path} is {said if self.path.is_dir() else 'not a file'}")
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(f"{self.path} cannot be opened: {error.strerror}") from error
        identity = _identity(os.fstat(descriptor))
        if self._identity not in (None, identity):
            os.close(descriptor)
            raise UsageError(f"{self.path} was replaced or changed after it had been opened; open it again")
        self._identity = identity
        opened = _Opened(descriptor)
        with self._lock:
            opened.counted = self._open is None and self._room.take()
            if opened.counted:
                self._open = opened
            else:
                opened.given_up = True
        return opened

    def _renew(self) -> None:
        """Begin with a lock that nobody holds, and no readers, as a forked process has to."""
        self._lock = threading.Lock()
        if self._open is not None:
            self._open.readers = 0

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
        if member.size > layout.MAX_HEADER_BYTES:
            raise self._corrupt(f"a header of {member.size} bytes; at most {layout.MAX_HEADER_BYTES} are allowed")
        inflate = zlib.decompressobj(-15)
        try:
            data = inflate.decompress(self._pread(member.offset, member.size), layout.MAX_HEADER_BYTES)
        except zlib.error as error:
            raise self._corrupt(f"the header does not inflate: {error}") from error
        if inflate.unconsumed_tail or not inflate.eof or inflate.unused_data:
            raise self._corrupt(f"the header is cut, or inflates to more than {layout.MAX_HEADER_BYTES} bytes")
        if zlib.crc32(data) != member.crc:
            raise self._corrupt("the header does not match its checksum")
        return data

    def _member(self, name: str) -> Member:
        if name not in self.members:
            cure = "; if it is an archive of samples, as .npz files are, encode it first" if name == HEADER else ""
            raise self._corrupt(f"member {name!r} is missing{cure}")
        return self.members[name]

    def _corrupt(self, what: str) -> CorruptStoreError:
        return CorruptStoreError(f"{self.path}: {what}")

    def _pread(self, offset: int, size: int) -> bytes:
        try:
            with self._reading() as descriptor:
                data = layout.pread(descriptor, size, offset)
        except OSError as error:
            raise self._corrupt(f"bytes {offset}..{offset + size} cannot be read: {error.strerror}") from error
        if len(data) != size:
            raise self._corrupt(f"the file ends at byte {offset + len(data)}, inside a member")
        return data

    def _directory(self) -> dict[str, Member]:
        """Parse the directory and check that header, members and directory tile the file without gap or overlap."""
        start, size, count = self._end()
        if count > layout.MAX_MEMBERS or size > count * (layout.CENTRAL.size + layout.MAX_NAME + 28):
            raise self._corrupt(
                f"a directory of {count} members in {size} bytes; at most {layout.MAX_MEMBERS} are allowed"
            )
        data, at, expected = self._pread(start, size), 0, 0
        members: dict[str, Member] = {}
        for _ in range(count):
            if at + layout.CENTRAL.size > size:
                raise self._corrupt("the directory is cut")
            (magic, _made, _need, flags, method, time, date, crc, packed, unpacked, name_size, extra_size, comment_size,
             disk, _internal, _external, offset) = layout.CENTRAL.unpack_from(data, at)  # fmt: skip
            at += layout.CENTRAL.size
            raw_name, extra = data[at : at + name_size], data[at + name_size : at + name_size + extra_size]
            at += name_size + extra_size
            packed, unpacked, offset = self._wide(extra, packed, unpacked, offset)
            name = self._name(raw_name)
            plain = method == 0 and packed == unpacked and name != HEADER
            deflated = method == 8 and name == HEADER
            fixed = (magic, flags, comment_size, disk, time, date)
            if fixed != (b"PK\1\2", 0, 0, 0, 0, layout.DATE) or not (plain or deflated):
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
        if self.file_bytes < layout.END.size:
            raise self._corrupt(f"{self.file_bytes} bytes are too few for a store; is this a .krs file?")
        end_at = self.file_bytes - layout.END.size
        magic, disk, first_disk, here, count, size, start, comment = layout.END.unpack(
            self._pread(end_at, layout.END.size)
        )
        if magic != b"PK\5\6" or comment:
            raise self._corrupt("no directory at the end: the file is truncated, or not a .krs file")
        if disk or first_disk or here != count:
            raise self._corrupt("the end record is not one a store may have")
        if layout.MAX32 in (size, start) or count == layout.MAX16:
            locator_at = end_at - layout.LOCATOR64.size
            if locator_at < layout.END64.size:
                raise self._corrupt("the 64-bit end record is missing")
            magic, disk, end64_at, disks = layout.LOCATOR64.unpack(self._pread(locator_at, layout.LOCATOR64.size))
            if magic != b"PK\6\7" or disk or disks != 1 or end64_at != locator_at - layout.END64.size:
                raise self._corrupt("the 64-bit end record is not where it should be")
            magic, record, _made, _need, disk, first_disk, here, count, size, start = layout.END64.unpack(
                self._pread(end64_at, layout.END64.size)
            )
            if magic != b"PK\6\6" or record != layout.END64.size - 12 or disk or first_disk or here != count:
                raise self._corrupt("the 64-bit end record is not one a store may have")
            end_at = end64_at
        if start + size != end_at:
            raise self._corrupt("the directory does not end where its record says")
        return start, size, count

    def _local(self, name: str, offset: int, method: int, crc: int, packed: int, unpacked: int) -> int:
        """Check a member's local header against its directory entry and return where its bytes begin."""
        (magic, _need, flags, own_method, time, date, own_crc, own_packed, own_unpacked, name_size, extra_size) = (
            layout.LOCAL.unpack(self._pread(offset, layout.LOCAL.size))
        )
        rest = self._pread(offset + layout.LOCAL.size, name_size + extra_size)
        own_packed, own_unpacked, _ = self._wide(rest[name_size:], own_packed, own_unpacked, 0)
        own = (rest[:name_size].decode("ascii", "replace"), own_method, own_crc, own_packed, own_unpacked)
        fixed = (magic, flags, time, date)
        if fixed != (b"PK\3\4", 0, 0, layout.DATE) or own != (name, method, crc, packed, unpacked):
            raise self._corrupt(f"the local header of member {name!r} contradicts the directory")
        return offset + layout.LOCAL.size + len(rest)

    def _name(self, raw: bytes) -> str:
        name = raw.decode("ascii", "replace")
        if not layout.is_name(name):
            raise self._corrupt(f"member name {name[: layout.MAX_NAME]!r} is not one a store may have")
        return name

    def _wide(self, extra: bytes, packed: int, unpacked: int, offset: int) -> tuple[int, int, int]:
        try:
            return layout.wide_sizes(extra, packed, unpacked, offset)
        except ValueError as error:
            raise self._corrupt(str(error)) from None


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


_ALL: weakref.WeakSet[Container] = weakref.WeakSet()


def _after_fork() -> None:
    Container._room.renew()
    for container in _ALL:
        container._renew()


os.register_at_fork(after_in_child=_after_fork)
