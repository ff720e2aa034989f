"""The commands on a network's states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from krstore.archives.snapshots import write_snapshots
from krstore.testing import example_states

pytestmark = pytest.mark.usefixtures("fake")


@pytest.fixture
def snapshots(tmp_path: Path) -> Path:
    source = example_states()
    with write_snapshots(tmp_path / "snaps.h5", source.spec) as writer:
        for state in source.states:
            writer.append(state)
    return tmp_path / "snaps.h5"


def test_states_go_into_a_store_and_come_back(cli: Any, snapshots: Path) -> None:
    facts = cli("encode", snapshots, "--codec", "deltas", "--json").json
    store = snapshots.with_name("snaps.deltas.krs")
    assert (facts["path"], facts["kind"], facts["steps"]) == (str(store), "snapshot", 3)
    assert facts["bytes"]["file"] == store.stat().st_size
    assert facts["bytes"]["source"] / store.stat().st_size == facts["ratio"]
    assert facts["quality"] == {"mse": 0.0, "nmse": 0.0, "max_abs": 0.0, "per_step": [0.0, 0.0, 0.0]}
    assert cli("info", store, "--json").json == {k: v for k, v in facts.items() if k != "seconds"}
    shown = cli("info", store).out
    assert "deltas (snapshot)" in shown
    assert "5 arrays, 353 elements" in shown
    ran = cli("verify", store, "--decode", "--against", snapshots)
    assert ran.code == 0
    assert "3 states decode" in ran.out
    decoded = cli("decode", store, "--json").json
    assert (decoded["path"], decoded["steps"]) == (str(snapshots.with_name("snaps.deltas.decoded.h5")), 3)
    with h5py.File(snapshots) as before, h5py.File(decoded["path"]) as after:
        assert list(before) == list(after) == ["step0", "step1", "step2"]
        assert dict(before.attrs) == dict(after.attrs)
        for step in before:
            assert list(before[step]) == list(after[step])
            for name in before[step]:
                np.testing.assert_array_equal(before[step][name][()], after[step][name][()])


def test_parameters_of_each_step_are_named(cli: Any, tmp_path: Path) -> None:
    source = example_states()
    taken = tuple(int(i[0]) for i in np.nonzero(source.states[0]["conv.weight"]))
    source.states[2]["conv.weight"][taken] += 1
    archive = tmp_path / "changed.h5"
    with write_snapshots(archive, source.spec) as writer:
        for state in source.states:
            writer.append(state)
    refused = cli("encode", archive, "--codec", "packnet")
    assert refused.code == 1
    assert "--per-step conv.weight" in refused.err
    decoded = cli("encode", archive, "--codec", "packnet", "--per-step", "conv.*").out
    assert "packnet (snapshot)" in decoded
    assert "per_step" in cli("encode", archive, "--codec", "deltas", "--per-step", "conv.*").err


def test_stores_of_both_kinds_are_listed_apart(cli: Any, archive: Path, snapshots: Path) -> None:
    states = cli("encode", snapshots, "--codec", "rounded", "--ratio", "1.1", "--json").json["path"]
    samples = cli("encode", archive, "--codec", "raw", "--json").json["path"]
    shown = cli("info", states, samples).out
    assert shown.index("samples") < shown.index("steps")
    assert [facts["kind"] for facts in cli("info", states, samples, "--json").json] == ["snapshot", "dense"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("encode", "{features}", "--codec", "deltas"), "is no snapshot archive: it has the groups 'features'"),
        (("encode", "{snapshots}", "--codec", "raw"), "a network's states, not samples: a snapshot codec"),
        (("encode", "{snapshots}", "--codec", "raw", "--features-key", "x"), "no array 'x'; it has: step0/conv.weight"),
        (("encode", "{snapshots}", "--codec", "deltas", "--labels-key", "y"), "--labels-key y: a snapshot codec"),
        (("encode", "{snapshots}", "--codec", "deltas", "--ratio", "2"), "deltas is lossless"),
        (("encode", "{store}", "--codec", "raw", "-o", "{tmp}/x.krs"), "this store holds a network's states"),
        (("decode", "{store}", "--ids", "0:2"), "--ids and --classes choose samples"),
        (("decode", "{store}", "-o", "{tmp}/x.npz"), "cannot write a snapshot archive as '.npz'"),
        (("compare", "{features}", "--codecs", "deltas", "-o", "{tmp}/c"), "encodes a network's states"),
        (("verify", "{store}", "--against", "{features}"), "is no snapshot archive"),
    ],
)
def test_what_a_kind_cannot_do_is_said(
    cli: Any, archive: Path, snapshots: Path, command: tuple[str, ...], message: str
) -> None:
    store = cli("encode", snapshots, "--codec", "deltas", "--json").json["path"]
    before = sorted(snapshots.parent.iterdir())
    names = {"features": archive, "snapshots": snapshots, "store": store, "tmp": snapshots.parent}
    ran = cli(*(part.format(**names) for part in command), "--force" if command[0] in ("encode", "decode") else "-q")
    assert ran.code != 0
    assert message in ran.line
    assert sorted(snapshots.parent.iterdir()) == before
