"""packnet: the states of a network that was pruned and frozen step by step, each weight stored once.

M2KD (Zhou et al., "M2KD: multi-model and multi-level knowledge distillation for incremental learning", Sec. 3.3,
Alg. 1) with PackNet's masks (Mallya and Lazebnik, CVPR 2018): a weight is 0 until the step that takes it, and stays as
it is from then on. The step is the weight's index; the network of step k is W [index <= k], with that step's own
biases, norm statistics and classifier.

packnet is lossless. packnet_quantised rounds the shared weights, as coarsely as a target asks for; nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, ClassVar

import msgspec
import numpy as np
import zstandard
from numpy.typing import NDArray

from krstore.codec import (
    Knob,
    PayloadSink,
    SnapshotCodec,
    SnapshotDecoder,
    SnapshotFitContext,
    SnapshotOpenContext,
)
from krstore.config import CodecConfig
from krstore.dtypes import cast, numpy_dtype
from krstore.entropy import MAX_SYMBOLS, Table, decode_runs, encode_runs, pack_tables, unpack_tables
from krstore.errors import ArchiveError, CorruptStoreError
from krstore.snapshots import ArraySpec, SnapshotSource, SnapshotSpec, State, is_float
from krstore.source import Array
from krstore.store.container import MemberReader
from krstore_codecs._words import pack_words, unpack_words

__all__ = ["PackNet", "PackNetConfig", "PackNetQuantised"]

SHARED, INDEX, WEIGHTS = "network/packnet", "network/packnet.steps", "network/packnet.weights"
FINEST, COARSEST = 2.0**-13, 8.0  # steps of the quantiser, of a tensor's mean magnitude
LEVEL = 12

Index = NDArray[np.int32]


class PackNetConfig(CodecConfig, frozen=True, kw_only=True):
    """Options of packnet."""

    per_step: Annotated[
        str,
        msgspec.Meta(description="parameters that each step has its own of, as fc.*,head.*; 1-D ones are, and resized"),
    ] = ""


class _Shared(msgspec.Struct, forbid_unknown_fields=True):
    """What a store says of the parameters that the steps share; without quantiser steps, they are exact."""

    names: list[str]
    steps: list[float] | None


@dataclass(frozen=True)
class Packed:
    """A network's states, told apart.

    Attributes:
        source: of all states.
        index: by name of a shared parameter, the step that takes each weight; the number of steps if none does.
        taken: by name, the weights that are taken, in C order.
    """

    source: SnapshotSource
    index: Mapping[str, Index]
    taken: Mapping[str, Array]


class PackNet(SnapshotCodec[PackNetConfig, Packed]):
    """Weights that steps share once, the step that takes each, and what every step has of its own."""

    name = "packnet"
    lossless = True
    Config: ClassVar = PackNetConfig

    def fit(self, source: SnapshotSource, context: SnapshotFitContext) -> Packed:
        """Find the step of each shared weight.

        Raises:
            ArchiveError: a weight changes after the step that takes it, or is a negative zero before; names parameter,
                element and step.
        """
        names = self._shared(source.spec)
        index, taken = {}, {}
        with context.progress.task("masks", len(names), "parameters") as task:
            for name in names:
                index[name], taken[name] = _indexed(source, name)
                task.advance(1)
        self._progress = context.progress
        return Packed(source, index, taken)

    def pack(self, fitted: Packed, knob: float, sink: PayloadSink) -> None:
        """Write the weights, their indices, and each step's own arrays."""
        self._pack_weights(fitted, knob, sink)
        indices = list(fitted.index.values())
        tables = [Table.of(index) for index in indices]
        sink.write(INDEX, msgspec.msgpack.encode((pack_tables(tables), encode_runs(indices, tables))))
        steps = fitted.source.spec.steps
        with self._progress.task("encode", len(steps), "steps") as task:
            for step in range(len(steps)):
                own = {name: spec for name, spec in steps[step].items() if name not in fitted.index}
                arrays = {name: fitted.source.read(step, name) for name in own}
                sink.write(_member(step), msgspec.msgpack.encode(_pack_arrays(arrays)))
                task.advance(1)

    @classmethod
    def open(cls, payload: MemberReader, context: SnapshotOpenContext) -> SnapshotDecoder:
        """Read the shared weights.

        Raises:
            CorruptStoreError: they are not those of the steps.
        """
        return _PackNetDecoder(payload, context.spec)

    def _pack_weights(self, fitted: Packed, knob: float, sink: PayloadSink) -> None:
        sink.write(SHARED, msgspec.json.encode(_Shared(list(fitted.taken), None)))
        sink.write(WEIGHTS, msgspec.msgpack.encode(_pack_arrays(fitted.taken)))

    def _shared(self, spec: SnapshotSpec) -> list[str]:
        patterns = [pattern.strip() for pattern in self.config.per_step.split(",") if pattern.strip()]
        first = spec.steps[0]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for step in spec.steps for name in step):
                raise ArchiveError(f"per_step={pattern} is no parameter's name; there are {_some(list(first))}")
        return [
            name for name, array in first.items()
            if is_float(array) and len(array.shape) > 1 and array.elements
            and all(step.get(name) == array for step in spec.steps)
            and not any(fnmatchcase(name, pattern) for pattern in patterns)
        ]  # fmt: skip


