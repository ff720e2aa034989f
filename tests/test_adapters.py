"""Adapters, with the real frameworks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

import krstore
from krstore.errors import UsageError
from krstore.testing import ArraySource


@pytest.fixture
def replay(tmp_path: Path) -> krstore.Replay:
    features = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    memory = krstore.Memory.create(tmp_path / "memory")
    memory.append(krstore.encode(ArraySource(features, np.arange(60) % 2), tmp_path / "a.krs", "raw", device="cpu"))
    return memory.replay(seed=3)


@pytest.fixture
def new() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(40, 4), torch.full((40,), 2)), batch_size=8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("replayed", [False, True])
def test_lightning_trains_on_both_and_resumes_where_it_was(
    replayed: bool, new: DataLoader[Any], tmp_path: Path
) -> None:
    lightning = pytest.importorskip("lightning")
    from krstore.adapters.lightning import ReplayDataModule

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = torch.nn.Linear(4, 3)
            self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

        def training_step(self, batch: Any, index: int) -> Any:
            x, y = batch
            self.seen.append((x, y))
            return torch.nn.functional.cross_entropy(self.network(x), y)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def trained(epochs: int, save: Path | None = None, resume: Path | None = None) -> Module:
        """Train on samples of two replays, or of a loader and a replay, that are new ones each time."""
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path,
        )  # fmt: skip
        fresh = krstore.open(task.path).replay(batch_size=8, seed=5) if replayed else new
        data = ReplayDataModule(fresh, krstore.open(old.path).replay(seed=3), share=0.75)
        module = Module()
        trainer.fit(module, datamodule=data, ckpt_path=resume)
        if save is not None:
            trainer.save_checkpoint(save)
        return module

    features = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    old = krstore.encode(ArraySource(features[:60], np.arange(60) % 2), tmp_path / "old.krs", "raw")
    task = krstore.encode(ArraySource(features[60:], np.full(40, 2)), tmp_path / "new.krs", "raw")
    whole, first = trained(3), trained(2, save=tmp_path / "a.ckpt")
    labels = torch.cat([y for _, y in whole.seen])
    assert [len(y) for _, y in whole.seen] == [32] * 15
    assert ((labels < 2).float().mean() - 0.75).abs() < 0.01
    rest = trained(3, resume=tmp_path / "a.ckpt")
    assert len(rest.seen) == 5
    for (x, _), (expected, _) in zip([*first.seen, *rest.seen], whole.seen, strict=True):
        torch.testing.assert_close(x, expected, rtol=0, atol=0)


@pytest.mark.parametrize("shuffle", [False, True])
def test_lightning_shares_the_new_task_among_processes(shuffle: bool) -> None:
    pytest.importorskip("lightning")
    from krstore.adapters.lightning import shared

    loader = DataLoader(TensorDataset(torch.arange(40)), batch_size=7, shuffle=shuffle, drop_last=True)
    parts = [shared(loader, rank, 2) for rank in range(2)]
    epochs = []
    for epoch in range(2):
        for part in parts:
            part.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        epochs.append([torch.cat([x for (x,) in part]).tolist() for part in parts])
    for first, second in epochs:
        assert len(first) == len(second) == 14
        assert not {*first} & {*second}
    assert (epochs[0] != epochs[1]) == shuffle
    assert shared(parts[1], 1, 2) is parts[1]
    assert shared(loader, 0, 1) is loader
    with pytest.raises(UsageError, match="2 processes: the new task's loader has a sampler of its own"):
        shared(DataLoader(loader.dataset, sampler=WeightedRandomSampler([1.0] * 40, 40)), 0, 2)


def test_lightning_takes_a_new_task_through_the_codec_too(new: DataLoader[Any], tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    from krstore.adapters.lightning import ReplayDataModule

    features = np.random.default_rng(0).normal(size=(90, 4, 2, 2)).astype(np.float32)
    options: dict[str, Any] = {"ratio": 1.5, "preset": "linear", "device": "cpu"}
    old, fresh = (
        krstore.encode(ArraySource(features, np.full(90, label)), tmp_path / f"{label}.krs", "transform", **options)
        for label in range(2)
    )
    with pytest.warns(UserWarning, match="new samples are sharper than what"):
        ReplayDataModule(new, old.replay())
    loader = ReplayDataModule(fresh.replay(30, shuffle=False), old.replay(), share=0.25).train_dataloader()
    batches = list(loader)
    assert len(loader) == len(batches) == 3
    assert all(y.tolist() == [1] * 30 + [0] * 10 for _, y in batches)
    np.testing.assert_array_equal(batches[1][0][:30].numpy(), fresh.read(slice(30, 60)))


IN_TWO = """
import sys, lightning, torch, torch.distributed as dist
from torch.utils.data import DataLoader, TensorDataset
import krstore
from krstore.adapters.lightning import ReplayDataModule

