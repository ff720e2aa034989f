"""Snapshot archives: HDF5 files with a group ``step0``, ``step1``, ... for each state, a dataset for each array."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import h5py
import numpy as np

from krstore.archives._common import check_claim
from krstore.archives.hdf5 import attributes_of, create_file, find_dataset, is_group, readable, reserve
from krstore.dtypes import STATE_DTYPES, dtype_name, numpy_dtype
from krstore.errors import ArchiveError
from krstore.files import atomic_path
from krstore.snapshots import ArraySpec, SnapshotSpec, State, check_state
from krstore.source import Array

__all__ = ["SnapshotArchive", "SnapshotWriter", "open_hdf5_snapshots", "write_snapshots"]


class SnapshotArchive:
    """The states in an open file, as a source."""

    def __init__(self, path: Path, file: h5py.File, spec: SnapshotSpec, close: Callable[[], object]) -> None:
        self.spec = spec
        self._path, self._file = path, file
        weakref.finalize(self, close)

    def read(self, step: int, name: str) -> Array:
        """Return one array of one step.

        Raises:
            ArchiveError: the file is damaged.
        """
        with readable(self._path):
            return np.asarray(self._file[f"step{step}/{name}"][()], numpy_dtype(self.spec.steps[step][name].dtype))


def open_hdf5_snapshots(path: Path, *, trust: bool) -> SnapshotArchive:
    """Open a snapshot archive; see `krstore.archives.open_snapshots`."""
    with contextlib.ExitStack() as stack, readable(path):
        file = stack.enter_context(h5py.File(path, "r"))
        numbers = sorted(int(name[4:]) for name in file if name.startswith("step") and name[4:].isdecimal())
        if numbers != list(range(len(numbers))) or not numbers:
            raise ArchiveError(
                f"{path} is no snapshot archive: it has the groups {', '.join(map(repr, file)) or 'none'}; expected "
                "step0, step1, ... without a gap"
            )
        steps = tuple(_step(path, file, f"step{number}", trust=trust) for number in numbers)
        spec = SnapshotSpec(steps=steps, attributes=attributes_of(file))
        return SnapshotArchive(path, file, spec, stack.pop_all().close)


def _step(path: Path, file: h5py.File, group: str, *, trust: bool) -> dict[str, ArraySpec]:
    if not is_group(file, group):
        raise ArchiveError(f"{path}: {group!r} is not a group of this file")
    arrays = {}
    for name in sorted(file[group]):
        dataset = find_dataset(path, file, f"{group}/{name}", trust=trust)
        if dataset is None or dataset.shape is None:
            raise ArchiveError(
                f"{path}: {group}/{name} is no array; a step holds a dataset for each array of the state"
            )
        try:
            arrays[name] = ArraySpec(tuple(dataset.shape), dtype_name(dataset.dtype, STATE_DTYPES))
        except ArchiveError as error:
            raise ArchiveError(f"{path}: {group}/{name}: {error}") from None
        if not trust:
            check_claim(path, f"{group}/{name}", arrays[name].elements)
    return arrays


class SnapshotWriter:
    """Takes the states of a snapshot archive in order."""

    def __init__(self, stream: IO[bytes], spec: SnapshotSpec, offsets: list[dict[str, int]]) -> None:
        self._stream, self._spec, self._offsets = stream, spec, offsets
        self.steps = 0

    def append(self, state: State) -> None:
        """Write the next step's state.

        Raises:
            ArchiveError: there are no more steps, or an array is missing, unknown, or of another shape or type.
        """
        if self.steps == len(self._offsets):
            raise ArchiveError(f"more than the {self.steps} steps that the archive should hold")
        try:
            check_state(state, self._spec.steps[self.steps])
        except ValueError as error:
            raise ArchiveError(f"step {self.steps}: {error}") from None
        for name, offset in self._offsets[self.steps].items():
            self._stream.seek(offset)
            self._stream.write(np.ascontiguousarray(state[name]).tobytes())
        self.steps += 1


@contextlib.contextmanager
def write_snapshots(path: str | Path, spec: SnapshotSpec) -> Iterator[SnapshotWriter]:
    """Write a snapshot archive (.h5, .hdf5), replaced atomically when the block ends.

    Raises:
        ArchiveError: another suffix, an array that HDF5 cannot hold (bfloat16) or name, or steps missing.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".h5", ".hdf5"):
        raise ArchiveError(f"{path}: cannot write a snapshot archive as {path.suffix!r}; use .h5")
    for step, arrays in enumerate(spec.steps):
        for name, array in arrays.items():
            if "/" in name or array.dtype == "bfloat16":
                raise ArchiveError(f"{path}: HDF5 cannot hold array {name!r} of step {step}, of type {array.dtype}")
    with atomic_path(path) as temporary:
        with create_file(temporary, spec.attributes) as file:
            offsets = [
                {
                    name: reserve(file, f"step{step}/{name}", array.shape, numpy_dtype(array.dtype))
                    for name, array in arrays.items()
                }
                for step, arrays in enumerate(spec.steps)
            ]
        with temporary.open("r+b") as stream:
            writer = SnapshotWriter(stream, spec, offsets)
            yield writer
        if writer.steps != len(spec.steps):
            raise ArchiveError(f"{path}: {writer.steps} steps were written; the archive should hold {len(spec.steps)}")