class PackNetQuantised(PackNet):
    """packnet with the shared weights rounded to multiples of a share of their tensor's mean magnitude."""

    name = "packnet_quantised"
    lossless = False

    def knob(self, fitted: Packed) -> Knob:
        """Return the range of that share."""
        return Knob(low=FINEST, start=2.0**-5, high=COARSEST)

    def _pack_weights(self, fitted: Packed, knob: float, sink: PayloadSink) -> None:
        steps = [_step(weights, knob) for weights in fitted.taken.values()]
        runs = [
            np.asarray(np.rint(weights.astype(np.float64) / step), np.int32)
            for weights, step in zip(fitted.taken.values(), steps, strict=True)
        ]
        tables = [Table.of(run) for run in runs]
        sink.write(SHARED, msgspec.json.encode(_Shared(list(fitted.taken), steps)))
        sink.write(WEIGHTS, msgspec.msgpack.encode((pack_tables(tables), encode_runs(runs, tables))))


class _PackNetDecoder(SnapshotDecoder):
    def __init__(self, payload: MemberReader, spec: SnapshotSpec) -> None:
        self._payload, self._spec = payload, spec
        try:
            shared = msgspec.json.decode(payload.read(SHARED), type=_Shared)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise CorruptStoreError(f"what the steps share is malformed: {error}") from error
        arrays = {name: spec.steps[0].get(name) for name in shared.names}
        for name, array in arrays.items():
            if array is None or not is_float(array) or any(step.get(name) != array for step in spec.steps):
                raise CorruptStoreError(f"the steps do not share a parameter {name!r}")
        self._shared: dict[str, ArraySpec] = {name: array for name, array in arrays.items() if array is not None}
        sizes = [array.elements for array in self._shared.values()]
        self._index = dict(zip(self._shared, _unpack_runs(payload.read(INDEX), sizes), strict=True))
        for name, index in self._index.items():
            if index.size and not (index.min() >= 0 and index.max() <= len(spec.steps)):
                raise CorruptStoreError(f"{name}: steps {index.min()} to {index.max()} of {len(spec.steps)}")
        self._weights = self._read_weights(payload.read(WEIGHTS), shared.steps)

    def network(self, step: int) -> State:
        own = {name: spec for name, spec in self._spec.steps[step].items() if name not in self._shared}
        state = _unpack_arrays(self._payload.read(_member(step)), own)
        for name, array in self._shared.items():
            values = np.zeros(array.elements, numpy_dtype(array.dtype))
            index, weights = self._index[name], self._weights[name]
            values[index <= step] = weights[index[index < len(self._spec.steps)] <= step]
            state[name] = values.reshape(array.shape)
        return state

    def _read_weights(self, data: bytes, steps: list[float] | None) -> State:
        counts = {name: int(np.count_nonzero(i < len(self._spec.steps))) for name, i in self._index.items()}
        if steps is None:
            own = {name: ArraySpec((counts[name],), array.dtype) for name, array in self._shared.items()}
            return _unpack_arrays(data, own)
        if len(steps) != len(counts) or not all(np.isfinite(step) for step in steps):
            raise CorruptStoreError(f"{len(steps)} quantiser steps for {len(counts)} parameters, or one is not finite")
        runs = _unpack_runs(data, list(counts.values()))
        return {
            name: cast(run * step, numpy_dtype(array.dtype))
            for (name, array), run, step in zip(self._shared.items(), runs, steps, strict=True)
        }