class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.network, self.seen = torch.nn.Linear(4, 3), []

    def training_step(self, batch, index):
        self.seen.append(batch[0][:, 0].detach())
        return torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_train_end(self):
        everyone = [None, None]
        dist.all_gather_object(everyone, torch.cat(self.seen).int().tolist())
        if dist.get_rank() == 0:
            print([len(own) for own in everyone], sorted(sum(everyone, [])) == [*range(60), *range(100, 160)])

new = torch.arange(100.0, 160)[:, None].expand(-1, 4)
loader = DataLoader(TensorDataset(new, torch.full((60,), 2)), batch_size=10, shuffle=True)
replay = krstore.Memory(sys.argv[1], device="cpu").replay()
trainer = lightning.Trainer(
    max_epochs=1, accelerator="cpu", strategy="ddp", devices=2, logger=False, enable_progress_bar=False,
    enable_model_summary=False, enable_checkpointing=False,
)
trainer.fit(Module(), datamodule=ReplayDataModule(loader, replay))
"""


@pytest.mark.slow
def test_lightning_in_two_processes_shows_each_sample_once(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    features = np.arange(60, dtype=np.float32)[:, None].repeat(4, 1)
    memory = krstore.Memory.create(tmp_path / "memory")
    memory.append(krstore.encode(ArraySource(features, np.arange(60) % 2), tmp_path / "a.krs", "raw", device="cpu"))
    (tmp_path / "fit.py").write_text(IN_TWO)
    command = [sys.executable, str(tmp_path / "fit.py"), str(tmp_path / "memory")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "[60, 60] True"


def test_lightning_refuses_a_share_out_of_range(replay: krstore.Replay, new: DataLoader[Any]) -> None:
    pytest.importorskip("lightning")
    from krstore.adapters.lightning import ReplayDataModule

    with pytest.raises(UsageError, match="share=1 is not in"):
        ReplayDataModule(new, replay, share=1)


@pytest.mark.filterwarnings("ignore")
def test_torchrl_samples_what_is_stored(replay: krstore.Replay) -> None:
    data = pytest.importorskip("torchrl.data")
    from krstore.adapters.torchrl import ReplayStorage, replay_buffer

    buffer = replay_buffer(replay, sampler=data.replay_buffers.SamplerWithoutReplacement(), batch_size=20)
    batches = [buffer.sample() for _ in range(3)]
    order = torch.cat([batch["index"] for batch in batches])
    assert sorted(order.tolist()) == list(range(60))
    features, labels = replay.read(order.numpy())
    assert torch.equal(torch.cat([batch["features"] for batch in batches]), features)
    assert torch.equal(torch.cat([batch["labels"] for batch in batches]), labels)
    again = replay_buffer(replay)
    again.load_state_dict(replay_buffer(replay).state_dict())
    assert len(again.sample()) == replay.batch_size
    with pytest.raises(RuntimeError, match="doesn't allow writing"):
        buffer.extend(batches[0])
    storage = ReplayStorage(replay)
    assert torch.equal(storage[2:5]["features"], features[[order.tolist().index(i) for i in (2, 3, 4)]])
    assert storage[7]["features"].shape == (4,)
    assert 59 in storage
    assert 60 not in storage
    with pytest.raises(IndexError):
        storage[60]
    storage.load_state_dict(storage.state_dict())
    with pytest.raises(UsageError, match="the checkpoint is of 59 samples; the replay has 60"):
        storage.load_state_dict({"samples": 59})
    with pytest.raises(UsageError, match="stores are written once"):
        storage.set(0, batches[0])
