"""A network's states: archives, stores, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pytest
import torch

import krstore
from krstore.archives.snapshots import write_snapshots
from krstore.errors import ArchiveError, CorruptStoreError, KrstoreError, TargetUnreachableError, UsageError
from krstore.snapshots import ArraySpec, SnapshotSpec, State, scan_snapshots, states
from krstore.store.header import SnapshotHeader, decode_header
from krstore.testing import ArraySource, StateSource, example_states

SOURCE = example_states()


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "fake_codec"))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return save(tmp_path / "snaps.h5", SOURCE)


def save(path: Path, source: StateSource) -> Path:
    """Write states as anyone would, without krstore."""
    with h5py.File(path, "w") as file:
        for step, state in enumerate(source.states):
            for name, array in state.items():
                file[f"step{step}/{name}"] = array
        file.attrs["network"] = "example"
    return path


def write(path: Path, given: list[State]) -> None:
    """Write states as an archive of those of SOURCE."""
    with write_snapshots(path, SOURCE.spec) as writer:
        for state in given:
            writer.append(state)


# archives


def test_an_archive_is_read_as_others_write_it(archive: Path) -> None:
    source = krstore.open_snapshots(archive)
    assert source.spec == SOURCE.spec
    for step, state in enumerate(states(source)):
        for name, array in state.items():
            assert array.tobytes() == SOURCE.states[step][name].tobytes()


def test_every_element_type_and_rank_survives_an_archive(tmp_path: Path) -> None:
    kinds = ["float16", "float32", "float64", "uint8", "bool", "int8", "int16", "int32", "int64"]
    state = {f"{kind}{rank}": np.ones((2,) * rank, kind) for kind in kinds for rank in range(4)}
    source = StateSource((state | {"none": np.empty((0, 3), np.float32)},))
    with write_snapshots(tmp_path / "a.h5", source.spec) as writer:
        writer.append(source.states[0])
    with h5py.File(tmp_path / "a.h5") as file:
        for name, array in source.states[0].items():
            assert file[f"step0/{name}"].dtype == array.dtype
            np.testing.assert_array_equal(file[f"step0/{name}"][()], array)
    read = krstore.open_snapshots(tmp_path / "a.h5")
    assert read.spec.steps == source.spec.steps
    assert read.spec.bytes == sum(array.nbytes for array in source.states[0].values())


def nothing(file: h5py.File) -> None:
    for name in list(file):
        del file[name]


def gap(file: h5py.File) -> None:
    file.move("step1", "step7")


def samples(file: h5py.File) -> None:
    nothing(file)
    file["features"] = np.ones((3, 4), np.float32)


def nested(file: h5py.File) -> None:
    file.create_group("step1/layer")


def text(file: h5py.File) -> None:
    file["step1/note"] = "hello"


def complex_numbers(file: h5py.File) -> None:
    file["step1/c"] = np.ones(3, np.complex64)


def no_space(file: h5py.File) -> None:
    file["step1/e"] = h5py.Empty("f4")


def no_group(file: h5py.File) -> None:
    file["step3"] = np.ones(3)


def link_to_a_file(file: h5py.File) -> None:
    file["step1/away"] = h5py.ExternalLink("other.h5", "/x")


def claim(file: h5py.File) -> None:
    file.create_dataset("step1/w", (1 << 34,), "f4", chunks=(1 << 20,))


def linked_group(file: h5py.File) -> None:
    file["step3"] = h5py.ExternalLink("other.h5", "/")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nothing, "has the groups none; expected step0, step1"),
        (gap, "'step7'; expected step0, step1, ... without a gap"),
        (samples, "is no snapshot archive: it has the groups 'features'"),
        (nested, "step1/layer is no array"),
        (text, "step1/note: element type 'object'"),
        (complex_numbers, "step1/c: element type 'complex64', expected one of float16"),
        (no_space, "step1/e is no array"),
        (no_group, "'step3' is not a group of this file"),
        (link_to_a_file, "'step1/away' is a link to another file"),
        (claim, "'step1/w' claims 17,179,869,184 entries"),
        (linked_group, "'step3' is not a group of this file"),
    ],
)
def test_what_is_no_snapshot_archive_is_refused(
    archive: Path, change: Callable[[h5py.File], None], message: str
) -> None:
    with h5py.File(archive, "a") as file:
        change(file)
    with pytest.raises(ArchiveError, match=re.escape(message)):
        krstore.open_snapshots(archive)


def test_other_files_are_no_snapshot_archives(tmp_path: Path) -> None:
    for name, message in (("a.npz", "is an HDF5 file"), ("a.h5", "cannot be read as HDF5")):
        (tmp_path / name).write_bytes(b"PK")
        with pytest.raises(ArchiveError, match=message):
            krstore.open_snapshots(tmp_path / name)
    with pytest.raises(ArchiveError, match="is not a file"):
        krstore.open_snapshots(tmp_path / "none.h5")


@pytest.mark.parametrize("length", [0, 100, 1000, -1])
def test_a_truncated_archive_is_an_archive_error(archive: Path, length: int) -> None:
    archive.write_bytes(archive.read_bytes()[:length])
    with pytest.raises(ArchiveError):
        scan_snapshots(krstore.open_snapshots(archive))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e200])
def test_values_that_are_not_finite_are_named_by_step_and_array(value: float) -> None:
    bad = {name: array.astype(np.float64) for name, array in SOURCE.states[1].items()}
    bad["norm.bias"][3] = value
    with pytest.raises(ArchiveError, match=r"step 1: 'norm\.bias' holds a NaN"):
        scan_snapshots(StateSource((SOURCE.states[0], bad)))


def test_a_step_without_arrays_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="step 1 holds no arrays"):
        krstore.encode_snapshots(StateSource((SOURCE.states[0], {})), tmp_path / "a.krs", codec="deltas")
    assert not list(tmp_path.iterdir())


def test_statistics_are_numpys() -> None:
    floats = [array.ravel() for state in SOURCE.states for array in state.values() if array.dtype.kind == "f"]
    stats = scan_snapshots(SOURCE)
    np.testing.assert_allclose(stats.variance, np.concatenate(floats).astype(np.float64).var(), rtol=1e-12)


def test_writing_checks_steps_and_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    state = SOURCE.states[0]
    bad: list[tuple[list[State], str]] = [
        ([state], "1 steps were written; the archive should hold 3"),
        ([*SOURCE.states, state], "more than the 3 steps"),
        ([{**state, "x": state["norm.bias"]}], "step 0: array 'x' is unknown"),
        ([{k: v for k, v in state.items() if k != "norm.bias"}], "step 0: array 'norm.bias' is missing"),
        ([{**state, "norm.bias": np.ones(8)}], "step 0: array 'norm.bias' has shape (8,) and type float64"),
    ]
    for given, message in bad:
        with pytest.raises(ArchiveError, match=re.escape(message)):
            write(path, given)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "dtype"), [("a/b", "float32"), ("a", "bfloat16")])
def test_what_hdf5_cannot_hold_is_refused(tmp_path: Path, name: str, dtype: str) -> None:
    spec = SnapshotSpec(steps=({name: ArraySpec((2,), dtype)},))
    with pytest.raises(ArchiveError, match="HDF5 cannot hold"), write_snapshots(tmp_path / "a.h5", spec):
        pass
    with pytest.raises(ArchiveError, match=r"use \.h5"), write_snapshots(tmp_path / "a.npz", SOURCE.spec):
        pass


# stores


def test_a_network_loads_its_state_of_any_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    networks = [torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)) for _ in range(3)]
    kept = tuple({k: v.numpy().copy() for k, v in network.state_dict().items()} for network in networks)
    store = krstore.encode_snapshots(StateSource(kept), tmp_path / "n.krs", codec="deltas")
    again = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    for step in (2, 0, 1):
        again.load_state_dict(store.network(step))
        for name, value in networks[step].state_dict().items():
            assert torch.equal(again.state_dict()[name], value)
    with pytest.raises(UsageError, match="has no step 3; its steps are 0 to 2"):
        store.network(3)


def test_bfloat16_states_live_in_stores(tmp_path: Path) -> None:
    weight = torch.randn(5, 3, dtype=torch.bfloat16)
    array = krstore.tensors.as_array(weight)
    store = krstore.encode_snapshots(StateSource(({"w": array},)), tmp_path / "n.krs", codec="deltas")
    assert torch.equal(store.network(0)["w"], weight)


def test_a_store_is_a_source_again(tmp_path: Path, archive: Path) -> None:
    first = krstore.encode_snapshots(archive, tmp_path / "1.krs", codec="deltas")
    second = krstore.encode_snapshots(tmp_path / "1.krs", tmp_path / "2.krs", codec="deltas")
    assert second.header.source.sha256 == first.header.source.sha256
    assert (tmp_path / "2.krs").read_bytes() == (tmp_path / "1.krs").read_bytes()


def test_targets_are_honoured(tmp_path: Path) -> None:
    size = krstore.encode_snapshots(SOURCE, tmp_path / "a.krs", codec="deltas").bytes.file
    smaller = krstore.encode_snapshots(SOURCE, tmp_path / "b.krs", codec="rounded", max_bytes=size - 500)
    assert smaller.path.stat().st_size <= size - 500
    assert smaller.quality.mse > 0
    exact = krstore.encode_snapshots(SOURCE, tmp_path / "c.krs", codec="rounded", max_mse=1e-4)
    assert 0 < exact.quality.mse <= 1e-4
    assert exact.quality.max_abs > 0
    assert len(exact.quality.per_step) == 3
    with pytest.raises(TargetUnreachableError):
        krstore.encode_snapshots(SOURCE, tmp_path / "d.krs", codec="rounded", max_bytes=300)
    with pytest.raises(UsageError, match="deltas is lossless"):
        krstore.encode_snapshots(SOURCE, tmp_path / "d.krs", codec="deltas", ratio=2)
    assert not (tmp_path / "d.krs").exists()


def test_each_kind_is_opened_as_what_it_is(tmp_path: Path) -> None:
    krstore.encode_snapshots(SOURCE, tmp_path / "states.krs", codec="deltas")
    krstore.encode(ArraySource(np.ones((9, 4), np.float32)), tmp_path / "samples.krs", "raw")
    with pytest.raises(UsageError, match=r"states\.krs: this store holds a network's states.*SnapshotStore"):
        krstore.open(tmp_path / "states.krs")
    with pytest.raises(UsageError, match=r"samples\.krs: this store holds samples.*krstore\.open"):
        krstore.SnapshotStore(tmp_path / "samples.krs")
    with pytest.raises(UsageError, match="this store holds a network's states"):
        krstore.open_archive(tmp_path / "states.krs")
    with pytest.raises(UsageError, match="codec deltas encodes a network's states"):
        krstore.encode(ArraySource(np.ones((9, 4), np.float32)), tmp_path / "x.krs", "deltas")
    with pytest.raises(UsageError, match="codec raw encodes samples"):
        krstore.encode_snapshots(SOURCE, tmp_path / "x.krs", codec="raw")


def test_verify_measures_again(tmp_path: Path, archive: Path) -> None:
    path = tmp_path / "a.krs"
    krstore.encode_snapshots(archive, path, codec="rounded", max_mse=1e-3)
    assert krstore.verify(path, decode=True).decoded == 3
    assert krstore.verify(path, against=archive).ok
    with h5py.File(archive, "a") as file:
        file["step2/norm.bias"][0] += 1
    with pytest.raises(ArchiveError, match="its arrays have SHA-256"):
        krstore.verify(path, against=archive)
    with pytest.raises(ArchiveError, match="other arrays than the 3"):
        krstore.verify(path, against=example_states(2))
    with pytest.raises(ArchiveError, match="holds samples"):
        krstore.verify(path, against=ArraySource(np.ones((9, 4), np.float32)))


def test_a_codec_at_fault_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fakecodec.deltas import _DeltasDecoder

    good = _DeltasDecoder.network
    for change, message in (
        ({"norm.num_batches_tracked": np.array(7)}, "'norm.num_batches_tracked' of type int64 does not decode exactly"),
        ({"fc.weight": np.ones(3, np.float32)}, "step 0 decodes wrongly: array 'fc.weight' has shape (3,)"),
    ):
        monkeypatch.setattr(_DeltasDecoder, "network", lambda self, step, new=change: {**good(self, step), **new})
        with pytest.raises(KrstoreError, match=re.escape(message)):
            krstore.encode_snapshots(SOURCE, tmp_path / "a.krs", codec="deltas")
        assert not list(tmp_path.iterdir())


# headers


def forged(tmp_path: Path, **changes: Any) -> bytes:
    krstore.encode_snapshots(SOURCE, tmp_path / "good.krs", codec="deltas", force=True)
    header = msgspec.to_builtins(krstore.SnapshotStore(tmp_path / "good.krs").header)
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = header
        for parent in parents:
            place = place[parent]
        place[last] = value
    return msgspec.json.encode(header)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source__steps": []}, "malformed"),
        ({"source__steps": [{"w": {"shape": [2, -1], "dtype": "float32"}}] * 3}, "malformed"),
        ({"source__steps": [{"w": {"shape": [2], "dtype": "object"}}] * 3}, "element type 'object'"),
        ({"source__steps": [{"../w": {"shape": [2], "dtype": "float32"}}] * 3}, "step 0 has an array '../w'"),
        ({"source__steps": [{"..": {"shape": [2], "dtype": "float32"}}] * 3}, "step 0 has an array '..'"),
        ({"source__steps": [{"w\n": {"shape": [2], "dtype": "float32"}}] * 3}, "malformed"),
        ({"source__steps": [{"w": {"shape": [1 << 40, 1 << 40], "dtype": "float32"}}] * 3}, "too large"),
        ({"source__bytes": 17}, "states of 17 bytes"),
        ({"quality__per_step": [0.0]}, "1 errors by step for 3 steps"),
        ({"kind": "holograms"}, "a store of kind 'holograms'"),
        ({"kind": "dense"}, "malformed"),
    ],
)
def test_impossible_headers_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    expected = krstore.store.header.CommonHeader
    assert isinstance(decode_header(forged(tmp_path), expected), SnapshotHeader)
    with pytest.raises(CorruptStoreError, match=re.escape(message)):
        decode_header(forged(tmp_path, **changes), expected)


def test_samples_columns_do_not_belong_to_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from krstore.store.subjects import Snapshots

    monkeypatch.setattr(Snapshots, "write_columns", lambda self, sink: sink.container.write("labels", [b"123"]))
    with pytest.raises(UsageError, match=r"cannot be kept in a store: .* a snapshot store with columns"):
        krstore.encode_snapshots(SOURCE, tmp_path / "a.krs", codec="deltas")
    assert not (tmp_path / "a.krs").exists()
