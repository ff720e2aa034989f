"""first: the first samples of each class, as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from krstore.codec import Codec, Decoder, FitContext, Kind, Knob, OpenContext, PayloadSink
from krstore.config import CodecConfig
from krstore.dtypes import numpy_dtype
from krstore.errors import CorruptStoreError
from krstore.source import Array, Ids, Source, class_indices
from krstore.store.blocks import BlockReader
from krstore.store.container import MemberReader

__all__ = ["First"]

BLOCKS = "latent/samples"


@dataclass(frozen=True)
class _Fitted:
    source: Source
    classes: list[Ids]
    largest: int


class First(Codec[CodecConfig, _Fitted]):
    """An exemplar codec; the knob is how many samples of the largest class are left out."""

    name = "first"
    kind: ClassVar = Kind.EXEMPLAR

    def fit(self, source: Source, context: FitContext) -> _Fitted:
        """Sort the samples by class."""
        classes = list(class_indices(source.labels).values()) or [np.arange(source.spec.samples)]
        return _Fitted(source, classes, max(map(len, classes)))

    def knob(self, fitted: _Fitted) -> Knob:
        """Return the range: from nothing left out to one sample a class kept."""
        return Knob(low=0, start=fitted.largest // 2, high=fitted.largest - 1, integer=True)

    def pack(self, fitted: _Fitted, knob: float, sink: PayloadSink) -> None:
        """Write the kept samples, a block each."""
        ids = np.concatenate([members[: fitted.largest - int(knob)] for members in fitted.classes])
        sink.keep(ids)
        sink.write_blocks(BLOCKS, 1, (fitted.source.read(ids[i : i + 1]).tobytes() for i in range(len(ids))))

    @classmethod
    def open(cls, payload: MemberReader, context: OpenContext) -> Decoder:
        """Open the blocks."""
        return _FirstDecoder(payload, context)


class _FirstDecoder(Decoder):
    def __init__(self, payload: MemberReader, context: OpenContext) -> None:
        self._spec = context.spec
        self._blocks = BlockReader(payload, BLOCKS, context.kept, self._unpack)

    def decode(self, rows: Ids) -> Array:
        return self._blocks.read(rows)

    def _unpack(self, blocks: list[bytes], samples: list[int]) -> Array:
        if any(len(data) != self._spec.sample_bytes for data in blocks):
            raise CorruptStoreError(f"a kept sample is not {self._spec.sample_bytes} bytes long")
        values = np.frombuffer(b"".join(blocks), numpy_dtype(self._spec.dtype))
        return values.reshape(len(blocks), *self._spec.shape)
