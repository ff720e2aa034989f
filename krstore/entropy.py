"""Entropy coding of integers with static frequency tables, for codecs.

Tables are counts of what is coded, made when packing and stored: an entropy model never depends on a float that
another machine might compute differently. The coder is constriction's ANS, which works in integers.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import constriction
import numpy as np
import zstandard
from numpy.typing import NDArray

from krstore.errors import CorruptStoreError

__all__ = [
    "MAX_SYMBOLS",
    "Integers",
    "Table",
    "decode_runs",
    "encode_runs",
    "entropy_bytes",
    "pack_tables",
    "unpack_tables",
]

Integers = NDArray[np.int32]

MAX_SYMBOLS = 1 << 16
_MAX_COUNT = (1 << 16) - 1
_PIECE = 1 << 20


@dataclass(frozen=True)
class Table:
    """Frequencies of the integers low, low + 1, ..., low + len(counts) - 1.

    Attributes:
        counts: uint16; a symbol that occurs has at least 1, and may still be coded (dearly) with 0.
    """

    low: int
    counts: NDArray[np.uint16]

    @classmethod
    def of(cls, values: Integers) -> Table:
        """Count values of any shape.

        Raises:
            ValueError: the values span more than `MAX_SYMBOLS`.
        """
        if values.size == 0:
            return cls(0, np.ones(1, np.uint16))
        low, high = int(values.min()), int(values.max())
        if high - low >= MAX_SYMBOLS:
            raise ValueError(
                f"values from {low} to {high} span more than {MAX_SYMBOLS} symbols; quantise more coarsely"
            )
        return cls.from_counts(low, np.bincount((values.reshape(-1) - low).astype(np.int64)))

    @classmethod
    def from_counts(cls, low: int, counts: NDArray[np.int64]) -> Table:
        """Scale counts so that they fit 16 bits, none that occurs becoming 0."""
        top = int(counts.max())
        if top > _MAX_COUNT:
            counts = np.where(counts > 0, np.maximum(1, counts * _MAX_COUNT // top), 0)
        return cls(low, counts.astype(np.uint16))

    @property
    def model(self) -> constriction.stream.model.Categorical:
        """The table as constriction's model; one that has a single symbol gets a second that never occurs."""
        counts = self.counts.astype(np.float64)
        return constriction.stream.model.Categorical(np.append(counts, 0.0)[: max(2, len(counts))], perfect=False)


def entropy_bytes(counts: NDArray[np.int64]) -> float:
    """Return the bytes that coding this histogram takes, without its table (order-0 entropy)."""
    alive = counts[counts > 0].astype(np.float64)
    total = alive.sum()
    return float((alive * np.log2(total / alive)).sum() / 8) if total else 0.0


def encode_runs(runs: Sequence[Integers], tables: Sequence[Table]) -> bytes:
    """Code runs of integers, each with its own table, into one stream of 32-bit little-endian words."""
    coder = constriction.stream.stack.AnsCoder()
    for values, table in zip(reversed(runs), reversed(tables), strict=True):
        coder.encode_reverse((values.reshape(-1) - table.low).astype(np.int32), table.model)
    return bytes(coder.get_compressed().astype("<u4").tobytes())


def decode_runs(data: bytes, sizes: Sequence[int], tables: Sequence[Table]) -> list[Integers]:
    """Undo `encode_runs`: return one array of each of these sizes.

    Raises:
        CorruptStoreError: the bytes are no such stream.
    """
    try:
        coder = constriction.stream.stack.AnsCoder(np.frombuffer(data, "<u4").astype(np.uint32))
        runs = [np.empty(size, np.int32) for size in sizes]
        for run, table in zip(runs, tables, strict=True):
            model = table.model
            for start in range(0, len(run), _PIECE):  # the coder would abort the process if it got no memory
                piece = run[start : start + _PIECE]
                piece[:] = coder.decode(model, len(piece))
                piece += table.low
        return runs
    except ValueError as error:
        raise CorruptStoreError(f"an entropy-coded stream of {len(data)} bytes is malformed: {error}") from error


def pack_tables(tables: Sequence[Table]) -> bytes:
    """Pack tables into bytes."""
    lows = np.array([t.low for t in tables], "<i4")
    sizes = np.array([len(t.counts) for t in tables], "<u4")
    counts = np.concatenate([t.counts for t in tables]) if tables else np.empty(0, np.uint16)
    low_high = counts.astype("<u2").view(np.uint8).reshape(-1, 2).T
    body = zstandard.ZstdCompressor(level=19).compress(lows.tobytes() + sizes.tobytes() + low_high.tobytes())
    return struct.pack("<I", len(tables)) + body


def unpack_tables(data: bytes, limit: int = 1 << 28) -> list[Table]:
    """Undo `pack_tables`.

    Raises:
        CorruptStoreError: the bytes are no tables, or would unpack to more than `limit` bytes.
    """
    try:
        (count,) = struct.unpack_from("<I", data)
        size = zstandard.frame_content_size(data[4:])
        if not 8 * count <= size <= limit:
            raise ValueError(f"{count} tables in {size} bytes")
        body = zstandard.ZstdDecompressor().decompress(data[4:], max_output_size=size)
        lows, sizes = np.frombuffer(body, "<i4", count), np.frombuffer(body, "<u4", count, 4 * count).astype(np.int64)
        low_high = np.frombuffer(body, np.uint8, offset=8 * count)
        if len(low_high) != 2 * sizes.sum() or (sizes < 1).any() or (sizes > MAX_SYMBOLS).any():
            raise ValueError("the tables' sizes do not add up")
        counts = np.ascontiguousarray(low_high.reshape(2, -1).T).view("<u2")[:, 0]
        parts = np.split(counts, np.cumsum(sizes)[:-1]) if count else []
        if any(not part.any() for part in parts):
            raise ValueError("a table without a symbol")
        return [Table(int(low), part.astype(np.uint16)) for low, part in zip(lows, parts, strict=True)]
    except (struct.error, ValueError, zstandard.ZstdError) as error:
        raise CorruptStoreError(f"frequency tables of {len(data)} bytes are malformed: {error}") from error
