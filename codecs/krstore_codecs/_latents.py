"""Latents of samples: real vectors spilled to disk while packing, integers in entropy-coded blocks in the store."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from krstore.codec import PayloadSink
from krstore.entropy import (
    MAX_SYMBOLS,
    Integers,
    Table,
    decode_runs,
    encode_runs,
    entropy_bytes,
    pack_tables,
    unpack_tables,
)
from krstore.errors import CorruptStoreError
from krstore.source import Array, Ids
from krstore.store.blocks import BlockReader, samples_per_block
from krstore.store.container import MemberReader

__all__ = ["IntegerBlocks", "SpilledRows", "spread_classes", "write_integer_blocks"]

ROWS = 4096
CLASSES = 64
LARGEST = MAX_SYMBOLS // 2 - 1


class SpilledRows:
    """Float rows (N, L) in an anonymous temporary file: memory stays bounded whatever N is."""

    def __init__(self, length: int) -> None:
        self.length, self.count = length, 0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the rows

    def __del__(self) -> None:
        self._file.close()

    def append(self, rows: NDArray[np.float32]) -> None:
        """Add rows (n, L)."""
        self._file.write(np.ascontiguousarray(rows, np.float32).tobytes())
        self.count += len(rows)

    def chunks(self, rows: int = ROWS) -> Iterator[NDArray[np.float32]]:
        """Yield all rows in order, `rows` at a time."""
        self._file.seek(0)
        for start in range(0, self.count, rows):
            data = self._file.read(4 * self.length * min(rows, self.count - start))
            yield np.frombuffer(data, np.float32).reshape(-1, self.length)


@dataclass(frozen=True)
class _Columns:
    """The columns of each table; a column of zeros is in none.

    Attributes:
        members: the columns of each table, ascending.
        tables: as many.
    """

    length: int
    members: list[Ids]
    tables: list[Table]

    def to_bytes(self) -> bytes:
        """Return the tables and which each column uses, the latter as a stream with a table of its own."""
        used = np.full(self.length, len(self.members), np.int32)
        for number, columns in enumerate(self.members):
            used[columns] = number
        table = Table.of(used)
        return msgspec.msgpack.encode([self.length, pack_tables([table, *self.tables]), encode_runs([used], [table])])

    @classmethod
    def from_bytes(cls, data: bytes, length: int) -> _Columns:
        """Undo `to_bytes`.

        Raises:
            CorruptStoreError: the bytes are malformed, or for another number of columns.
        """
        try:
            own, packed, stream = msgspec.msgpack.decode(data, type=tuple[int, bytes, bytes])
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise CorruptStoreError(f"the tables of columns are malformed: {error}") from error
        tables = unpack_tables(packed)
        if own != length or not tables:
            raise CorruptStoreError(f"{len(tables)} tables for {own} columns; expected {length}")
        (used,) = decode_runs(stream, [length], tables[:1])
        if used.min(initial=0) < 0 or used.max(initial=0) >= len(tables):
            raise CorruptStoreError(f"columns use tables {used.min()} to {used.max()} of {len(tables) - 1}")
        return cls(length, _members(used, len(tables) - 1), tables[1:])


def spread_classes(spread: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the class of each column by its standard deviation, one a quarter octave, from 0 (the smallest) on."""
    octave = np.round(4 * np.log2(np.maximum(spread, 1e-3))).astype(np.int64)
    return np.asarray(np.unique(octave.clip(octave.max(initial=0) - CLASSES + 1), return_inverse=True)[1], np.int64)


def write_integer_blocks(sink: PayloadSink, name: str, rows: SpilledRows, step: float) -> None:
    """Write round(rows / step) as blocks `NAME` and their frequency tables `NAME.columns`.

    Columns that spread alike share a table: one a quarter octave of standard deviation. Those of nothing but zeros
    take no bytes.
    """
    count, total, squares = max(1, rows.count), np.zeros(rows.length), np.zeros(rows.length)
    for chunk in rows.chunks():
        values = _quantise(chunk, step).astype(np.float64)
        total += values.sum(axis=0)
        squares += np.square(values).sum(axis=0)
    spread = np.sqrt(np.maximum(squares / count - np.square(total / count), 0))
    alive = np.flatnonzero(squares)
    classes = spread_classes(spread[alive])
    members = [alive[classes == k] for k in range(int(classes.max(initial=-1)) + 1)]
    counts = _histograms(rows, step, members)
    tables = [Table.from_counts(low, histogram) for low, histogram in counts]
    bytes_per_sample = sum(entropy_bytes(histogram) for _, histogram in counts) / count
    sink.write(f"{name}.columns", _Columns(rows.length, members, tables).to_bytes())
    per_block = samples_per_block(bytes_per_sample)

    def blocks() -> Iterator[bytes]:
        for chunk in rows.chunks(ROWS // per_block * per_block):
            integers = _quantise(chunk, step)
            for start in range(0, len(integers), per_block):
                block = integers[start : start + per_block]
                yield encode_runs([block[:, columns] for columns in members], tables)

    sink.write_blocks(name, per_block, blocks())


class IntegerBlocks:
    """Reads what `write_integer_blocks` wrote.

    Args:
        samples, length: N and L.

    Raises:
        CorruptStoreError: the tables are malformed.
    """

    def __init__(self, payload: MemberReader, name: str, samples: int, length: int) -> None:
        self._length = length
        columns = _Columns.from_bytes(payload.read(f"{name}.columns"), length)
        self._members, self._tables = columns.members, columns.tables
        self._blocks = BlockReader(payload, name, samples, self._unpack)

    def read(self, rows: Ids) -> Integers:
        """Return the integers (len(rows), L) of these rows."""
        return self._blocks.read(rows)

    def _unpack(self, blocks: list[bytes], samples: list[int]) -> Array:
        out = np.zeros((sum(samples), self._length), np.int32)
        start = 0
        for data, count in zip(blocks, samples, strict=True):
            runs = decode_runs(data, [count * len(columns) for columns in self._members], self._tables)
            for columns, run in zip(self._members, runs, strict=True):
                out[start : start + count, columns] = run.reshape(count, len(columns))
            start += count
        return out


def _members(used: NDArray[Any], tables: int) -> list[Ids]:
    return [np.flatnonzero(used == number) for number in range(tables)]


def _quantise(values: NDArray[np.float32], step: float) -> Integers:
    return np.asarray(np.rint(values / np.float32(step)).clip(-LARGEST, LARGEST), np.int32)


def _histograms(rows: SpilledRows, step: float, members: list[Ids]) -> list[tuple[int, NDArray[np.int64]]]:
    """Return (lowest value, counts from there) over each set of columns."""
    low, high = np.full(rows.length, np.iinfo(np.int32).max), np.full(rows.length, np.iinfo(np.int32).min)
    for chunk in rows.chunks():
        integers = _quantise(chunk, step)
        low, high = np.minimum(low, integers.min(axis=0)), np.maximum(high, integers.max(axis=0))
    lows = [int(low[columns].min()) for columns in members]
    counts = [
        np.zeros(int(high[columns].max()) - first + 1, np.int64) for columns, first in zip(members, lows, strict=True)
    ]
    for chunk in rows.chunks():
        integers = _quantise(chunk, step)
        for columns, first, histogram in zip(members, lows, counts, strict=True):
            histogram += np.bincount((integers[:, columns] - first).reshape(-1), minlength=len(histogram))
    return list(zip(lows, counts, strict=True))
