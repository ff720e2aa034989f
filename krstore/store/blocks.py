"""Per-sample payload in blocks: an index, a checksum a block, and scattered reads that touch only what they need.

Two members make one sequence of blocks: `NAME` holds the blocks' bytes one after another, `NAME.index` how many
samples a block has, every block's size, and its CRC-32. One damaged block is named; the rest stays readable.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from krstore.errors import CorruptStoreError, KrstoreError
from krstore.source import Array, Ids
from krstore.store.container import MemberReader

__all__ = ["BlockBytes", "BlockReader", "block_index", "check_blocks", "samples_per_block"]

THREADS = min(4, os.cpu_count() or 1)
GROUP_SAMPLES = 128
MAX_BLOCK_SAMPLES = 4096

_HEAD = struct.Struct("<IIB")
_WIDTHS = {2: "<u2", 4: "<u4"}


def samples_per_block(bytes_per_sample: float) -> int:
    """Return how many samples to put into a block: about 4 kB of them, from 4 (large samples) to 64 (tiny ones)."""
    return int(min(64, max(4, round(4096 / max(1.0, bytes_per_sample)))))


def block_index(block_samples: int, sizes: list[int], checksums: list[int]) -> bytes:
    """Return the bytes of an index member.

    Raises:
        KrstoreError: a block of no samples, of too many, or of 4 GiB or more.
    """
    largest = max(sizes, default=0)
    if not 1 <= block_samples <= MAX_BLOCK_SAMPLES or largest >= 1 << 32:
        raise KrstoreError(
            f"blocks of {block_samples} samples and up to {largest} bytes; a block has 1 to {MAX_BLOCK_SAMPLES} "
            "samples and less than 4 GiB: choose smaller blocks"
        )
    width = 2 if largest < 1 << 16 else 4
    head = _HEAD.pack(block_samples, len(sizes), width)
    return head + np.array(sizes, _WIDTHS[width]).tobytes() + np.array(checksums, "<u4").tobytes()


class BlockBytes:
    """The checked bytes of the blocks of a sequence.

    Args:
        payload: where the members are.
        name: the block member; its index is `NAME.index`.
        samples: how many samples the sequence holds.

    Raises:
        CorruptStoreError: the index contradicts the member's size or the number of samples.
    """

    def __init__(self, payload: MemberReader, name: str, samples: int) -> None:
        self._payload, self._name, self._samples = payload, name, samples
        index = payload.read(f"{name}.index")
        try:
            per_block, count, width = _HEAD.unpack_from(index)
        except struct.error as error:
            raise CorruptStoreError(f"the index of {name!r} is cut: {error}") from error
        if (
            width not in _WIDTHS
            or len(index) != _HEAD.size + count * (width + 4)
            or not 1 <= per_block <= MAX_BLOCK_SAMPLES
        ):
            raise CorruptStoreError(
                f"the index of {name!r} is malformed: {len(index)} bytes for {count} blocks of {per_block} "
                f"samples (at most {MAX_BLOCK_SAMPLES}) with sizes of {width} bytes"
            )
        self.per_block = int(per_block)
        sizes = np.frombuffer(index, _WIDTHS[width], count, _HEAD.size).astype(np.int64)
        self._checksums = np.frombuffer(index, "<u4", count, _HEAD.size + count * width)
        self._ends = np.cumsum(sizes)
        self._starts = self._ends - sizes
        if count != -(-samples // per_block) or sizes.sum() != payload.size(name):
            raise CorruptStoreError(
                f"the index of {name!r} lists {count} blocks of {per_block} samples, {sizes.sum()} bytes; "
                f"expected {samples} samples and {payload.size(name)} bytes"
            )

    def __len__(self) -> int:
        return len(self._ends)

    def samples(self, number: int) -> int:
        """Return how many samples a block holds."""
        return min(self.per_block, self._samples - number * self.per_block)

    def read(self, number: int) -> bytes:
        """Return one block's bytes.

        Raises:
            CorruptStoreError: they do not match their checksum; the block and its samples are named.
        """
        start, end = int(self._starts[number]), int(self._ends[number])
        data = self._payload.read_at(self._name, start, end - start)
        if zlib.crc32(data) != self._checksums[number]:
            first = number * self.per_block
            raise CorruptStoreError(
                f"block {number} of {self._name!r} (samples {first} to {first + self.samples(number) - 1}) does not "
                "match its checksum; the other blocks are readable"
            )
        return data


class _Cache:
    """The unpacked rows of the first samples, as many as a number of bytes holds; those that have been read."""

    def __init__(self, limit: int) -> None:
        self._limit, self._lock = limit, threading.Lock()
        self.values: Array = np.empty(0)
        self._filled = np.zeros(0, bool)

    def resized(self, limit: int, samples: int) -> _Cache:
        """Return a cache of another size with what of this one fits."""
        found = _Cache(limit)
        with self._lock:
            if len(self._filled):
                found._allocate(self.values[:1], samples)
                both = min(len(found._filled), len(self._filled))
                found.values[:both], found._filled[:both] = self.values[:both], self._filled[:both]
        return found

    def has(self, ids: Ids) -> NDArray[np.bool_]:
        """Return which of these samples (n,) are there."""
        known = ids < len(self._filled)
        known[known] = self._filled[ids[known]]
        return known

    def add(self, ids: Ids, rows: Array, samples: int) -> None:
        """Keep those of these rows (n, ...) that there is room for; `samples` is how many there can be in all."""
        if not self._limit or not len(rows):
            return
        with self._lock:
            if not len(self._filled):
                self._allocate(rows, samples)
        inside = ids < len(self._filled)
        self.values[ids[inside]] = rows[inside]
        self._filled[ids[inside]] = True

    def _allocate(self, like: Array, samples: int) -> None:
        room = min(samples, self._limit // max(1, like[0].nbytes))
        self.values = np.empty((room, *like.shape[1:]), like.dtype)
        self._filled = np.zeros(room, bool)


class BlockReader:
    """Decodes the samples of given IDs out of a block sequence, touching only their blocks.

    Args:
        payload, name, samples: as for `BlockBytes`.
        unpack: turns (blocks' bytes, their numbers of samples) into an array (all their samples, ...); called from
            several threads at once.
    """

    def __init__(
        self, payload: MemberReader, name: str, samples: int, unpack: Callable[[list[bytes], list[int]], Array]
    ) -> None:
        self._blocks = BlockBytes(payload, name, samples)
        self._unpack = unpack
        self._samples, self._cache = samples, _Cache(0)

    def cache(self, limit: int) -> None:
        """Keep what is unpacked, up to `limit` bytes; 0 forgets it."""
        self._cache = self._cache.resized(limit, self._samples)

    def read(self, ids: Ids) -> Array:
        """Return what was stored for these samples (len(ids), ...), in this order."""
        cache = self._cache
        known = cache.has(ids)
        if len(ids) and known.all():
            return cache.values[ids]
        fresh = self._unpacked(ids[~known], cache)
        if not known.any():
            return fresh
        values = np.empty((len(ids), *fresh.shape[1:]), fresh.dtype)
        values[known], values[~known] = cache.values[ids[known]], fresh
        return values

    def _unpacked(self, ids: Ids, cache: _Cache) -> Array:
        """Unpack the blocks of these samples, offer all of their samples to the cache, and return the wanted ones."""
        per_block = self._blocks.per_block
        numbers, within = np.divmod(ids, per_block)
        wanted, place = np.unique(numbers, return_inverse=True)
        step = max(1, GROUP_SAMPLES // per_block)
        groups = [wanted[start : start + step] for start in range(0, len(wanted), step)]
        decoded = self._group(groups[0]) if groups else self._group(np.zeros(1, np.int64))[:0]
        if len(groups) > 1:
            decoded = self._rest(decoded, groups)
        whole = (wanted[:, None] * per_block + np.arange(per_block)).reshape(-1)
        cache.add(whole[whole < self._samples], decoded, self._samples)
        rows = place * per_block + within
        return decoded if np.array_equal(rows, np.arange(len(decoded))) else decoded[rows]

    def _rest(self, first: Array, groups: list[Ids]) -> Array:
        """Return the first group's samples with those of the others behind them."""
        sizes = [sum(self._blocks.samples(int(number)) for number in group) for group in groups]
        ends = np.cumsum(sizes)
        out = np.empty((ends[-1], *first.shape[1:]), first.dtype)
        out[: len(first)] = first

        def fill(group: Ids, end: int, size: int) -> None:
            out[end - size : end] = self._group(group)

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(fill, groups[1:], ends[1:], sizes[1:]))
        return out

    def _group(self, numbers: Ids) -> Array:
        blocks = [self._blocks.read(int(number)) for number in numbers]
        return self._unpack(blocks, [self._blocks.samples(int(number)) for number in numbers])


def check_blocks(payload: MemberReader, name: str, samples: int) -> None:
    """Read every block of a sequence.

    Raises:
        CorruptStoreError: names the first damaged block and its samples.
    """
    blocks = BlockBytes(payload, name, samples)
    for number in range(len(blocks)):
        blocks.read(number)
