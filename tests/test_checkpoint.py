"""Checkpoints: what is saved is found again, by the same fit only."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from krstore.checkpoint import Checkpoint
from krstore.errors import OutputError, UsageError


def test_tensors_and_values_come_back(tmp_path: Path) -> None:
    path = tmp_path / "x"
    tensors = {"a/b": torch.arange(6.0).view(2, 3).T, "n": torch.tensor(7), "half": torch.ones(2, dtype=torch.bfloat16)}
    values = {"iteration": 12, "loss": math.inf, "on": True}
    Checkpoint(path, "fit").save(tensors, values)
    loaded = Checkpoint(path, "fit", resume=True).load()
    assert loaded is not None
    found, plain = loaded
    assert plain == values
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_the_last_state_counts(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "x", "fit", resume=True)
    for iteration in (1, 2):
        checkpoint.save({"w": torch.full((3,), float(iteration))}, {"iteration": iteration})
    loaded = checkpoint.load()
    assert loaded is not None
    assert loaded[1] == {"iteration": 2}
    assert loaded[0]["w"].tolist() == [2, 2, 2]


def test_nothing_is_found_unless_asked_for(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "x", "fit").save({}, {})
    assert Checkpoint(tmp_path / "x", "fit").load() is None
    assert Checkpoint(tmp_path / "y", "fit", resume=True).load() is None
    assert Checkpoint(None, "fit", resume=True).load() is None


def test_another_fits_state_is_refused(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "x", "one").save({}, {})
    with pytest.raises(UsageError, match=r"x is the checkpoint of another fit .* give the same options again"):
        Checkpoint(tmp_path / "x", "two", resume=True).load()
    assert Checkpoint(tmp_path / "x", "two", resume="auto").load() is None


@pytest.mark.parametrize("data", [b"", b"garbage", b"\2\0\0\0\0\0\0\0{}"])
def test_a_file_that_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(UsageError, match="checkpoint"):
        Checkpoint(tmp_path / "x", "fit", resume=True).load()
    assert Checkpoint(tmp_path / "x", "fit", resume="auto").load() is None


def test_when_it_is_due(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path / "x", every=0).due()
    assert not Checkpoint(tmp_path / "x", every=3600).due()
    assert not Checkpoint(None, every=0).due()


def test_without_a_path_nothing_is_kept() -> None:
    checkpoint = Checkpoint(None)
    checkpoint.save({"w": torch.ones(1)}, {})
    checkpoint.discard()


def test_discarding_removes_the_file(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "x", "fit", resume=True)
    checkpoint.save({}, {})
    for _ in range(2):
        checkpoint.discard()
        assert list(tmp_path.iterdir()) == []
    assert checkpoint.load() is None


@pytest.mark.usefixtures("full_disk")
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*x: "):
        Checkpoint(tmp_path / "x", "fit").save({"w": torch.zeros(1 << 20)}, {})
    assert not list(tmp_path.iterdir())
