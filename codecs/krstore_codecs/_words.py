"""Elements of any supported type as bytes, without loss.

Features after a ReLU, and pruned weights, are half exact zeros, scattered among floats whose mantissas are noise;
compressors of bytes trip over both. Signal flow::

    elements -> mask of non-zero bit patterns                            -> zstd
             -> the others, rotated left by one bit (sign last) -> top byte, the exponent -> zstd
                                                                -> lower bytes, by planes -> zstd where it helps

Elements of one byte go through zstd alone.
"""

from __future__ import annotations

import struct

import numpy as np
import zstandard

from krstore.source import Array

__all__ = ["pack_words", "unpack_words"]

_HEAD = struct.Struct("<IIB")


def pack_words(values: Array, compressor: zstandard.ZstdCompressor) -> bytes:
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


def unpack_words(blocks: list[bytes], counts: list[int], itemsize: int) -> Array:
    """Undo `pack_words` for blocks of `counts` elements, all at once: NumPy is slow on small pieces.

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
