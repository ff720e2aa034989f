"""Columns of integers beside the samples (labels, tasks, source IDs), packed small."""

from __future__ import annotations

import struct

import numpy as np
import zstandard

from krstore.errors import CorruptStoreError
from krstore.source import Ids

__all__ = ["pack_column", "unpack_column"]

_HEAD = struct.Struct("<QB")


def pack_column(values: Ids) -> bytes:
    """Pack integers (N,): the distinct values once, then each entry's rank among them in as few bytes as it takes."""
    distinct, ranks = np.unique(values, return_inverse=True)
    width = _width(len(distinct))
    differences = np.diff(distinct, prepend=np.int64(0)).astype("<i8")
    body = differences.tobytes() + ranks.astype(f"<u{width}").tobytes()
    return _HEAD.pack(len(distinct), width) + zstandard.ZstdCompressor(level=19).compress(body)


def _width(distinct: int) -> int:
    """How many bytes a rank among so many values takes."""
    return next(width for width in (1, 2, 4, 8) if distinct <= 1 << (8 * width))


def unpack_column(data: bytes, samples: int, name: str) -> Ids:
    """Undo `pack_column` for a column known to have `samples` entries, one at least.

    Raises:
        CorruptStoreError: the bytes are not such a column.
    """
    try:
        count, width = _HEAD.unpack_from(data)
        if not 1 <= count <= samples or width != _width(count):
            raise ValueError(f"{count} distinct values of {width} bytes for {samples} entries")
        expected = 8 * count + width * samples
        frame = zstandard.get_frame_parameters(data[_HEAD.size :])
        if frame.content_size != expected:
            raise ValueError(f"{frame.content_size} bytes; expected {expected}")
        unpacked = zstandard.ZstdDecompressor().decompress(data[_HEAD.size :], max_output_size=expected)
        distinct = np.cumsum(np.frombuffer(unpacked, "<i8", count))
        ranks = np.frombuffer(unpacked, f"<u{width}", samples, 8 * count)
        if int(ranks.max()) >= count:
            raise ValueError("a rank beyond the distinct values")
    except (struct.error, ValueError, zstandard.ZstdError) as error:
        raise CorruptStoreError(f"column {name!r} is malformed: {error}") from error
    return np.asarray(distinct[ranks], np.int64)
