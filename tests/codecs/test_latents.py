"""Latents: spilled while packing, integers in entropy-coded blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from payloads import MemoryPayload

from krstore.errors import CorruptStoreError, OutputError
from krstore_codecs._latents import IntegerBlocks, SpilledRows, write_integer_blocks


def spill(values: np.ndarray, pieces: int = 1) -> SpilledRows:
    rows = SpilledRows(values.shape[1])
    for piece in np.array_split(values, pieces):
        rows.append(piece)
    return rows


def written(values: np.ndarray, step: float) -> MemoryPayload:
    payload = MemoryPayload()
    write_integer_blocks(payload, "latent/codes", spill(values), step)
    return payload


@pytest.mark.parametrize("rows", [1, 7, 100, 1000])
def test_spilled_rows_come_back_in_any_pieces(rows: int) -> None:
    values = np.random.default_rng(0).normal(size=(237, 5)).astype(np.float32)
    spilled = spill(values, 4)
    assert spilled.count == 237
    pieces = list(spilled.chunks(rows))
    assert [len(piece) for piece in pieces[:-1]] == [rows] * (len(pieces) - 1)
    np.testing.assert_array_equal(np.concatenate(pieces), values)
    np.testing.assert_array_equal(np.concatenate(list(spilled.chunks(rows))), values)


@given(
    samples=st.integers(1, 300), length=st.integers(1, 40), step=st.floats(0.01, 10), seed=st.integers(0, 99),
    spread=st.sampled_from([0.0, 0.1, 3.0]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_integers_are_the_rounded_rows(samples: int, length: int, step: float, seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(samples, length)) * np.exp(spread * rng.normal(size=length))).astype(np.float32)
    reader = IntegerBlocks(written(values, step), "latent/codes", samples, length)
    expected = np.rint(values / np.float32(step)).clip(-32767, 32767)
    np.testing.assert_array_equal(reader.read(np.arange(samples)), expected)
    some = rng.integers(0, samples, 9)
    np.testing.assert_array_equal(reader.read(some), expected[some])


@pytest.mark.parametrize(("largest", "dtype"), [(127, np.int8), (-128, np.int8), (128, np.int16), (-129, np.int16)])
def test_integers_come_in_the_narrowest_type_of_their_tables(largest: int, dtype: type) -> None:
    values = np.zeros((500, 3), np.float32)
    values[0] = largest
    assert IntegerBlocks(written(values, 1.0), "latent/codes", 500, 3).read(np.arange(9)).dtype == dtype


def test_more_rows_than_are_held_at_once() -> None:
    values = np.random.default_rng(0).normal(size=(9001, 3)).astype(np.float32)
    payload = written(values, 0.25)
    reader = IntegerBlocks(payload, "latent/codes", 9001, 3)
    np.testing.assert_array_equal(reader.read(np.arange(9001)), np.rint(values / np.float32(0.25)))


def test_columns_pay_for_their_own_spread() -> None:
    """Dead columns cost nothing beside live ones, and all is near the entropy of each."""
    rng = np.random.default_rng(0)
    live = np.rint(rng.normal(0, 8, (4000, 4))).astype(np.float32)
    alone = len(written(live, 1.0).members["latent/codes"])
    beside = len(written(np.hstack([live, np.zeros((4000, 60), np.float32)]), 1.0).members["latent/codes"])
    assert beside == alone
    bits = 4000 * 4 * np.log2(8 * np.sqrt(2 * np.pi * np.e))
    assert alone == pytest.approx(bits / 8, rel=0.05)


def test_extreme_values_are_clipped_to_what_a_table_holds() -> None:
    values = np.array([[1e30, -1e30, 0.5]], np.float32)
    found = IntegerBlocks(written(values, 1e-6), "latent/codes", 1, 3).read(np.arange(1))
    assert found.tolist() == [[32767, -32767, 32767]]


VALUES = np.random.default_rng(5).normal(size=(50, 6)).astype(np.float32)


@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), cut=st.booleans())
@settings(max_examples=150, deadline=None)
def test_damaged_tables_are_an_error_or_integers(place: float, flip: int, cut: bool) -> None:
    payload = written(VALUES, 0.1)
    data = bytearray(payload.members["latent/codes.columns"])
    at = int(place * len(data))
    if cut:
        data = data[:at]
    else:
        data[at] ^= flip
    payload.members["latent/codes.columns"] = bytes(data)
    try:
        found = IntegerBlocks(payload, "latent/codes", 50, 6).read(np.arange(50))
    except (CorruptStoreError, IndexError):  # a store turns the second into the first
        return
    assert found.shape == (50, 6)


def test_tables_for_another_number_of_columns() -> None:
    with pytest.raises(CorruptStoreError, match="for 6 columns; expected 7"):
        IntegerBlocks(written(VALUES, 0.1), "latent/codes", 50, 7)


@pytest.mark.usefixtures("full_disk")
def test_a_temporary_folder_that_is_full() -> None:
    with pytest.raises(OutputError, match=r"160,000 bytes of coefficients into the temporary folder .*TMPDIR"):
        SpilledRows(4).append(np.zeros((10_000, 4), np.float32))
