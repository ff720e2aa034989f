"""`krstore snapshot`: a network's states as training leaves them, in one archive, whatever they were saved by."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import krstore
from krstore.backbones import resnet8
from krstore.errors import ArchiveError, OutputError, UsageError
from krstore_cli.app import run as cli


def state(seed: int) -> dict[str, torch.Tensor]:
    """Return the state of a network half of whose weights are pruned by a mask, which leaves negative zeros."""
    torch.manual_seed(0)
    network = resnet8(classes=2 + seed).state_dict()
    for name, value in network.items():
        if value.ndim > 1 and not name.startswith("fc"):
            network[name] = value * (torch.arange(value.numel()).reshape(value.shape) % 4 <= seed)
    return network


SAVED: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "plain": lambda state: state,
    "wrapped": lambda state: {"epoch": 3, "state_dict": state, "best": 0.5},
    "model": lambda state: {"model": state},
}


@pytest.mark.parametrize("how", SAVED)
def test_safetensors_and_checkpoints_make_the_same_archive(how: str, tmp_path: Path) -> None:
    for step in range(2):
        save_file(state(step), tmp_path / f"{step}.safetensors")
        torch.save(SAVED[how](state(step)), tmp_path / f"{step}.pt")
    sources = [
        krstore.snapshot([tmp_path / f"{step}.{suffix}" for step in range(2)], tmp_path / f"{suffix}.h5")
        for suffix in ("safetensors", "pt")
    ]
    assert sources[0].spec.steps == sources[1].spec.steps
    for step in range(2):
        for name, value in state(step).items():
            for source in sources:
                np.testing.assert_array_equal(source.read(step, name), value.numpy())
    assert sources[0].spec.attributes["files"] == ["0.safetensors", "1.safetensors"]


def test_masks_negative_zeros_become_zeros_and_packnet_takes_them(tmp_path: Path) -> None:
    files = [tmp_path / f"step{step}.safetensors" for step in range(3)]
    for step, file in enumerate(files):
        save_file(state(step), file)
    assert any(torch.signbit(v[v == 0]).any() for v in state(0).values() if v.ndim > 1)
    assert cli(["snapshot", *map(str, files), "-o", str(tmp_path / "snaps.h5"), "--json"]) == 0
    assert cli(["encode", str(tmp_path / "snaps.h5"), "--codec", "packnet", "--quiet"]) == 0
    store = krstore.SnapshotStore(tmp_path / "snaps.packnet.krs")
    for step in range(3):
        network = resnet8(classes=2 + step)
        network.load_state_dict(store.network(step))
        assert all(torch.equal(value, network.state_dict()[name]) for name, value in state(step).items())
    assert store.bytes.file < 0.45 * sum(file.stat().st_size for file in files)
    assert cli(["decode", str(store.path), "-o", str(tmp_path / "again.h5"), "--quiet"]) == 0
    again, snaps = (krstore.open_snapshots(tmp_path / f"{name}.h5") for name in ("again", "snaps"))
    assert all(
        again.read(step, name).tobytes() == snaps.read(step, name).tobytes()
        for step, arrays in enumerate(snaps.spec.steps) for name in arrays
    )  # fmt: skip


def test_files_whose_names_are_not_utf_8(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"caf\xe9.pt")
    torch.save({"w": torch.zeros(3)}, file)
    assert krstore.snapshot([file], tmp_path / "snaps.h5").spec.attributes["files"] == [r"caf\udce9.pt"]


def test_states_without_any_element(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(0, 3)}, tmp_path / "a.pt")
    source = krstore.snapshot([tmp_path / "a.pt"], tmp_path / "snaps.h5")
    with pytest.raises(ArchiveError, match="hold no elements"):
        krstore.encode_snapshots(source, tmp_path / "a.krs", codec="packnet")


NESTED = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)


class Opened:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (lambda folder: torch.save(Opened(folder / "run"), folder / "a.pt"), "holds more than weights"),
        (lambda folder: torch.save({"w": 3}, folder / "a.pt"), "'w' is a int; expected tensors by name"),
        (lambda folder: torch.save([1], folder / "a.pt"), "holds a list; expected a state dict"),
        (lambda folder: torch.save({}, folder / "a.pt"), "holds no arrays"),
        (lambda folder: torch.save({"w": torch.zeros(2, dtype=torch.complex64)}, folder / "a.pt"), "type complex64"),
        (lambda folder: torch.save({"": torch.zeros(2)}, folder / "a.pt"), "'' is no name"),
        (lambda folder: torch.save({"w": torch.eye(2).to_sparse()}, folder / "a.pt"), "'w' is sparse"),
        (lambda folder: torch.save({"\udce9": torch.zeros(2)}, folder / "a.pt"), "is no name"),
        (lambda folder: torch.save({"w": torch.zeros((1,) * 40)}, folder / "a.pt"), "'w' is of 40 axes"),
        (lambda folder: torch.save({"w": NESTED}, folder / "a.pt"), "'w' is nested|holds more than weights"),
        (lambda folder: torch.save({"w": torch.zeros(1).as_strided((1 << 40,), (0,))}, folder / "a.pt"), "is expanded"),
        (lambda folder: torch.save({"a/b": torch.zeros(2)}, folder / "a.pt"), "cannot hold array 'a/b'"),
        (lambda folder: (folder / "a.pt").write_bytes(b"no checkpoint"), "a.pt"),
        (lambda folder: (folder / "a.pt").write_bytes(b""), "a.pt"),
        (lambda folder: None, "is not a file"),
    ],
)
def test_what_is_no_state_is_refused(saved: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(ArchiveError, match=message):
        krstore.snapshot([tmp_path / "a.pt"], tmp_path / "snaps.h5")
    assert not (tmp_path / "snaps.h5").exists()
    assert not (tmp_path / "run").exists()


def test_a_damaged_safetensors_file_an_output_that_exists_and_no_files(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"12345678 no")
    with pytest.raises(ArchiveError, match="cannot be read as safetensors"):
        krstore.snapshot([tmp_path / "a.safetensors"], tmp_path / "snaps.h5")
    (tmp_path / "snaps.h5").write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists"):
        krstore.snapshot([tmp_path / "a.safetensors"], tmp_path / "snaps.h5")
    with pytest.raises(UsageError, match="no states"):
        krstore.snapshot([], tmp_path / "other.h5")
    assert (tmp_path / "snaps.h5").read_bytes() == b"mine"
