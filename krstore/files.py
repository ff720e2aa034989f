"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from krstore.errors import OutputError, UsageError

__all__ = ["atomic_path", "atomic_write", "check_target", "encodable", "locked", "sole_writer"]

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def encodable(text: str) -> str:
    """Return text that UTF-8 can hold: in names of files, bytes that are not UTF-8 become ``\\udce9`` and the like."""
    return text.encode("utf-8", "backslashreplace").decode()


def check_target(path: Path, *, force: bool, inputs: Iterable[str | Path | None] = ()) -> None:
    """Refuse a target that cannot or must not be written; called before expensive work.

    Args:
        path: the target.
        force: whether it may replace a file.
        inputs: what is read to make it, which it never replaces; `None`, and what is no path of a file, is passed over.

    Raises:
        UsageError: the target is one of the inputs.
        OutputError: the target exists and `force` is false, is a folder or a device, or its folder does not exist or
            cannot be written to.
    """
    try:
        for given in inputs:
            if given is not None and path.exists() and Path(given).exists() and path.samefile(given):
                raise UsageError(f"{path} is an input, which is never replaced; name another output (-o)")
        if path.is_dir():
            raise OutputError(f"{path} is a folder; name a file")
        if path.exists() and not path.is_file():
            raise OutputError(f"{path} is no plain file; name another")
        if path.exists() and not force:
            raise OutputError(f"{path} exists; use --force (force=True) to replace it, or another -o")
        if not path.parent.is_dir():
            raise OutputError(f"the folder {path.parent} does not exist; create it first")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise OutputError(f"the folder {path.parent} cannot be written to")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


@contextlib.contextmanager
def atomic_path(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield a new, empty temporary file beside `path`; on success fsync it and rename it over `path`, else remove it.

    A crash at any instant leaves the old file or none. What a killed process left behind is removed by the
    next writer of the same target on the same machine.

    Args:
        path: the file to appear.
        replace: whether one that is there by then gives way.

    Raises:
        OutputError: the file cannot be created, written or renamed (disk full, no permission, I/O error), or has come
            to be and is not to be replaced.
    """
    _remove_stale(path)
    temporary = path.with_name(f"{_prefix(path)}{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
        yield temporary
        _fsync(temporary)
        if not replace:
            _claim(temporary, path)
        temporary.replace(path)
    except OSError as error:
        why = error.strerror or error
        if error.errno == errno.ENAMETOOLONG:
            why = "the name is too long; a file is written under a temporary name about 40 characters longer"
        raise OutputError(f"cannot write {path}: {why}; nothing was changed") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    with contextlib.suppress(OSError):  # the file is in place; some file systems cannot sync a folder
        _fsync(path.parent)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file, readable and seekable, that becomes `path` when the block ends without an error.

    Raises:
        OutputError: as `atomic_path`.
    """
    with atomic_path(path) as temporary, temporary.open("r+b") as file:
        yield file


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path` against all others; the system frees it when this process ends, however it ends.

    Args:
        path: an empty file, made where there is none, that stays.
        wait: for as long as another holds it.

    Raises:
        BlockingIOError: another holds it, and it is not to be waited for.
        OutputError: the file cannot be opened or locked. Where the file system has no locks, none is held, unless it
            was to be waited for.
    """
    from filelock import FileLock, Timeout  # a process that writes nothing starts without

    lock = FileLock(path, timeout=-1 if wait else 0, fallback_to_soft=False)
    try:
        lock.acquire(poll_interval=0.01)
    except Timeout:
        raise BlockingIOError(errno.EWOULDBLOCK, f"another holds {path}") from None
    except OSError as error:
        if wait or error.errno not in NO_LOCKS:
            raise OutputError(f"cannot lock {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Keep other processes from writing `path`, or what is beside it on the way there, as long as the block lasts.

    Raises:
        OutputError: one of them is at it.
    """
    lock = path.with_name(f".{path.name}.lock")
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(lock, wait=False))
        except BlockingIOError:
            raise OutputError(f"another process is writing {path}; wait for it, or name another output") from None
        held.callback(lock.unlink, missing_ok=True)
        yield


def _claim(temporary: Path, path: Path) -> None:
    """Let a finished file be `path` as well, which fails where there is one."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if isinstance(error, FileExistsError) or path.exists():
            raise OutputError(
                f"{path} has come to be meanwhile, and was not replaced; use --force, or another -o"
            ) from None


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prefix(path: Path) -> str:
    """How the names of this machine's temporary files for `path` begin; the writer's process ID follows."""
    return f".{path.name}.{socket.gethostname()}-"


def _remove_stale(path: Path) -> None:
    """Remove the temporary files of dead processes of this machine that were writing `path`."""
    ours = re.compile(re.escape(_prefix(path)) + r"([0-9]{1,9})-[0-9a-f]{8}\.partial")
    with contextlib.suppress(OSError):
        for stale in path.parent.iterdir():
            match = ours.fullmatch(stale.name)
            if match and not _alive(int(match[1])):
                stale.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
