"""raw: lossless; the size and speed floor that every other codec is compared with.

Signal flow: samples -> blocks -> byte planes (all first bytes, all second bytes, ...) -> zstd, and back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

import msgspec
import numpy as np
import zstandard

from krstore.codec import Codec, Decoder, FitContext, OpenContext, PayloadSink
from krstore.config import CodecConfig
from krstore.dtypes import numpy_dtype
from krstore.errors import CorruptStoreError
from krstore.source import Array, Ids, Source, chunks
from krstore.store.blocks import BlockReader
from krstore.store.container import MemberReader

__all__ = ["Raw", "RawConfig"]

BLOCKS = "latent/samples"


class RawConfig(CodecConfig):
    """Options of the raw codec."""

    level: Annotated[int, msgspec.Meta(ge=1, le=22, description="zstd level: higher is smaller and slower")] = 12
    block_samples: Annotated[int, msgspec.Meta(ge=1, le=4096, description="samples compressed together")] = 4


class Raw(Codec[RawConfig, Source]):
    """Byte planes through zstd, a few samples a block."""

    name = "raw"
    lossless = True
    Config: ClassVar = RawConfig

    def fit(self, source: Source, context: FitContext) -> Source:
        """Return the source: there is nothing to learn."""
        self._progress = context.progress
        return source

    def pack(self, fitted: Source, knob: float, sink: PayloadSink) -> None:
        """Compress all samples; the knob has no meaning."""
        sink.write_blocks(BLOCKS, self.config.block_samples, self._blocks(fitted))

    def _blocks(self, source: Source) -> Iterator[bytes]:
        compressor = zstandard.ZstdCompressor(level=self.config.level, write_content_size=False)
        size = self.config.block_samples
        rows = max(1, (16 << 20) // (source.spec.sample_bytes * size)) * size
        with self._progress.task("encode", source.spec.samples) as task:
            for ids, features in chunks(source, rows * source.spec.sample_bytes):
                for start in range(0, len(ids), size):
                    yield compressor.compress(_to_planes(features[start : start + size]))
                task.advance(len(ids))

    @classmethod
    def open(cls, payload: MemberReader, context: OpenContext) -> Decoder:
        """Open the blocks."""
        return _RawDecoder(payload, context)


class _RawDecoder(Decoder):
    def __init__(self, payload: MemberReader, context: OpenContext) -> None:
        self._shape, self._dtype = context.spec.shape, numpy_dtype(context.spec.dtype)
        self._sample_bytes = context.spec.sample_bytes
        self._zstd = zstandard.ZstdDecompressor()
        self._blocks = BlockReader(payload, BLOCKS, context.kept, self._unpack)

    def decode(self, rows: Ids) -> Array:
        return self._blocks.read(rows)

    def _unpack(self, data: bytes, samples: int) -> Array:
        try:
            planes = self._zstd.decompress(data, max_output_size=samples * self._sample_bytes)
        except zstandard.ZstdError as error:
            raise CorruptStoreError(f"a block of raw samples does not decompress: {error}") from error
        if len(planes) != samples * self._sample_bytes:
            raise CorruptStoreError(f"a block of {samples} raw samples holds {len(planes)} bytes")
        return _from_planes(planes, self._dtype).reshape(samples, *self._shape)


def _to_planes(values: Array) -> bytes:
    """Put the i-th bytes of all elements side by side, for each i; sign bits last within a float's top byte."""
    return np.ascontiguousarray(values).view(np.uint8).reshape(-1, values.itemsize).T.tobytes()


def _from_planes(planes: bytes, dtype: np.dtype) -> Array:  # type: ignore[type-arg]
    grouped = np.frombuffer(planes, np.uint8).reshape(dtype.itemsize, -1)
    return np.ascontiguousarray(grouped.T).view(dtype)
