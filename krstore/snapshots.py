"""A network's states, one after each incremental step, as a source: named arrays, and what one pass over them tells.

Snapshot archives (`krstore.archives.open_snapshots`) and snapshot stores (`krstore.store.snapshots.SnapshotStore`)
are both such sources.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

import msgspec
import numpy as np

from krstore.dtypes import numpy_dtype
from krstore.errors import ArchiveError
from krstore.progress import SILENT, Progress
from krstore.source import LARGEST, Array

__all__ = [
    "MAX_AXES",
    "ArraySpec",
    "HeldStates",
    "SnapshotSource",
    "SnapshotSpec",
    "SnapshotStats",
    "State",
    "check_state",
    "is_float",
    "scan_snapshots",
    "states",
]

MAX_AXES = 32

State = dict[str, Array]


class ArraySpec(msgspec.Struct, frozen=True):
    """Shape and element type (one of `krstore.dtypes.STATE_DTYPES`) of one array of a state."""

    shape: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, le=1 << 48)], ...], msgspec.Meta(max_length=MAX_AXES)]
    dtype: str

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """How many bytes they take."""
        return self.elements * numpy_dtype(self.dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class SnapshotSpec:
    """What a snapshot source holds, known before any array is read.

    Attributes:
        steps: by step, its arrays by name (as in the state dict); kept in ascending order of name.
        attributes: where the states came from, as JSON values.
    """

    steps: tuple[Mapping[str, ArraySpec], ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(dict(sorted(step.items())) for step in self.steps))

    @property
    def bytes(self) -> int:
        """Bytes of all arrays of all steps: what a compression ratio is measured against."""
        return sum(array.bytes for step in self.steps for array in step.values())


class SnapshotSource(Protocol):
    """The states of a network after steps 0, 1, ..."""

    @property
    def spec(self) -> SnapshotSpec:
        """What the source holds."""

    def read(self, step: int, name: str) -> Array:
        """Return one array of one step."""


@dataclass(frozen=True)
class HeldStates:
    """States that are in memory, as a source."""

    states: tuple[State, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> SnapshotSpec:
        """What the states hold."""
        steps = ({name: ArraySpec(a.shape, a.dtype.name) for name, a in state.items()} for state in self.states)
        return SnapshotSpec(steps=tuple(steps), attributes=self.attributes)

    def read(self, step: int, name: str) -> Array:
        """Return one array."""
        return self.states[step][name]


@dataclass(frozen=True)
class SnapshotStats:
    """What one pass over a snapshot source tells.

    Attributes:
        sha256: of the arrays' bytes, step by step, names ascending; C order, little endian.
        variance: of all floating-point elements about their mean; the denominator of NMSE.
    """

    sha256: str
    variance: float


def states(source: SnapshotSource) -> Iterator[State]:
    """Yield each step's state, in memory as a whole."""
    for step, arrays in enumerate(source.spec.steps):
        yield {name: source.read(step, name) for name in arrays}


def check_state(state: State, spec: Mapping[str, ArraySpec]) -> None:
    """Make sure that a state is what a step's spec says.

    Raises:
        ValueError: names the array that is missing, too many, or of another shape or element type.
    """
    for name in sorted(state.keys() ^ spec.keys()):
        raise ValueError(f"array {name!r} is {'unknown' if name in state else 'missing'}")
    for name, array in state.items():
        if array.shape != spec[name].shape or array.dtype != numpy_dtype(spec[name].dtype):
            raise ValueError(
                f"array {name!r} has shape {array.shape} and type {array.dtype}; expected {spec[name].shape} and "
                f"{spec[name].dtype}"
            )


def scan_snapshots(source: SnapshotSource, progress: Progress = SILENT) -> SnapshotStats:
    """Read a source once: check that floating-point values and their squares are finite; hash all, measure variance.

    Raises:
        ArchiveError: a step has no arrays, no array has an element, or a value is NaN, infinite or beyond 1e150 (step
            and array are named).
    """
    digest = hashlib.sha256()
    count, mean, deviation = 0, 0.0, 0.0
    with progress.task("scan", len(source.spec.steps), "steps") as task:
        for step, arrays in enumerate(source.spec.steps):
            if not arrays:
                raise ArchiveError(f"step {step} holds no arrays; nothing to encode")
            for name, spec in arrays.items():
                array = source.read(step, name)
                digest.update(np.ascontiguousarray(array).tobytes())
                if not is_float(spec) or not array.size:
                    continue
                values = array.astype(np.float64)
                if not (np.abs(values) < LARGEST).all():
                    raise ArchiveError(
                        f"step {step}: {name!r} holds a NaN, infinite or absurdly large value; did the training "
                        "diverge? Leave this step out"
                    )
                offset, total = float(values.mean()) - mean, count + values.size
                deviation += float(values.var()) * values.size + offset * offset * count * values.size / total
                mean, count = mean + offset * values.size / total, total
            task.advance(1)
    if not source.spec.bytes:
        raise ArchiveError("the arrays of all steps hold no elements; nothing to encode")
    return SnapshotStats(digest.hexdigest(), deviation / max(1, count))


def is_float(spec: ArraySpec) -> bool:
    """Whether an array's elements are floating-point numbers: the others must be kept exactly."""
    return "float" in spec.dtype