def _indexed(source: SnapshotSource, name: str) -> tuple[Index, Array]:
    """Return the step that takes each weight of a parameter, flat, and the weights that are taken."""
    count = len(source.spec.steps)
    shape = source.spec.steps[0][name].shape
    index = np.full(source.spec.steps[0][name].elements, count, np.int32)
    kept = np.zeros(len(index), numpy_dtype(source.spec.steps[0][name].dtype))
    for step in range(count):
        values = source.read(step, name).reshape(-1)
        bits, known = (array.view(f"u{array.itemsize}") for array in (np.ascontiguousarray(values), kept))
        free = index == count
        changed = np.flatnonzero(~free & (bits != known))
        if changed.size:
            first = int(changed[0])
            place = ", ".join(map(str, np.unravel_index(first, shape)))
            raise ArchiveError(
                f"{name}[{place}] is {values[first]} after step {step}; from step {index[first]}, the first at which "
                f"it is not 0, it was {kept[first]} ({len(changed):,} weights of {name} have changed). Weights that a "
                f"step has taken must stay; if each step has its own {name}, say so: --per-step {name}"
            )
        minus = np.flatnonzero(free & (values == 0) & (bits != 0))
        if minus.size:
            place = ", ".join(map(str, np.unravel_index(int(minus[0]), shape)))
            raise ArchiveError(f"{name}[{place}] is -0.0 after step {step}; krstore snapshot makes it 0.0")
        taken = free & (values != 0)
        index[taken], kept[taken] = step, values[taken]
    return index, kept[index < count]


def _step(weights: Array, share: float) -> float:
    """Return a quantiser's step, no finer than the entropy coder's symbols reach."""
    if not weights.size:
        return 1.0
    values = weights.astype(np.float64)
    return max(share * float(np.abs(values).mean()), float(np.ptp(values)) / (MAX_SYMBOLS - 2))


def _pack_arrays(arrays: Mapping[str, Array]) -> list[bytes]:
    """Pack arrays, those of one element type together, in the order of the types' names."""
    return [pack_words(_joined(arrays, dtype), zstandard.ZstdCompressor(LEVEL)) for dtype in _dtypes(arrays)]


def _joined(arrays: Mapping[str, Array], dtype: str) -> Array:
    return np.concatenate([array.reshape(-1) for array in arrays.values() if array.dtype.name == dtype])


def _dtypes(arrays: Mapping[str, Array]) -> list[str]:
    return sorted({array.dtype.name for array in arrays.values()})


def _unpack_arrays(data: bytes, specs: Mapping[str, ArraySpec]) -> State:
    """Undo `_pack_arrays` for arrays of these shapes and types."""
    state: State = {}
    dtypes = sorted({spec.dtype for spec in specs.values()})
    try:
        parts = msgspec.msgpack.decode(data, type=list[bytes])
        for dtype, part in zip(dtypes, parts, strict=True):
            own = {name: spec for name, spec in specs.items() if spec.dtype == dtype}
            elements = sum(spec.elements for spec in own.values())
            values = unpack_words([part], [elements], numpy_dtype(dtype).itemsize).view(numpy_dtype(dtype))
            cuts = np.cumsum([spec.elements for spec in own.values()])[:-1]
            for (name, spec), piece in zip(own.items(), np.split(values, cuts), strict=True):
                state[name] = piece.reshape(spec.shape)
    except (msgspec.DecodeError, msgspec.ValidationError, zstandard.ZstdError, ValueError, struct.error) as error:
        raise CorruptStoreError(f"a state's arrays are malformed: {error}") from error
    return state


def _unpack_runs(data: bytes, sizes: list[int]) -> list[Index]:
    try:
        packed, stream = msgspec.msgpack.decode(data, type=tuple[bytes, bytes])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise CorruptStoreError(f"the weights' steps are malformed: {error}") from error
    tables = unpack_tables(packed)
    if len(tables) != len(sizes):
        raise CorruptStoreError(f"{len(tables)} tables for {len(sizes)} parameters")
    return decode_runs(stream, sizes, tables)


def _member(step: int) -> str:
    return f"latent/step{step}"


def _some(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")
