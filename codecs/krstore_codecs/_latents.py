"""Latents of samples: real vectors spilled to disk while packing, integers in entropy-coded blocks in the store."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

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

__all__ = ["IntegerBlocks", "SpilledRows", "write_integer_blocks"]

ROWS = 4096
CLASSES = 24
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


class _Model(msgspec.Struct, frozen=True, array_like=True):
    """Which of the tables each column uses."""

    columns: bytes
    tables: bytes


def write_integer_blocks(sink: PayloadSink, name: str, rows: SpilledRows, step: float) -> None:
    """Write round(rows / step) as blocks `NAME` and their frequency tables `NAME.tables`.

    Columns that spread alike share a table: one a quarter octave of standard deviation.
    """
    count, total, squares = max(1, rows.count), np.zeros(rows.length), np.zeros(rows.length)
    for chunk in rows.chunks():
        values = _quantise(chunk, step).astype(np.float64)
        total += values.sum(axis=0)
        squares += np.square(values).sum(axis=0)
    spread = np.sqrt(np.maximum(squares / count - np.square(total / count), 1e-6))
    octave = np.round(4 * np.log2(spread)).astype(np.int64)
    classes, column_class = np.unique(octave.clip(octave.max() - CLASSES + 1), return_inverse=True)
    members = [np.flatnonzero(column_class == k) for k in range(len(classes))]
    counts = _histograms(rows, step, members)
    tables = [Table.from_counts(low, histogram) for low, histogram in counts]
    bytes_per_sample = sum(entropy_bytes(histogram) for _, histogram in counts) / count
    model = _Model(column_class.astype(np.uint8).tobytes(), pack_tables(tables))
    sink.write(f"{name}.tables", msgspec.msgpack.encode(model))
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
        try:
            model = msgspec.msgpack.decode(payload.read(f"{name}.tables"), type=_Model)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise CorruptStoreError(f"the tables of {name!r} are malformed: {error}") from error
        self._length, self._tables = length, unpack_tables(model.tables)
        column_class = np.frombuffer(model.columns, np.uint8)
        if len(column_class) != length or column_class.max(initial=0) >= len(self._tables):
            raise CorruptStoreError(f"the tables of {name!r} are for {len(column_class)} columns; expected {length}")
        self._members = [np.flatnonzero(column_class == k) for k in range(len(self._tables))]
        self._blocks = BlockReader(payload, name, samples, self._unpack)

    def read(self, rows: Ids) -> Integers:
        """Return the integers (len(rows), L) of these rows."""
        return self._blocks.read(rows)

    def _unpack(self, blocks: list[bytes], samples: list[int]) -> Array:
        out = np.empty((sum(samples), self._length), np.int32)
        start = 0
        for data, count in zip(blocks, samples, strict=True):
            runs = decode_runs(data, [count * len(columns) for columns in self._members], self._tables)
            for columns, run in zip(self._members, runs, strict=True):
                out[start : start + count, columns] = run.reshape(count, len(columns))
            start += count
        return out


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
