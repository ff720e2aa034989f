"""Adapters, with the real frameworks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

import krstore
from krstore.adapters._loaders import shared
from krstore.errors import UsageError
from krstore.testing import ArraySource


def doubled(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


class Augmented(Dataset[Any]):
    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> Any:
        return torch.randn(4, 2, 2), index


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        while True:
            yield torch.zeros(4, 2, 2), 0


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


OPTIONS: dict[str, Any] = {"ratio": 1.5, "preset": "linear", "device": "cpu"}
X = np.random.default_rng(0).normal(size=(90, 4, 2, 2)).astype(np.float32)


@pytest.fixture
def lossy(tmp_path: Path) -> krstore.Memory:
    """A memory of a lossless store of class 0 and a lossy one of class 1."""
    memory = krstore.Memory.create(tmp_path / "lossy", device="cpu")
    memory.append(krstore.encode(ArraySource(X, np.full(90, 0)), tmp_path / "0.krs", "raw", device="cpu"))
    memory.append(krstore.encode(ArraySource(X, np.full(90, 1)), tmp_path / "1.krs", "transform", **OPTIONS))
    return memory


@pytest.mark.filterwarnings("error:new samples are sharper")
@pytest.mark.parametrize(
    "loading",
    [{"batch_size": 32}, {"batch_size": 32, "drop_last": True, "shuffle": True, "num_workers": 2},
     {"sampler": [5, 5, 80], "batch_size": 2}, {"batch_sampler": [[7, 1], [2]]}],
    ids=["plain", "shuffled in workers", "sampler", "batch sampler"],
)  # fmt: skip
def test_lightning_lets_a_loaders_samples_pass_the_lossy_codec(
    loading: dict[str, Any], lossy: krstore.Memory, tmp_path: Path
) -> None:
    pytest.importorskip("lightning")
    from krstore.adapters.lightning import ReplayDataModule

    new, y = torch.from_numpy(X + 1).half(), torch.arange(100, 190)
    order = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(new, y), generator=order, **loading)
    own = list(loader)
    module = ReplayDataModule(loader, lossy.replay(transform=doubled), share=0.25)
    mixed = module.train_dataloader()
    order.manual_seed(3)
    batches, decoded = list(mixed), {}
    assert len(mixed) == len(batches)
    for (x, labels), (own_x, own_y) in zip(batches, own, strict=True):
        n = len(own_y)
        assert x.dtype == torch.float32
        assert labels[:n].tolist() == own_y.tolist()
        assert abs(len(labels) - n * 4 / 3) < 1
        assert set(labels[n:].tolist()) <= {0, 1}
        assert 0.001 < ((x[:n] / 2 - own_x) ** 2).mean() < 0.7
        decoded |= dict(zip(labels[:n].tolist(), x[:n], strict=True))
    for x, labels in module.train_dataloader():  # encoded once: the next epoch shows the same
        for one, label in zip(x, labels.tolist(), strict=True):
            torch.testing.assert_close(one, decoded.get(label, one))


@pytest.mark.filterwarnings("error:new samples are sharper")
def test_lightning_leaves_alone_what_is_no_sharper(replay: krstore.Replay, lossy: krstore.Memory) -> None:
    pytest.importorskip("lightning")
    from krstore.adapters.lightning import ReplayDataModule

    x, y = torch.randn(40, 4), torch.full((40,), 2)
    beside_exact = ReplayDataModule(DataLoader(TensorDataset(x, y), batch_size=40), replay, share=0)
    assert torch.equal(next(iter(beside_exact.train_dataloader()))[0], x)
    decoded = lossy.stores[1].replay(90, shuffle=False)
    for new in (decoded, DataLoader(decoded, batch_size=90), DataLoader(Subset(decoded, range(90)), batch_size=90)):
        module = ReplayDataModule(new, lossy.replay(), share=0)
        assert torch.equal(
            next(iter(module.train_dataloader()))[0], torch.from_numpy(lossy.stores[1].read(slice(None)))
        )


def test_lightning_warns_of_samples_that_stay_sharper(lossy: krstore.Memory) -> None:
    pytest.importorskip("lightning")
    from krstore.adapters.lightning import ReplayDataModule

    loader = DataLoader(TensorDataset(torch.from_numpy(X), torch.arange(90)), batch_size=90)
    with pytest.warns(UserWarning, match="new samples are sharper than what"):
        module = ReplayDataModule(loader, lossy.replay(), share=0, through_codec=False)
    assert torch.equal(next(iter(module.train_dataloader()))[0], torch.from_numpy(X))


@pytest.mark.filterwarnings("error:new samples are sharper")
def test_lightning_lets_a_lossless_stores_samples_pass_the_codec_too(lossy: krstore.Memory) -> None:
    pytest.importorskip("lightning")
    from krstore.adapters.lightning import ReplayDataModule

    module = ReplayDataModule(lossy.stores[0].replay(32, seed=4), lossy.replay(), share=0)
    first = lossy.stores[0].replay(32, seed=4)
    for (x, y), (own, labels) in zip(module.train_dataloader(), first, strict=True):
        assert torch.equal(y, labels)
        assert 0.001 < ((x - own) ** 2).mean() < 0.7
    assert module.state_dict()["new"] == first.state_dict()


@pytest.mark.filterwarnings("error:new samples are sharper")
def test_lightning_leaves_new_samples_alone_beside_exact_classes_of_a_lossy_memory(lossy: krstore.Memory) -> None:
    pytest.importorskip("lightning")
    from krstore.adapters.lightning import ReplayDataModule

    loader = DataLoader(TensorDataset(torch.from_numpy(X), torch.arange(90)), batch_size=90)
    module = ReplayDataModule(loader, lossy.replay(classes=[0]), share=0)
    assert torch.equal(next(iter(module.train_dataloader()))[0], torch.from_numpy(X))


def stacked(items: Any) -> Any:
    return torch.stack([item[0] for item in items]), torch.tensor([item[1] for item in items])


def test_lightning_knows_a_collation_that_only_stacks(lossy: krstore.Memory) -> None:
    pytest.importorskip("lightning")
    from krstore.adapters.lightning import ReplayDataModule

    triples = [(torch.from_numpy(x), label, "name") for label, x in enumerate(X)]
    module = ReplayDataModule(DataLoader(triples, 45, collate_fn=stacked), lossy.replay(), share=0)  # type: ignore[arg-type]
    batches = list(module.train_dataloader())
    assert [len(y) for _, y in batches] == [45, 45]
    assert torch.cat([y for _, y in batches]).tolist() == [*range(90)]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (TensorDataset(torch.zeros(9, 4, 3, 3), torch.arange(9)),
         r"its samples are \(4, 3, 3\), the replay's are stored as \(4, 2, 2\); its dataset has to give samples"),
        (TensorDataset(torch.zeros(9, 4, 2, 2, dtype=torch.uint8), torch.arange(9)),
         "samples of uint8 cannot be had as float32; its dataset has to give samples as they are stored"),
        (Augmented(), "cannot pass through the replay's codec: sample 0 of the dataset is another one when"),
        (Endless(), "cannot pass through the replay's codec: a Endless is no map-style dataset"),
        (TensorDataset(torch.zeros(9, 4, 2, 2)), "its samples have no labels; its dataset"),
        (TensorDataset(torch.zeros(9, 4, 2, 2), torch.rand(9, 3)), "labels have shape"),
    ],
    ids=["shape", "element type", "augmented", "iterable", "unlabelled", "soft labels"],
)  # fmt: skip
def test_lightning_refuses_samples_that_are_not_as_they_are_stored(
    dataset: Any, message: str, lossy: krstore.Memory
) -> None:
    pytest.importorskip("lightning")
    from krstore.adapters.lightning import ReplayDataModule

    module = ReplayDataModule(DataLoader(dataset, batch_size=3), lossy.replay())
    with pytest.raises(UsageError, match=message):
        module.train_dataloader()


class Tenfold(DataLoader[Any]):
    def __iter__(self) -> Any:
        return ((10 * x, y) for x, y in super().__iter__())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data: Tenfold(data, 3), "a Tenfold makes batches of its own; its dataset"),
        (lambda data: DataLoader(data, None), "a loader without a batch size takes what its dataset makes"),
        (lambda data: DataLoader(data, 3, collate_fn=lambda items: (stacked(items)[0] / 2, stacked(items)[1])),
         "its collate_fn makes something else than samples as they are stored"),
        (lambda data: DataLoader(data, 3, collate_fn=len), "its collate_fn makes something else"),
    ],
    ids=["loader", "no batches", "collation", "no pair"],
)  # fmt: skip
def test_lightning_refuses_loaders_that_do_more_than_to_stack(make: Any, message: str, lossy: krstore.Memory) -> None:
    pytest.importorskip("lightning")
    from krstore.adapters.lightning import ReplayDataModule

    data = [(torch.ones(4, 2, 2), label) for label in range(9)]
    with pytest.raises(UsageError, match=message):
        ReplayDataModule(make(data), lossy.replay()).train_dataloader()


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
