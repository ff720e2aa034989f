"""raw: lossless; the size and speed floor that every other codec is compared with.

A few samples a block, whose elements are packed as `krstore_codecs._words` does it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Annotated, ClassVar

import msgspec
import zstandard

from krstore.codec import Codec, Decoder, FitContext, OpenContext, PayloadSink
from krstore.config import CodecConfig
from krstore.dtypes import numpy_dtype
from krstore.errors import CorruptStoreError
from krstore.source import Array, Ids, Source
from krstore.store.blocks import BlockReader
from krstore.store.container import MemberReader
from krstore_codecs._pieces import pieces
from krstore_codecs._words import pack_words, unpack_words

__all__ = ["Raw", "RawConfig"]

BLOCKS = "latent/samples"


class RawConfig(CodecConfig, frozen=True, kw_only=True):
    """Options of the raw codec."""

    level: Annotated[int, msgspec.Meta(ge=1, le=22, description="zstd level: higher is smaller and slower")] = 12
    block_samples: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=4096)] | None,
        msgspec.Meta(description="samples compressed together; none: 3, and of small samples up to 16"),
    ] = None


class Raw(Codec[RawConfig, Source]):
    """Zero mask, exponents and mantissas apart, through zstd, a few samples a block."""

    name = "raw"
    lossless = True
    Config: ClassVar = RawConfig

    def fit(self, source: Source, context: FitContext) -> Source:
        """Return the source: there is nothing to learn."""
        self._progress = context.progress
        return source

    def pack(self, fitted: Source, knob: float, sink: PayloadSink) -> None:
        """Compress all samples; the knob has no meaning."""
        sink.write_blocks(BLOCKS, self._block_samples(fitted), self._blocks(fitted))

    def settled(self, fitted: Source) -> RawConfig:
        """Return the config with the samples of a block filled in."""
        return msgspec.structs.replace(self.config, block_samples=self._block_samples(fitted))

    def _block_samples(self, source: Source) -> int:
        return self.config.block_samples or min(16, max(3, (16 << 10) // source.spec.sample_bytes))

    def _blocks(self, source: Source) -> Iterator[bytes]:
        compressor = zstandard.ZstdCompressor(level=self.config.level)
        for samples in pieces(source, self._block_samples(source), self._progress):
            yield pack_words(samples, compressor)

    @classmethod
    def open(cls, payload: MemberReader, context: OpenContext) -> Decoder:
        """Open the blocks."""
        return _RawDecoder(payload, context)


class _RawDecoder(Decoder):
    def __init__(self, payload: MemberReader, context: OpenContext) -> None:
        self._shape, self._dtype = context.spec.shape, numpy_dtype(context.spec.dtype)
        self._elements = context.spec.elements
        self._blocks = BlockReader(payload, BLOCKS, context.kept, self._unpack)

    def decode(self, rows: Ids) -> Array:
        return self._blocks.read(rows)

    def cache(self, limit: int) -> None:
        self._blocks.cache(limit)

    def _unpack(self, blocks: list[bytes], samples: list[int]) -> Array:
        try:
            words = unpack_words(blocks, [n * self._elements for n in samples], self._dtype.itemsize)
        except (zstandard.ZstdError, ValueError, struct.error) as error:
            raise CorruptStoreError(f"a block of raw samples is malformed: {error}") from error
        return words.view(self._dtype).reshape(sum(samples), *self._shape)
