"""An archive that is written over a long time and survives being killed."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from krstore.archives.hdf5 import create_hdf5
from krstore.archives.writer import ArchiveWriter
from krstore.errors import OutputError, UsageError
from krstore.files import atomic_write, sole_writer
from krstore.source import Array, Ids, SourceSpec

__all__ = ["ResumableArchive"]

SAVE_SECONDS = 5.0


class ResumableArchive:
    """An HDF5 archive that grows in a file beside its target and is renamed to it when it is whole.

    `.NAME.partial` has its final size and structure from the start; `.NAME.partial.json` says how many samples are
    safely on disk in it, and whose they are. Used as a context manager: an error or an interrupt keeps both.

    Args:
        target: the file to appear.
        identity: JSON values that name the work; another work's files are refused.
        resume: take up the files of an earlier run, if there are any; else they are overwritten.

    Attributes:
        done: how many samples are written.

    Raises:
        UsageError: the files belong to another work; when it is entered.
        OutputError: another process is writing the same archive; when it is entered.
    """

    def __init__(self, target: Path, identity: Mapping[str, Any], *, resume: bool = False) -> None:
        self._target = target
        self._partial = target.with_name(f".{target.name}.partial")
        self._state = target.with_name(f".{target.name}.partial.json")
        self._identity = dict(identity)
        self._file: BinaryIO | None = None
        self._saved_at = -SAVE_SECONDS
        self.done = self._offset = 0
        self._held = contextlib.ExitStack()
        self._resume = resume

    def __enter__(self) -> ResumableArchive:
        with contextlib.ExitStack() as held:
            held.enter_context(sole_writer(self._target))
            if self._resume and self._state.exists() and self._partial.exists():
                self._take_up()
            self._held = held.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        with self._held:
            if kind is not None:
                with contextlib.suppress(OutputError, OSError):
                    if self._file is not None:
                        with self._file:
                            self.save()
            elif self.done:
                self._finish()

    def append(self, features: Array, spec: SourceSpec, columns: Mapping[str, Ids]) -> None:
        """Write the next samples (n, *shape); the first call makes the file for `spec` and `columns`.

        Raises:
            OutputError: the file cannot be written.
        """
        with self._writing():
            if self._file is None:
                self._open(spec, columns)
            assert self._file is not None
            ArchiveWriter(self._file, spec).append(features)
            self.done += len(features)
        if time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Bring what is written to the disk, and then say so."""
        assert self._file is not None
        with self._writing():
            _sync(self._file)
            state = {"identity": self._identity, "done": self.done, "offset": self._offset}
            with atomic_write(self._state) as file:
                file.write(json.dumps(state).encode())
        self._saved_at = time.monotonic()

    def _open(self, spec: SourceSpec, columns: Mapping[str, Ids]) -> None:
        if self.done == 0:
            self._state.unlink(missing_ok=True)
            self._offset = create_hdf5(self._partial, spec, columns)
        self._file = self._partial.open("r+b")
        self._file.seek(self._offset + self.done * spec.sample_bytes)

    def _finish(self) -> None:
        with self._writing():
            if self._file is not None:
                with self._file:
                    _sync(self._file)
            self._partial.replace(self._target)
            self._state.unlink(missing_ok=True)

    def _take_up(self) -> None:
        try:
            state = json.loads(self._state.read_bytes())
            before, self.done, self._offset = dict(state["identity"]), int(state["done"]), int(state["offset"])
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{self._state} is damaged ({error}); leave out --resume to begin anew") from error
        now = json.loads(json.dumps(self._identity))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            differences = ", ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in changed)
            raise UsageError(
                f"{self._partial} was begun differently ({differences}); give the same options and files again, or "
                "leave out --resume to begin anew"
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot write {self._partial}: {error.strerror or error}") from error


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
