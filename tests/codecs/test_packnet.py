"""States of a pruned network: what is stored once comes back bit for bit, and what is not so is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from payloads import MemoryPayload

import krstore
from krstore.codec import SnapshotOpenContext
from krstore.entropy import Table, encode_runs, pack_tables
from krstore.errors import ArchiveError, CorruptStoreError
from krstore.snapshots import ArraySpec, SnapshotSpec, State
from krstore.testing import StateSource, example_states
from krstore_codecs.packnet import INDEX, SHARED, WEIGHTS, PackNet


def encoded(source: StateSource, path: Path, codec: str = "packnet", **options: Any) -> krstore.SnapshotStore:
    return krstore.encode_snapshots(source, path, codec=codec, device="cpu", **options)


def same(store: krstore.SnapshotStore, source: StateSource) -> bool:
    return all(
        store.state(step)[name].tobytes() == array.tobytes()
        for step, state in enumerate(source.states) for name, array in state.items()
    )  # fmt: skip


@st.composite
def pruned(draw: st.DrawFn) -> StateSource:
    """States of one to five steps whose weights are taken in any order, at any rate, or never."""
    steps = draw(st.integers(1, 5))
    shape = draw(st.sampled_from([(3, 2), (2, 3, 3, 3), (1, 1)]))
    dtype = draw(st.sampled_from(["float32", "float64", "float16"]))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    taken_at = rng.integers(0, draw(st.integers(1, steps + 1)), shape)
    weight = rng.normal(size=shape).astype(dtype)
    return StateSource(
        tuple(
            {
                "w": np.where(taken_at <= step, weight, np.zeros((), dtype)),
                "b": rng.normal(size=4).astype(np.float32),
                "n": np.array(step),
                "fc": rng.normal(size=(step + 1, 2)).astype(np.float32),
            }
            for step in range(steps)
        )
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pruned())
def test_every_state_comes_back_bit_for_bit(tmp_path: Path, source: StateSource) -> None:
    assert same(encoded(source, tmp_path / "a.krs", force=True), source)


def test_a_weight_is_stored_once_whatever_the_number_of_steps(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight, taken_at = rng.normal(size=(64, 64, 3, 3)).astype(np.float32), rng.integers(0, 10, (64, 64, 3, 3))
    states = [{"w": np.where(taken_at <= step, weight, np.float32(0))} for step in range(10)]
    ten, one = (
        encoded(StateSource(tuple(own)), tmp_path / f"{len(own)}.krs").bytes.file for own in (states, states[-1:])
    )
    symbols = weight.size * np.log2(10) / 8
    assert 0.99 * symbols < ten - one < 1.01 * symbols + 9 * 160  # and a member a step
    assert ten < 1.1 * weight.nbytes < 0.2 * sum(state["w"].nbytes for state in states)


def changed(name: str, place: tuple[int, ...], value: float) -> StateSource:
    """Return the example with one weight of the last step changed."""
    source = example_states(3)
    source.states[2][name][place] = value
    return source


def taken() -> tuple[int, ...]:
    """Return a place of the example's convolution that the first step takes."""
    return tuple(int(i[0]) for i in np.nonzero(example_states(3).states[0]["conv.weight"]))


@pytest.mark.parametrize("value", [7.0, 0.0])
def test_a_weight_that_changes_is_named(value: float, tmp_path: Path) -> None:
    place = taken()
    with pytest.raises(ArchiveError, match=r"conv\.weight\[.*\] is .* after step 2; from step 0") as caught:
        encoded(changed("conv.weight", place, value), tmp_path / "a.krs")
    assert f"[{', '.join(map(str, place))}] is {value}" in str(caught.value)
    assert "--per-step conv.weight" in str(caught.value)
    assert not (tmp_path / "a.krs").exists()


