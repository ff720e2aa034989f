"""Entropy coding: nothing lost, close to the entropy, the same for ever, and no damage but a named error."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

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

GOLDEN = Path(__file__).parent.parent / "golden" / "entropy-v1"
CASES = sorted(path.stem for path in GOLDEN.glob("*.stream"))
INT32 = np.iinfo(np.int32)


def there_and_back(runs: list[Integers]) -> list[Integers]:
    tables = [Table.of(run) for run in runs]
    return decode_runs(encode_runs(runs, tables), [run.size for run in runs], unpack_tables(pack_tables(tables)))


@st.composite
def integers(draw: st.DrawFn) -> Integers:
    """Any int32 array whose values fit a table."""
    low = draw(st.integers(INT32.min, INT32.max))
    span = draw(st.sampled_from([0, 1, 2, 30, 1000, MAX_SYMBOLS - 1]))
    elements = st.integers(low, min(low + span, INT32.max))
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=8))
    return draw(hnp.arrays(np.int32, shape, elements=elements))


@given(runs=st.lists(integers(), max_size=5))
@settings(max_examples=150, deadline=None)
def test_round_trip(runs: list[Integers]) -> None:
    decoded = there_and_back(runs)
    assert len(decoded) == len(runs)
    for found, run in zip(decoded, runs, strict=True):
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, run.reshape(-1))


@pytest.mark.parametrize("share", [0.5, 0.01, 1e-4])
def test_skewed_runs(share: float) -> None:
    run = (np.random.default_rng(0).random(100_000) < share).astype(np.int32)
    np.testing.assert_array_equal(there_and_back([run])[0], run)


def test_a_single_symbol_costs_nothing() -> None:
    run = np.full(1_000_000, -3, np.int32)
    assert encode_runs([run], [Table.of(run)]) == b""
    np.testing.assert_array_equal(there_and_back([run])[0], run)


def test_a_symbol_that_was_not_counted_is_still_coded() -> None:
    table = Table(0, np.array([9, 0, 1], np.uint16))
    run = np.array([0, 1, 2, 1, 0], np.int32)
    np.testing.assert_array_equal(decode_runs(encode_runs([run], [table]), [5], [table])[0], run)


def test_counts_are_scaled_to_16_bits_and_none_is_lost() -> None:
    table = Table.from_counts(-1, np.array([1, 0, 10_000_000, 70_000], np.int64))
    assert table.counts.tolist()[:2] == [1, 0]
    assert table.counts.max() == 65535
    assert table.counts[3] == pytest.approx(65535 * 0.007, abs=1)


def test_values_that_span_too_much() -> None:
    with pytest.raises(ValueError, match="span more than 65536 symbols; quantise more coarsely"):
        Table.of(np.array([0, MAX_SYMBOLS], np.int32))


@pytest.mark.parametrize("scale", [0.25, 1.0, 6.0, 50.0])
def test_size_is_the_entropy(scale: float) -> None:
    """Within 1 % and a few bytes of the order-0 entropy, worked out here, of a long run."""
    run = np.rint(np.random.default_rng(3).normal(0, scale, 50_000)).astype(np.int32)
    share = np.unique(run, return_counts=True)[1] / len(run)
    entropy = -(share * np.log2(share)).sum() * len(run) / 8
    assert entropy_bytes(np.bincount(run - run.min())) == pytest.approx(entropy)
    assert entropy - 8 <= len(encode_runs([run], [Table.of(run)])) <= 1.01 * entropy + 8


def test_entropy_of_nothing() -> None:
    assert entropy_bytes(np.zeros(3, np.int64)) == 0


def golden(name: str) -> tuple[bytes, bytes, list[Integers]]:
    runs = [np.load(GOLDEN / f"{name}.{n}.npy") for n in range(len(list(GOLDEN.glob(f"{name}.*.npy"))))]
    return (GOLDEN / f"{name}.stream").read_bytes(), (GOLDEN / f"{name}.tables").read_bytes(), runs


def test_there_are_golden_streams() -> None:
    assert {"spread", "long", "skewed", "single", "wide"} <= set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_golden_streams_decode_to_their_integers(name: str) -> None:
    stream, tables, runs = golden(name)
    decoded = decode_runs(stream, [len(run) for run in runs], unpack_tables(tables))
    for found, run in zip(decoded, runs, strict=True):
        np.testing.assert_array_equal(found, run)


def test_golden_streams_decode_in_another_process_with_other_threads() -> None:
    program = """
        import sys, pathlib, numpy as np
        from krstore.entropy import decode_runs, unpack_tables
        folder = pathlib.Path(sys.argv[1])
        for name in sys.argv[2:]:
            runs = [np.load(folder / f"{name}.{n}.npy") for n in range(len(list(folder.glob(f"{name}.*.npy"))))]
            tables = unpack_tables((folder / f"{name}.tables").read_bytes())
            found = decode_runs((folder / f"{name}.stream").read_bytes(), [len(run) for run in runs], tables)
            print(name, all(map(np.array_equal, found, runs)))
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(GOLDEN), *CASES],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "3"},
    )  # fmt: skip
    assert run.stdout.splitlines() == [f"{name} True" for name in CASES]


