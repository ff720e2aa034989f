"""uniform: every element rounded to a multiple of one step, through zstd."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Annotated, ClassVar

import msgspec
import numpy as np
import zstandard

from krstore.codec import Codec, Decoder, FitContext, Knob, OpenContext, PayloadSink
from krstore.config import CodecConfig
from krstore.dtypes import cast, numpy_dtype
from krstore.errors import CorruptStoreError
from krstore.source import Array, Ids, Source, chunks
from krstore.store.blocks import BlockReader
from krstore.store.container import MemberReader

__all__ = ["Uniform", "UniformConfig"]

GRID, BLOCKS = "network/grid", "latent/samples"
_GRID = struct.Struct("<dd")


class UniformConfig(CodecConfig, frozen=True, kw_only=True):
    """Options of the uniform codec."""

    level: Annotated[int, msgspec.Meta(ge=1, le=22, description="zstd level: higher is smaller and slower")] = 3
    block_samples: Annotated[int, msgspec.Meta(ge=1, le=64, description="samples compressed together")] = 8


class Uniform(Codec[UniformConfig, Source]):
    """Uniform quantisation; the knob is the step, as a share of the source's range."""

    name = "uniform"
    Config: ClassVar = UniformConfig
    presets: ClassVar = {"small": {"level": 19, "block_samples": 64}}

    def fit(self, source: Source, context: FitContext) -> Source:
        """Note where the grid begins and how far the values range."""
        self._low = float(context.stats.minimum.min())
        self._span = float(context.stats.maximum.max()) - self._low or 1.0
        self._progress = context.progress
        return source

    def knob(self, fitted: Source) -> Knob:
        """Return the range of steps."""
        return Knob(low=1e-7, start=1e-2, high=1.0)

    def pack(self, fitted: Source, knob: float, sink: PayloadSink) -> None:
        """Quantise and compress all samples at one step."""
        step = knob * self._span
        sink.write(GRID, _GRID.pack(self._low, step))
        sink.write_blocks(BLOCKS, self.config.block_samples, self._blocks(fitted, step))

    def _blocks(self, source: Source, step: float) -> Iterator[bytes]:
        compressor = zstandard.ZstdCompressor(level=self.config.level)
        size = self.config.block_samples
        with self._progress.task("encode", source.spec.samples) as task:
            for ids, features in chunks(source, size * source.spec.sample_bytes):
                levels = np.rint((features.astype(np.float64) - self._low) / step).astype("<u4")
                yield compressor.compress(_planes(levels).tobytes())
                task.advance(len(ids), step=step)

    @classmethod
    def open(cls, payload: MemberReader, context: OpenContext) -> Decoder:
        """Open the blocks."""
        return _UniformDecoder(payload, context)


class _UniformDecoder(Decoder):
    def __init__(self, payload: MemberReader, context: OpenContext) -> None:
        self._shape, self._dtype = context.spec.shape, numpy_dtype(context.spec.dtype)
        try:
            self._low, self._step = _GRID.unpack(payload.read(GRID))
        except struct.error as error:
            raise CorruptStoreError(f"member {GRID!r} is malformed: {error}") from error
        self._blocks = BlockReader(payload, BLOCKS, context.kept, self._unpack)

    def decode(self, rows: Ids) -> Array:
        return cast(self._low + self._step * self._blocks.read(rows), self._dtype)

    def _unpack(self, blocks: list[bytes], samples: list[int]) -> Array:
        return np.concatenate([self._block(data, n) for data, n in zip(blocks, samples, strict=True)])

    def _block(self, data: bytes, samples: int) -> Array:
        size = 4 * samples * int(np.prod(self._shape))
        try:
            if zstandard.frame_content_size(data) != size:
                raise ValueError(f"{zstandard.frame_content_size(data)} bytes; expected {size}")
            octets = zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
        except (zstandard.ZstdError, ValueError) as error:
            raise CorruptStoreError(f"a block of uniform samples is malformed: {error}") from error
        levels = np.ascontiguousarray(np.frombuffer(octets, np.uint8).reshape(4, -1).T).view("<u4")
        return levels.reshape(samples, *self._shape)


def _planes(levels: Array) -> Array:
    """Bring the lowest bytes of all elements together, then the next: zeros compress to nothing."""
    return levels.reshape(-1, 1).view(np.uint8).T
