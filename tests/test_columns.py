"""Columns of integers: any values come back, in few bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from krstore.errors import CorruptStoreError
from krstore.store.columns import pack_column, unpack_column

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)


@given(hnp.arrays(np.int64, st.integers(1, 300), elements=INT64 | st.integers(0, 3)))
def test_round_trip(values: np.ndarray) -> None:
    unpacked = unpack_column(pack_column(values), len(values), "labels")
    assert unpacked.dtype == np.int64
    np.testing.assert_array_equal(unpacked, values)


@pytest.mark.parametrize("distinct", [1, 2, 256, 257, 65_536, 65_537])
def test_rank_widths(distinct: int) -> None:
    values = np.random.default_rng(0).permutation(np.arange(distinct) * -3)
    np.testing.assert_array_equal(unpack_column(pack_column(values), distinct, "labels"), values)


def test_small() -> None:
    """Shuffled labels of 10 classes cost their entropy; sorted ones next to nothing."""
    labels = np.random.default_rng(0).integers(0, 10, 10_000)
    assert len(pack_column(labels)) < 1.1 * 10_000 * np.log2(10) / 8
    assert len(pack_column(np.sort(labels))) < 120


@given(st.binary(max_size=60), st.integers(1, 1 << 40))
def test_any_bytes_are_refused_or_unpacked(data: bytes, samples: int) -> None:
    with pytest.raises(CorruptStoreError, match="column 'labels' is malformed"):
        unpack_column(data, samples, "labels")


@given(hnp.arrays(np.int64, st.integers(1, 50), elements=INT64), st.data())
def test_damage_never_raises_anything_else(values: np.ndarray, data: st.DataObject) -> None:
    packed = bytearray(pack_column(values))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        unpacked = unpack_column(bytes(packed), len(values), "labels")
    except CorruptStoreError:
        return
    assert unpacked.shape == values.shape  # the container's checksum, not the column, guards the values


def test_wrong_number_of_samples() -> None:
    packed = pack_column(np.arange(100))
    for samples in (1, 99, 101, 1 << 40):
        with pytest.raises(CorruptStoreError, match="malformed"):
            unpack_column(packed, samples, "labels")
