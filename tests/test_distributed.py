"""Processes of torchrun that share a fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import krstore
from krstore.distributed import average, joined, processes
from krstore.testing import ArraySource, example_source


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run krstore in two processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python", "--nproc-per-node", "2"]
    command = [*launch, Path(sys.executable).with_name("krstore"), *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=180)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    source = example_source(400, (6, 4, 4))
    np.savez(tmp_path / "features.npz", features=source.features, labels=source.labels)
    return tmp_path / "features.npz"


@pytest.mark.parametrize(
    ("codec", "settings"),
    [
        ("transform", ("width=8", "iterations=30")),
        pytest.param("autoencoder", ("iterations=150", "c0=8", "batch_size=100"), marks=pytest.mark.slow),
    ],
)
def test_two_processes_fit_one_codec(archive: Path, tmp_path: Path, codec: str, settings: tuple[str, ...]) -> None:
    options = [
        "--codec",
        codec,
        "--ratio",
        10,
        "--device",
        "cpu",
        *(word for one in settings for word in ("--set", one)),
    ]
    ran = torchrun("encode", archive, "-o", tmp_path / "two.krs", *options, "--json")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count('"ratio"') == 1, "the first process alone reports"
    alone = krstore.encode(
        archive, tmp_path / "one.krs", codec, ratio=10, device="cpu",
        settings=dict(setting.split("=") for setting in settings),
    )  # fmt: skip
    two = krstore.open(tmp_path / "two.krs", device="cpu")
    two.check()
    assert two.ratio >= 10
    assert two.quality.nmse < 1.15 * alone.quality.nmse + 0.01
    assert {path.name for path in tmp_path.iterdir()} == {"features.npz", "one.krs", "two.krs"}


FITTING = """
import sys
import krstore
from krstore.distributed import joined, processes
from krstore.modules import weights_hash
from krstore_codecs._training import BatchFeed, Trainer

batches, run = BatchFeed.batches, Trainer.run

def told(feed, skip=0):
    for number, (ids, grids) in enumerate(batches(feed, skip)):
        if number == 0:
            print("batch", sorted(ids.tolist()), flush=True)
        yield ids, grids

def trained(trainer):
    run(trainer)
    print("weights", weights_hash(trainer.network), flush=True)

BatchFeed.batches, Trainer.run = told, trained
with joined():
    settings = {"width": 8, "iterations": 6, "batch_size": 20}
    krstore.encode(*sys.argv[1:], "transform", ratio=10, device="cpu", settings=settings, together=True)
"""


def test_processes_that_fit_together_learn_the_same_from_other_batches(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "fitting.py").write_text(FITTING)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, str(tmp_path / "fitting.py"), str(archive), str(tmp_path / "two.krs")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert ran.returncode == 0, ran.stderr
    batches, weights = (
        {line for line in ran.stdout.splitlines() if line.startswith(what)} for what in ("batch", "weights")
    )
    assert len(batches) == 2
    assert all(len(line.split(",")) == 10 for line in batches), "half a batch each"
    assert len(weights) == 1


def test_an_error_of_all_is_an_error(archive: Path, tmp_path: Path) -> None:
    ran = torchrun("encode", archive, "-o", tmp_path / "two.krs", "--codec", "transform", "--max-bytes", 300)
    assert ran.returncode != 0
    assert "error: transform: its smallest network" in ran.stderr
    assert not (tmp_path / "two.krs").exists()


REPLAYING = """
import sys, torch, torch.distributed as dist
from krstore import Memory
from krstore.distributed import average, broadcast
replay = Memory(sys.argv[1], device="cpu").replay(batch_size=7, seed=3)  # before it is known that there are two
dist.init_process_group("gloo")
means, first = torch.tensor([[1.0, 5], [3, 8]])[dist.get_rank()], torch.tensor([dist.get_rank() + 4])
average([means])
broadcast(first)
assert (means.tolist(), first.tolist()) == ([2.0, 6.5], [4])
own = [torch.cat([x[:, 0] for x, _ in replay]) for _ in range(2)]  # two epochs
everyone = [None, None]
dist.all_gather_object(everyone, own)
if dist.get_rank() == 0:
    for epoch in range(2):
        parts = [shares[epoch] for shares in everyone]
        print(len(parts[0]), len(parts[1]), sorted(torch.cat(parts).int().tolist()) == list(range(60)))
dist.destroy_process_group()
"""


def test_processes_replay_a_share_each(tmp_path: Path) -> None:
    features = np.arange(60, dtype=np.float32)[:, None].repeat(4, 1)
    memory = krstore.Memory.create(tmp_path / "memory")
    memory.append(krstore.encode(ArraySource(features, np.arange(60) % 3), tmp_path / "a.krs", "raw", device="cpu"))
    (tmp_path / "replaying.py").write_text(REPLAYING)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, str(tmp_path / "replaying.py"), str(tmp_path / "memory")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["30 30 True", "30 30 True"]


def test_one_process_is_alone() -> None:
    assert processes() == (0, 1)
    with joined() as several:
        assert not several
    x = torch.arange(3.0)
    average([x, torch.arange(2)])
    assert x.tolist() == [0, 1, 2]
