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
from krstore.errors import CorruptStoreError, OutputError
from krstore.source import Array, Ids
from krstore.store.blocks import BlockReader, samples_per_block
from krstore.store.container import MemberReader

__all__ = ["LARGEST", "IntegerBlocks", "SpilledRows", "spread_classes", "write_integer_blocks"]

ROWS = 4096
CLASSES = 64
LARGEST = MAX_SYMBOLS // 2 - 1


class SpilledRows:
    """Float rows (N, L) in an anonymous temporary file: memory stays bounded whatever N is."""

    def __init__(self, length: int) -> None:
        self.length, self.count, self._largest = length, 0, 0.0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the rows

    def __del__(self) -> None:
        self._file.close()

    def append(self, rows: NDArray[np.float32]) -> None:
        """Add rows (n, L).

        Raises:
            OutputError: the temporary folder is full.
        """
        try:
            self._file.write(np.ascontiguousarray(rows, np.float32).tobytes())
            self._file.flush()
        except OSError as error:
            raise OutputError(
                f"cannot write {4 * self.length * (self.count + len(rows)):,} bytes of coefficients into the temporary "
                f"folder {tempfile.gettempdir()}: {error.strerror}; name a larger one in the environment's TMPDIR"
            ) from error
        self.count += len(rows)
        self._largest = max(self._largest, float(np.abs(rows).max(initial=0)))

    @property
    def finest(self) -> float:
        """Return the finest step of which tables hold all multiples that the rows reach."""
        return self._largest / LARGEST

    def chunks(self, rows: int = ROWS) -> Iterator[NDArray[np.float32]]:
        """Yield all rows in order, `rows` at a time."""
        self._file.seek(0)
        for start in range(0, self.count, rows):
            data = self._file.read(4 * self.length * min(rows, self.count - start))
            yield np.frombuffer(data, np.float32).reshape(-1, self.length)


class _Packed(msgspec.Struct, frozen=True, array_like=True):
    length: int
    tables: bytes
    used: bytes
    offsets: bytes | None = None


@dataclass(frozen=True)
class _Columns:
    """The columns of each table, and what is taken off each column; one that is then of zeros is in no table.

    Attributes:
        members: the columns of each table, ascending.
        tables: as many.
        offsets: of each column (L,).
    """

    members: list[Ids]
    tables: list[Table]
    offsets: Integers

    @property
    def dtype(self) -> np.dtype[Any]:
        """The narrowest signed type that holds every value that the tables and offsets can make."""
        low, high = int(self.offsets.min(initial=0)), int(self.offsets.max(initial=0))
        for columns, table in zip(self.members, self.tables, strict=True):
            own = self.offsets[columns]
            low = min(low, int(own.min(initial=0)) + table.low)
            high = max(high, int(own.max(initial=0)) + table.low + len(table.counts) - 1)
        return np.min_scalar_type(min(low, -high - 1))

    def to_bytes(self) -> bytes:
        """Return tables, which of them each column uses, and offsets, the last two as streams with their own tables."""
        used = np.full(len(self.offsets), len(self.members), np.int32)
        for number, columns in enumerate(self.members):
            used[columns] = number
        own = [Table.of(used), *([Table.of(self.offsets)] if self.offsets.any() else [])]
        streams = [encode_runs([run], [table]) for run, table in zip((used, self.offsets), own, strict=False)]
        return msgspec.msgpack.encode(_Packed(len(used), pack_tables([*own, *self.tables]), *streams))

    @classmethod
    def from_bytes(cls, data: bytes, length: int) -> _Columns:
        """Undo `to_bytes`.

        Raises:
            CorruptStoreError: the bytes are malformed, or for another number of columns.
        """
        try:
            packed = msgspec.msgpack.decode(data, type=_Packed)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise CorruptStoreError(f"the tables of columns are malformed: {error}") from error
        tables, own = unpack_tables(packed.tables), 1 if packed.offsets is None else 2
        if packed.length != length or len(tables) < own:
            raise CorruptStoreError(f"{len(tables)} tables for {packed.length} columns; expected {length}")
        (used,) = decode_runs(packed.used, [length], tables[:1])
        offsets = np.zeros(length, np.int32)
        if packed.offsets is not None:
            (offsets,) = decode_runs(packed.offsets, [length], tables[1:2])
        if used.min(initial=0) < 0 or used.max(initial=0) > len(tables) - own:
            raise CorruptStoreError(f"columns use tables {used.min()} to {used.max()} of {len(tables) - own}")
        return cls(_members(used, len(tables) - own), tables[own:], offsets)