def test_a_negative_zero_is_named(tmp_path: Path) -> None:
    source = example_states(3)
    free = tuple(int(i[0]) for i in np.nonzero(source.states[2]["conv.weight"] == 0))
    source.states[1]["conv.weight"][free] = -0.0
    with pytest.raises(ArchiveError, match=r"is -0\.0 after step 1; krstore snapshot makes it 0\.0"):
        encoded(source, tmp_path / "a.krs")


def test_parameters_of_each_step_may_change(tmp_path: Path) -> None:
    source = changed("conv.weight", taken(), 7.0)
    assert same(encoded(source, tmp_path / "a.krs", settings={"per_step": "norm.*, conv.*"}), source)
    with pytest.raises(ArchiveError, match=r"per_step=con\.\* is no parameter's name; there are conv\.weight"):
        encoded(source, tmp_path / "b.krs", settings={"per_step": "con.*"})


def test_rounded_weights_keep_their_zeros_and_meet_the_target(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight, taken_at = rng.normal(size=(64, 64)).astype(np.float32), rng.integers(0, 4, (64, 64))
    source = StateSource(
        tuple(
            {"w": np.where(taken_at <= step, weight, np.float32(0)), "b": weight[step]} for step in range(4)
        )
    )  # fmt: skip
    exact = encoded(source, tmp_path / "exact.krs")
    stores = [encoded(source, tmp_path / f"{r}.krs", "packnet_quantised", ratio=r) for r in (6, 10)]
    for store, ratio in zip(stores, (6, 10), strict=True):
        assert ratio <= store.ratio < 1.03 * ratio
        assert exact.ratio < ratio
        for step in range(4):
            assert not store.state(step)["w"][taken_at > step].any()
            np.testing.assert_array_equal(store.state(step)["b"], weight[step])
    assert 0 < stores[0].quality.mse < stores[1].quality.mse
    assert encoded(source, tmp_path / "e.krs", "packnet_quantised", max_mse=1e-4).quality.mse <= 1e-4


def runs(values: list[int]) -> bytes:
    run = np.array(values, np.int32)
    table = Table.of(run)
    return msgspec.msgpack.encode((pack_tables([table]), encode_runs([run], [table])))


@pytest.mark.parametrize(
    ("shared", "index", "message"),
    [
        ({"names": ["x"], "steps": None}, runs([0] * 4), "do not share a parameter 'x'"),
        ({"names": ["b"], "steps": None}, runs([0] * 3), "do not share a parameter 'b'"),
        ({"names": 3, "steps": None}, runs([0] * 4), "malformed"),
        ({"names": ["w"], "steps": None}, runs([0, 1, 2, 3]), "steps 0 to 3 of 2"),
        ({"names": ["w"], "steps": None}, msgspec.msgpack.encode((pack_tables([]), b"")), "0 tables for 1"),
        ({"names": ["w"], "steps": None}, b"no", "malformed"),
        ({"names": ["w"], "steps": [1.0, 1.0]}, runs([0] * 4), "2 quantiser steps for 1"),
        ({"names": ["w"], "steps": None}, runs([0] * 4), "arrays are malformed"),
    ],
)
def test_damaged_members_are_corrupt_stores(shared: dict[str, Any], index: bytes, message: str) -> None:
    payload = MemoryPayload()
    payload.write(SHARED, msgspec.json.encode(shared))
    payload.write(INDEX, index)
    payload.write(WEIGHTS, msgspec.msgpack.encode([b"123"]))
    arrays = {"w": ArraySpec((2, 2), "float32"), "b": ArraySpec((3,), "int64")}
    with pytest.raises(CorruptStoreError, match=message):
        PackNet.open(payload, SnapshotOpenContext(spec=SnapshotSpec(steps=(arrays, arrays)), device="cpu"))


def test_states_without_shared_parameters(tmp_path: Path) -> None:
    states: list[State] = [{"b": np.arange(3.0)}, {"b": np.arange(4.0)}]
    source = StateSource(tuple(states))
    assert same(encoded(source, tmp_path / "a.krs"), source)
