"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from krstore.errors import OutputError

__all__ = ["atomic_path", "atomic_write", "check_target"]


def check_target(path: Path, *, force: bool) -> None:
    """Refuse a target that exists (unless `force`) or whose folder does not; called before expensive work.

    Raises:
        OutputError: the target exists and `force` is false, is a folder, or its folder does not exist.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file")
    if path.exists() and not force:
        raise OutputError(f"{path} exists; use --force (force=True) to replace it, or another -o")
    if not path.parent.is_dir():
        raise OutputError(f"the folder {path.parent} does not exist; create it first")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it over `path`, else remove it.

    A crash at any instant leaves the old file or none. What a killed process left behind is removed by the
    next writer of the same target on the same machine.

    Raises:
        OutputError: the file cannot be created, written or renamed (disk full, no permission, I/O error).
    """
    _remove_stale(path)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.partial")
    try:
        yield temporary
        _fsync(temporary)
        temporary.replace(path)
        _fsync(path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; nothing was changed") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file, readable and seekable, that becomes `path` when the block ends without an error."""
    with atomic_path(path) as temporary, temporary.open("w+b") as file:
        yield file
        file.flush()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_stale(path: Path) -> None:
    """Remove the temporary files of dead processes of this machine that were writing `path`."""
    prefix = f".{path.name}.{socket.gethostname()}-"
    for stale in path.parent.glob("*.partial"):
        if not stale.name.startswith(prefix):
            continue
        pid = stale.name.removeprefix(prefix).removesuffix(".partial")
        if pid.isdigit() and int(pid) != os.getpid() and not _alive(int(pid)):
            stale.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
