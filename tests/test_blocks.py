"""Blocks of samples: an index, scattered reads that touch only their blocks, damage that is named."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from krstore.errors import CorruptStoreError, KrstoreError
from krstore.source import Array
from krstore.store.blocks import BlockBytes, BlockReader, block_index, check_blocks, samples_per_block


class Members:
    """Members in memory, which remember what was read."""

    def __init__(self, samples: int, per_block: int) -> None:
        rows = [
            np.arange(start, min(start + per_block, samples), dtype="<i4") for start in range(0, samples, per_block)
        ]
        blocks = [row.tobytes() for row in rows]
        index = block_index(per_block, [len(b) for b in blocks], [zlib.crc32(b) for b in blocks])
        self.members = {"latent/x": b"".join(blocks), "latent/x.index": index}
        self.touched: list[int] = []

    def names(self) -> list[str]:
        return list(self.members)

    def size(self, name: str) -> int:
        return len(self.members[name])

    def read(self, name: str) -> bytes:
        return self.members[name]

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        self.touched.append(offset)
        return self.members[name][offset : offset + size]


def unpack(blocks: list[bytes], samples: list[int]) -> Array:
    assert [len(b) for b in blocks] == [4 * n for n in samples]
    return np.frombuffer(b"".join(blocks), "<i4")


@pytest.mark.parametrize(("samples", "per_block"), [(1, 1), (1, 64), (10, 3), (12, 3), (1000, 7), (5000, 4096)])
def test_any_samples_in_any_order(samples: int, per_block: int) -> None:
    reader = BlockReader(Members(samples, per_block), "latent/x", samples, unpack)
    rng = np.random.default_rng(0)
    for ids in (
        np.arange(samples),
        rng.integers(0, samples, 50),
        np.array([samples - 1, 0, 0]),
        np.array([], np.int64),
    ):
        np.testing.assert_array_equal(reader.read(ids), ids)


def test_scattered_reads_touch_only_their_blocks() -> None:
    members = Members(1000, 10)
    BlockReader(members, "latent/x", 1000, unpack).read(np.array([999, 5, 6, 41]))
    assert sorted(members.touched) == [0, 160, 3960]


def test_what_is_cached_is_not_read_again() -> None:
    """Room for 500 of 1,000 samples: the first 500 are read once, the others each time."""
    members = Members(1000, 10)
    reader = BlockReader(members, "latent/x", 1000, unpack)
    reader.cache(4 * 500)
    rng = np.random.default_rng(0)
    for _ in range(5):
        ids = rng.permutation(1000)
        np.testing.assert_array_equal(reader.read(ids), ids)
    assert np.bincount(members.touched)[::40].tolist() == [1] * 50 + [5] * 50
    for samples, first_missing in ((500, 500), (900, 500), (300, 300)):  # what is kept stays as far as there is room
        reader.cache(4 * samples)
        members.touched.clear()
        np.testing.assert_array_equal(reader.read(np.arange(0, 600, 10)), np.arange(0, 600, 10))
        assert min(members.touched) == 4 * first_missing
        reader.cache(4 * min(samples, 500))  # forgets what has been read beyond the first 500
    reader.cache(0)
    members.touched.clear()
    reader.read(np.arange(20))
    assert members.touched == [0, 40]


def test_damaged_block_is_named() -> None:
    members = Members(10, 4)
    members.members["latent/x"] = members.members["latent/x"][:-1] + b"\xff"
    blocks = BlockBytes(members, "latent/x", 10)
    assert [blocks.samples(number) for number in range(len(blocks))] == [4, 4, 2]
    assert blocks.read(1) == np.arange(4, 8, dtype="<i4").tobytes()
    for read in (lambda: blocks.read(2), lambda: check_blocks(members, "latent/x", 10)):
        with pytest.raises(CorruptStoreError, match=r"block 2 of 'latent/x' \(samples 8 to 9\)"):
            read()


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"\4\0\0\0",
        block_index(4, [], []),
        block_index(4, [16, 16], [0, 0]),
        block_index(4, [16, 16, 9], [0, 0, 0]),
        block_index(4, [16, 16, 16], [0, 0, 0]),
        block_index(5, [16, 16, 8], [0, 0, 0]),
        block_index(4, [16, 16, 8], [0, 0, 0]) + b"\0",
        b"\0" + block_index(4, [16, 16, 8], [0, 0, 0])[1:],
        b"\4\0\0\1" + block_index(4, [40], [0])[4:],
        b"\4\0\0\0\3\0\0\0\1" + bytes(15),
        b"\4\0\0\0\xff\xff\xff\xff\4",
    ],
)
def test_index_that_contradicts_the_store(index: bytes) -> None:
    members = Members(10, 4)
    members.members["latent/x.index"] = index
    with pytest.raises(CorruptStoreError, match="the index of 'latent/x'"):
        BlockBytes(members, "latent/x", 10)


def test_writer_refuses_what_readers_would() -> None:
    for per_block, sizes in ((0, [1]), (4097, [1]), (4, [1 << 32])):
        with pytest.raises(KrstoreError, match="choose smaller blocks"):
            block_index(per_block, sizes, [0])


def test_index_is_small() -> None:
    assert len(block_index(64, [4000] * 100, [0] * 100)) == 9 + 6 * 100
    assert len(block_index(4, [70_000] * 100, [0] * 100)) == 9 + 8 * 100


@pytest.mark.parametrize(("size", "expected"), [(16_384, 4), (1024, 4), (200, 20), (60, 64), (0.1, 64)])
def test_samples_per_block(size: float, expected: int) -> None:
    assert samples_per_block(size) == expected
