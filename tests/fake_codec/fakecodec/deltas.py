"""deltas: the first state as it is, of each later one what changed, through zstd; rounded: the same, less exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import zstandard

from krstore.codec import (
    Knob,
    PayloadSink,
    SnapshotCodec,
    SnapshotDecoder,
    SnapshotFitContext,
    SnapshotOpenContext,
)
from krstore.config import CodecConfig
from krstore.dtypes import numpy_dtype
from krstore.errors import CorruptStoreError
from krstore.snapshots import SnapshotSource, SnapshotSpec, State
from krstore.source import Array
from krstore.store.container import MemberReader

__all__ = ["Deltas", "Rounded"]


class Deltas(SnapshotCodec[CodecConfig, SnapshotSource]):
    """A lossless snapshot codec: the bytes of a state, exclusive-or those of the step before."""

    name = "deltas"
    lossless = True

    def fit(self, source: SnapshotSource, context: SnapshotFitContext) -> SnapshotSource:
        """Return the source: there is nothing to learn."""
        self._progress = context.progress
        return source

    def pack(self, fitted: SnapshotSource, knob: float, sink: PayloadSink) -> None:
        """Write a member a step."""
        before = b""
        with self._progress.task("encode", len(fitted.spec.steps), "steps") as task:
            for step, arrays in enumerate(fitted.spec.steps):
                state = b"".join(np.ascontiguousarray(fitted.read(step, name)).tobytes() for name in arrays)
                sink.write(_member(step), zstandard.compress(_changed(state, before)))
                before = state
                task.advance(1)

    @classmethod
    def open(cls, payload: MemberReader, context: SnapshotOpenContext) -> SnapshotDecoder:
        """Open the members."""
        return _DeltasDecoder(payload, context)


class Rounded(Deltas):
    """A lossy one; the knob is what floating-point values are rounded to multiples of."""

    name = "rounded"
    lossless = False

    def knob(self, fitted: SnapshotSource) -> Knob:
        """Return the range of steps."""
        return Knob(low=1e-6, start=1e-3, high=10.0)

    def pack(self, fitted: SnapshotSource, knob: float, sink: PayloadSink) -> None:
        """Write a member a step."""
        super().pack(_RoundedSource(fitted, knob), knob, sink)


@dataclass
class _RoundedSource:
    source: SnapshotSource
    step: float

    @property
    def spec(self) -> SnapshotSpec:
        return self.source.spec

    def read(self, step: int, name: str) -> Array:
        values = self.source.read(step, name)
        return values if values.dtype.kind != "f" else np.asarray(np.rint(values / self.step) * self.step, values.dtype)


class _DeltasDecoder(SnapshotDecoder):
    def __init__(self, payload: MemberReader, context: SnapshotOpenContext) -> None:
        self._payload, self._spec = payload, context.spec

    def network(self, step: int) -> State:
        state = b""
        for earlier in range(step + 1):
            size = sum(array.bytes for array in self._spec.steps[earlier].values())
            try:
                delta = zstandard.decompress(self._payload.read(_member(earlier)), max_output_size=size)
            except zstandard.ZstdError as error:
                raise CorruptStoreError(f"member {_member(earlier)!r} is malformed: {error}") from error
            if len(delta) != size:
                raise CorruptStoreError(f"member {_member(earlier)!r} has {len(delta)} bytes; expected {size}")
            state = _changed(delta, state)
        arrays, offset = {}, 0
        for name, spec in self._spec.steps[step].items():
            values = np.frombuffer(state, numpy_dtype(spec.dtype), spec.elements, offset)
            arrays[name] = values.reshape(spec.shape)
            offset += spec.bytes
        return arrays


def _member(step: int) -> str:
    return f"{'latent' if step else 'network'}/step{step}"


def _changed(state: bytes, before: bytes) -> bytes:
    """Return a state exclusive-or the one before, as far as that reaches; its own inverse."""
    changed = np.frombuffer(state, np.uint8).copy()
    common = min(len(state), len(before))
    changed[:common] ^= np.frombuffer(before, np.uint8, common)
    return changed.tobytes()