def test_golden_streams_are_written_the_same_today() -> None:
    """Not promised for ever, but a change of what is written should be meant."""
    for name in CASES:
        stream, _, runs = golden(name)
        assert encode_runs(runs, [Table.of(run) for run in runs]) == stream, name


def test_golden_streams_are_not_overwritten() -> None:
    before = {path: path.read_bytes() for path in GOLDEN.iterdir() if path.is_file()}
    run = subprocess.run([sys.executable, GOLDEN / "make.py"], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "never overwritten" in run.stderr
    assert {path: path.read_bytes() for path in before} == before


def sized(runs: list[Integers]) -> list[int]:
    return [len(run) for run in runs]


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_tables_or_an_error(data: st.DataObject) -> None:
    good = bytearray(golden("spread")[1])
    kind = data.draw(st.sampled_from(["flip", "cut", "noise"]))
    if kind == "flip":
        good[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        good = good[: data.draw(st.integers(0, len(good) - 1))]
    else:
        good = bytearray(data.draw(st.binary(max_size=64)))
    tables = []
    with contextlib.suppress(CorruptStoreError):
        tables = unpack_tables(bytes(good))
    assert all(1 <= len(table.counts) <= MAX_SYMBOLS and table.counts.any() for table in tables)


def tables_of(lows: list[int], sizes: list[int], counts: list[int], *, count: int | None = None) -> bytes:
    """Tables as nobody would write them."""
    body = np.array(lows, "<i4").tobytes() + np.array(sizes, "<u4").tobytes()
    body += np.array(counts, "<u2").view(np.uint8).reshape(-1, 2).T.tobytes()
    return struct.pack("<I", len(lows) if count is None else count) + zstandard.ZstdCompressor().compress(body)


@pytest.mark.parametrize(
    "data",
    [
        tables_of([0], [2], [0, 0]),
        tables_of([0, 0], [1, 0], [1]),
        tables_of([0], [MAX_SYMBOLS + 1], [1] * (MAX_SYMBOLS + 1)),
        tables_of([0], [3], [1, 1]),
        tables_of([0], [1], [1, 1]),
        tables_of([0], [1], [1], count=2),
        tables_of([0], [1], [1], count=2**32 - 1),
        b"",
        b"\1\0\0\0",
        tables_of([0], [9], [1] * 9)[:-1],
        struct.pack("<I", 1) + b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 60) + b"\1\0\0",
    ],
    ids=["no symbol", "empty table", "too long", "short", "left over", "more tables", "absurd", "nothing", "cut",
         "cut frame", "bomb"],
)  # fmt: skip
def test_hostile_tables(data: bytes) -> None:
    with pytest.raises(CorruptStoreError, match=rf"frequency tables of {len(data)} bytes are malformed"):
        unpack_tables(data)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_stream_or_an_error(data: st.DataObject) -> None:
    """Without its checksum a damaged stream decodes to other integers of its tables, or is refused."""
    stream, packed, runs = golden("spread")
    tables, bad = unpack_tables(packed), bytearray(stream)
    kind = data.draw(st.sampled_from(["flip", "cut", "noise"]))
    if kind == "flip":
        bad[data.draw(st.integers(0, len(bad) - 1))] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        bad = bad[: data.draw(st.integers(0, len(bad) - 1))]
    else:
        bad = bytearray(data.draw(st.binary(max_size=64)))
    try:
        decoded = decode_runs(bytes(bad), sized(runs), tables)
    except CorruptStoreError:
        return
    for found, run, table in zip(decoded, runs, tables, strict=True):
        assert found.shape == run.shape
        assert table.low <= found.min() <= found.max() < table.low + max(2, len(table.counts))


@pytest.mark.parametrize(("data", "sizes"), [(b"abc", [1]), (b"", [-1]), (b"", [1, 1]), (b"\0\0\0\0", [1])])
def test_impossible_streams(data: bytes, sizes: list[int]) -> None:
    with pytest.raises(CorruptStoreError, match="entropy-coded stream"):
        decode_runs(data, sizes, [Table(0, np.array([1, 1], np.uint16))])


def test_no_memory_is_an_error_of_python() -> None:
    """The coder itself would abort the process."""
    with pytest.raises(MemoryError):
        decode_runs(b"", [1 << 60], [Table(0, np.array([1], np.uint16))])


def test_any_model_of_a_table() -> None:
    """Tables that only a hostile file has: the lowest and the highest integers there are."""
    for low in (INT32.min, INT32.max - 1):
        table: Any = Table(low, np.array([3, 1], np.uint16))
        run = np.array([low, low + 1, low], np.int32)
        np.testing.assert_array_equal(decode_runs(encode_runs([run], [table]), [3], [table])[0], run)