def spread_classes(spread: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the class of each column by its standard deviation, one a quarter octave, from 0 (the smallest) on."""
    octave = np.round(4 * np.log2(np.maximum(spread, 1e-3))).astype(np.int64)
    return np.asarray(np.unique(octave.clip(octave.max(initial=0) - CLASSES + 1), return_inverse=True)[1], np.int64)


def write_integer_blocks(sink: PayloadSink, name: str, rows: SpilledRows, step: float) -> None:
    """Write round(rows / step) as blocks `NAME` and their frequency tables `NAME.columns`.

    A column's mean is taken off, to the nearest integer, where tables hold what that leaves. Columns that spread alike
    share a table: one a quarter octave of standard deviation. Those of one value alone take no bytes.
    """
    count = max(1, rows.count)
    total, squares, largest = np.zeros(rows.length), np.zeros(rows.length), np.zeros(rows.length)
    for chunk in rows.chunks():
        values = _quantise(chunk, step).astype(np.float64)
        total += values.sum(axis=0)
        squares += np.square(values).sum(axis=0)
        largest = np.maximum(largest, np.abs(values).max(axis=0, initial=0))
    offsets = np.where(2 * largest <= LARGEST, np.rint(total / count), 0).astype(np.int32)
    spread = np.sqrt(np.maximum(squares / count - np.square(total / count), 0))
    alive = np.flatnonzero(squares - 2.0 * offsets * total + count * np.square(offsets, dtype=np.float64))
    classes = spread_classes(spread[alive])
    members = [alive[classes == k] for k in range(int(classes.max(initial=-1)) + 1)]
    counts = _histograms(rows, step, offsets, members)
    tables = [Table.from_counts(low, histogram) for low, histogram in counts]
    bytes_per_sample = sum(entropy_bytes(histogram) for _, histogram in counts) / count
    sink.write(f"{name}.columns", _Columns(members, tables, offsets).to_bytes())
    per_block = samples_per_block(bytes_per_sample)

    def blocks() -> Iterator[bytes]:
        for chunk in rows.chunks(ROWS // per_block * per_block):
            integers = _quantise(chunk, step) - offsets
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
        self._members, self._tables, self._offsets = columns.members, columns.tables, columns.offsets
        self._dtype = columns.dtype
        self._blocks = BlockReader(payload, name, samples, self._unpack)

    def read(self, rows: Ids) -> Integers:
        """Return the integers (len(rows), L) of these rows, in the narrowest signed type for their tables."""
        return self._blocks.read(rows)

    def cache(self, limit: int) -> None:
        """See `krstore.store.blocks.BlockReader.cache`."""
        self._blocks.cache(limit)

    def _unpack(self, blocks: list[bytes], samples: list[int]) -> Array:
        out = np.zeros((sum(samples), self._length), self._dtype)
        if self._offsets.any():
            out += self._offsets.astype(self._dtype)
        start = 0
        for data, count in zip(blocks, samples, strict=True):
            runs = decode_runs(data, [count * len(columns) for columns in self._members], self._tables)
            for columns, run in zip(self._members, runs, strict=True):
                out[start : start + count, columns] += run.reshape(count, len(columns)).astype(self._dtype)
            start += count
        return out


def _members(used: NDArray[Any], tables: int) -> list[Ids]:
    return [np.flatnonzero(used == number) for number in range(tables)]


def _quantise(values: NDArray[np.float32], step: float) -> Integers:
    return np.asarray(np.rint(values / np.float32(step)).clip(-LARGEST, LARGEST), np.int32)


def _histograms(
    rows: SpilledRows, step: float, offsets: Integers, members: list[Ids]
) -> list[tuple[int, NDArray[np.int64]]]:
    """Return (lowest value, counts from there) over each set of columns."""
    low, high = np.full(rows.length, np.iinfo(np.int32).max), np.full(rows.length, np.iinfo(np.int32).min)
    for chunk in rows.chunks():
        integers = _quantise(chunk, step) - offsets
        low, high = np.minimum(low, integers.min(axis=0)), np.maximum(high, integers.max(axis=0))
    lows = [int(low[columns].min()) for columns in members]
    counts = [
        np.zeros(int(high[columns].max()) - first + 1, np.int64) for columns, first in zip(members, lows, strict=True)
    ]
    for chunk in rows.chunks():
        integers = _quantise(chunk, step) - offsets
        for columns, first, histogram in zip(members, lows, counts, strict=True):
            histogram += np.bincount((integers[:, columns] - first).reshape(-1), minlength=len(histogram))
    return list(zip(lows, counts, strict=True))
