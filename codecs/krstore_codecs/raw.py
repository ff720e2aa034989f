"""raw: lossless; the size and speed floor that every other codec is compared with.

Features after a ReLU are half exact zeros, scattered among floats whose mantissas are noise; compressors of bytes
trip over both. Signal flow, a block of a few samples at a time::

    elements -> mask of non-zero bit patterns                            -> zstd
             -> the others, rotated left by one bit (sign last) -> top byte, the exponent -> zstd
                                                                -> lower bytes, by planes -> zstd where it helps

uint8 samples go through zstd alone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Annotated, ClassVar

import msgspec
import numpy as np
import zstandard

from krstore.codec import Codec, Decoder, FitContext, OpenContext, PayloadSink
from krstore.config import CodecConfig
from krstore.dtypes import numpy_dtype
from krstore.errors import CorruptStoreError
from krstore.source import Array, Ids, Source
from krstore.store.blocks import BlockReader
from krstore.store.container import MemberReader
from krstore_codecs._pieces import pieces

__all__ = ["Raw", "RawConfig"]

BLOCKS = "latent/samples"
_HEAD = struct.Struct("<IIB")


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
            yield _pack_words(samples, compressor)

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
            words = _unpack_words(blocks, [n * self._elements for n in samples], self._dtype.itemsize)
        except (zstandard.ZstdError, ValueError, struct.error) as error:
            raise CorruptStoreError(f"a block of raw samples is malformed: {error}") from error
        return words.view(self._dtype).reshape(sum(samples), *self._shape)


def _pack_words(values: Array, compressor: zstandard.ZstdCompressor) -> bytes:
    """Pack elements of any supported type; see the module's docstring for the flow."""
    words = values.reshape(-1).view(f"<u{values.itemsize}")
    if values.itemsize == 1:
        return compressor.compress(words.tobytes())
    alive = words != 0
    kept = words[alive]
    kept = (kept << 1) | (kept >> (8 * values.itemsize - 1))
    octets = np.ascontiguousarray(kept).view(np.uint8).reshape(-1, values.itemsize)
    mask = compressor.compress(np.packbits(alive).tobytes())
    top = compressor.compress(octets[:, -1].tobytes())
    planes = octets[:, :-1].T.tobytes()
    packed = compressor.compress(planes)
    worth_it = len(packed) < 0.98 * len(planes)
    return _HEAD.pack(len(mask), len(top), worth_it) + mask + top + (packed if worth_it else planes)


def _unpack_words(blocks: list[bytes], counts: list[int], itemsize: int) -> Array:
    """Undo `_pack_words` for blocks of `counts` elements, all at once: NumPy is slow on small pieces.

    Raises:
        ValueError, zstandard.ZstdError, struct.error: the bytes are malformed.
    """
    zstd = zstandard.ZstdDecompressor()
    if itemsize == 1:
        joined = b"".join(_inflate(zstd, data, count) for data, count in zip(blocks, counts, strict=True))
        return np.frombuffer(joined, np.uint8)
    alive = np.empty(sum(counts), bool)
    octets = np.empty((sum(counts), itemsize), np.uint8)
    start = kept = 0
    for data, count in zip(blocks, counts, strict=True):
        mask_size, top_size, packed = _HEAD.unpack_from(data)
        body = memoryview(data)[_HEAD.size :]
        mask = np.frombuffer(_inflate(zstd, body[:mask_size], -(-count // 8)), np.uint8)
        alive[start : start + count] = np.unpackbits(mask, count=count)
        own = int(np.count_nonzero(alive[start : start + count]))
        rest = body[mask_size + top_size :]
        planes = _inflate(zstd, rest, own * (itemsize - 1)) if packed else rest
        top = np.frombuffer(_inflate(zstd, body[mask_size : mask_size + top_size], own), np.uint8)
        for plane, octet in enumerate([*np.frombuffer(planes, np.uint8).reshape(itemsize - 1, own), top]):
            octets[kept : kept + own, plane] = octet
        start, kept = start + count, kept + own
    words = octets[:kept].view(f"<u{itemsize}")[:, 0]
    out = np.zeros(sum(counts), words.dtype)
    out[np.flatnonzero(alive)] = (words >> 1) | (words << (8 * itemsize - 1))
    return out


def _inflate(zstd: zstandard.ZstdDecompressor, data: bytes | memoryview, size: int) -> bytes:
    if zstandard.frame_content_size(data) != size:
        raise ValueError(f"a part of {zstandard.frame_content_size(data)} bytes; expected {size}")
    return zstd.decompress(data, max_output_size=size)
