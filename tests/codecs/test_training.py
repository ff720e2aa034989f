"""Fits: the paper's schedule, plateaus, batches, checkpoints, divergence, seeds."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import krstore
from krstore.checkpoint import Checkpoint
from krstore.codec import FitContext
from krstore.config import build_config
from krstore.errors import KrstoreError, UsageError
from krstore.progress import SILENT, Progress
from krstore.source import scan
from krstore.store import writer
from krstore.testing import ArraySource, example_source
from krstore_codecs import _training
from krstore_codecs._normalise import Normaliser
from krstore_codecs._training import BatchFeed, Trainer
from krstore_codecs.krnet import KRNet

SOURCE = example_source(120, (4, 3, 3))
NEURAL = ("krnet", "autoencoder", "transform")


def feed(source: ArraySource, batch_size: int = 32, seed: int = 0) -> BatchFeed:
    return BatchFeed(source, Normaliser.of(source.spec, scan(source)), batch_size, "cpu", seed)


class Run:
    """A trainer of one weight, and the learning rate of every iteration it did."""

    def __init__(self, losses: Iterator[float], **settings: Any) -> None:
        config = build_config("krnet", KRNet.Config, KRNet.presets, "paper-cifar", settings)
        context = FitContext(
            stats=scan(SOURCE),
            budget=None,
            max_mse=None,
            device="cpu",
            seed=0,
            progress=SILENT,
            checkpoint=Checkpoint(None),
        )
        self.rates: list[float] = []
        network = nn.Linear(1, 1)

        def loss(ids: Tensor, grids: Tensor, iteration: int) -> tuple[Tensor, Tensor]:
            assert iteration == len(self.rates)
            self.rates.append(self.trainer.optimizer.param_groups[0]["lr"])
            return network.weight.sum() * 0, torch.tensor(next(losses))

        self.trainer = Trainer(config, context, network, feed(SOURCE), loss)
        self.trainer.run()


@pytest.mark.parametrize(("preset", "share"), [("paper-cifar", 0.5), ("paper-imagenet", 0.4)])
def test_learning_rate_is_the_papers(preset: str, share: float) -> None:
    """3e-3 for 20,000 iterations, then linear to 3e-6 at the last; here with a hundredth of the iterations."""
    paper = dict(KRNet.presets[preset])
    iterations = paper["iterations"] // 100
    rates = Run(itertools.repeat(1.0), iterations=iterations, constant=paper["constant"]).rates
    half = 200
    assert paper["constant"] == share
    assert len(rates) == iterations == round(half / share)
    assert rates[:half] == [3e-3] * half
    step = (3e-3 - 3e-6) / (iterations - half)
    np.testing.assert_allclose(rates[half:], 3e-3 - step * np.arange(iterations - half), rtol=1e-9)
    assert rates[-1] - step == pytest.approx(3e-6)


def test_a_plateau_begins_the_decay_early() -> None:
    """The loss is looked at over tenths of the schedule: it stops falling in the third of ten."""
    falling = itertools.chain((1 / (1 + n / 20) for n in range(80)), itertools.repeat(0.2))
    rates = Run(falling, iterations=400, plateau=0.01).rates
    flat = sum(rate == 3e-3 for rate in rates)
    assert 120 <= flat <= 161
    assert len(rates) - (flat - 1) == 200
    np.testing.assert_allclose(np.diff(rates[flat - 1 :]), (3e-6 - 3e-3) / 200, rtol=1e-6)


def test_a_falling_loss_is_no_plateau() -> None:
    rates = Run((0.99**n for n in itertools.count()), iterations=400, plateau=0.01).rates
    assert len(rates) == 400
    assert rates[199] == 3e-3


@pytest.mark.parametrize("at", [3, 17, 39])
def test_divergence_is_said(at: int) -> None:
    losses = itertools.chain(itertools.repeat(1.0, at), itertools.repeat(float("nan")))
    with pytest.raises(KrstoreError, match=r"the fit diverged at iteration \d+ \(loss nan\); try a smaller"):
        Run(losses, iterations=40)


@pytest.mark.parametrize("codec", NEURAL)
@pytest.mark.parametrize("settings", [{}, {"weights": "float32"}])
@pytest.mark.parametrize("iterations", [9, 20])
def test_a_fit_that_diverges_leaves_no_file(tmp_path: Path, codec: str, settings: Any, iterations: int) -> None:
    wild = {"iterations": iterations, "learning_rate": 1e30, **settings}
    with contextlib.suppress(KrstoreError):
        store = krstore.encode(SOURCE, tmp_path / "x.krs", codec, max_bytes=200_000, settings=wild, device="cpu")
        assert np.isfinite(store.read(slice(None))).all()
        return
    assert not (tmp_path / "x.krs").exists()


def batches(source: ArraySource, count: int, skip: int = 0, **options: Any) -> list[tuple[Any, Any]]:
    got = itertools.islice(feed(source, **options).batches(skip), count)
    return [(ids.numpy(), grids.numpy()) for ids, grids in got]


def numbered(samples: int) -> ArraySource:
    return ArraySource(np.arange(samples, dtype=np.float32)[:, None] * np.ones((1, 4), np.float32))


NUMBERED = numbered(128)


@pytest.fixture(params=["resident", "streamed"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Streamed: by two buffers of 64 samples."""
    if request.param == "streamed":
        monkeypatch.setattr(_training, "RESIDENT_BYTES_CPU", 100)
        monkeypatch.setattr(_training, "BUFFER_BYTES", 64 * NUMBERED.spec.sample_bytes)
    return str(request.param)


@pytest.mark.parametrize(("batch_size", "resident", "streamed"), [(1, 128, 128), (16, 8, 8), (10, 12, 12), (30, 4, 4)])
def test_every_sample_once_an_epoch(memory: str, batch_size: int, resident: int, streamed: int) -> None:
    """All but the remainder that makes no whole batch; another one, in another order, each epoch."""
    count = resident if memory == "resident" else streamed
    epochs = [batches(NUMBERED, count, skip=epoch * count, batch_size=batch_size) for epoch in range(3)]
    seen = [np.concatenate([ids for ids, _ in epoch]).tolist() for epoch in epochs]
    for ids in seen:
        assert len(ids) == len(set(ids)) == count * batch_size > 128 - 2 * batch_size
        assert ids != sorted(ids)
    assert seen[0] != seen[1] != seen[2]


@pytest.mark.usefixtures("memory")
def test_an_odd_number_of_samples() -> None:
    """No sample twice before all but the remainders were there once, and none is left out for ever."""
    source = numbered(131)
    first = np.concatenate([ids for ids, _ in batches(source, 16, batch_size=8)])
    assert len(set(first.tolist())) == len(first) > 120
    assert {*np.concatenate([ids for ids, _ in batches(source, 160, batch_size=8)]).tolist()} == set(range(131))


@pytest.mark.usefixtures("memory")
def test_batches_hold_the_samples_of_their_ids_scaled() -> None:
    for ids, grids in batches(NUMBERED, 30, batch_size=8):
        assert grids.shape == (8, 4, 1, 1)
        np.testing.assert_allclose(grids[:, :, 0, 0], np.repeat(ids[:, None] / 127, 4, axis=1), rtol=1e-6)


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("skip", [1, 9, 15, 16, 17, 50])
def test_skipped_batches_are_those_that_were_skipped(skip: int) -> None:
    whole = batches(NUMBERED, skip + 20, batch_size=8)
    for (ids, grids), (same_ids, same) in zip(batches(NUMBERED, 20, skip, batch_size=8), whole[skip:], strict=True):
        np.testing.assert_array_equal(ids, same_ids)
        np.testing.assert_array_equal(grids, same)


@pytest.mark.usefixtures("memory")
def test_the_seed_orders_the_batches() -> None:
    first, same, other = (
        [ids.tolist() for ids, _ in batches(NUMBERED, 12, batch_size=8, seed=seed)] for seed in (0, 0, 1)
    )
    assert first == same != other


def test_fewer_samples_than_a_batch() -> None:
    for ids, _ in batches(NUMBERED, 3, batch_size=1000):
        assert sorted(ids.tolist()) == list(range(128))


def encode(path: Path, codec: str, **options: Any) -> krstore.Store:
    settings = {"iterations": 30, "batch_size": 16} | options.pop("settings", {})
    if codec == "transform":
        settings["width"] = 8  # as given, kept even where no net would do better
    return krstore.encode(SOURCE, path, codec, ratio=1.2, settings=settings, device="cpu", force=True, **options)


class Interrupting:
    """Presses Ctrl-C at an iteration of the fit."""

    def __init__(self, at: int) -> None:
        self.left = at

    @contextlib.contextmanager
    def task(self, description: str, total: int, unit: str = "samples") -> Iterator[Any]:
        self.fitting = description == "fit"
        yield self

    def advance(self, amount: int = 1, **figures: float) -> None:
        if self.fitting:
            self.left -= amount
            if self.left <= 0:
                raise KeyboardInterrupt

    def note(self, message: str) -> None:
        return


@pytest.fixture
def eager_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "Checkpoint", functools.partial(Checkpoint, every=0.0))


def interrupt(path: Path, codec: str, at: int) -> Path:
    progress: Progress = Interrupting(at)
    with pytest.raises(KeyboardInterrupt):
        encode(path, codec, progress=progress)
    assert [entry.name for entry in path.parent.iterdir()] == [f".{path.name}.checkpoint"]
    return path.with_name(f".{path.name}.checkpoint")


@pytest.mark.usefixtures("eager_checkpoints")
@pytest.mark.parametrize("codec", NEURAL)
@pytest.mark.parametrize("at", [10, pytest.param(20, marks=pytest.mark.slow)])
def test_a_resumed_fit_ends_in_the_same_bytes(tmp_path: Path, codec: str, at: int) -> None:
    """Interrupted before and while the weights are quantised."""
    checkpoint = interrupt(tmp_path / "x.krs", codec, at)
    resumed = encode(tmp_path / "x.krs", codec, resume=True).path.read_bytes()
    assert not checkpoint.exists()
    assert encode(tmp_path / "x.krs", codec).path.read_bytes() == resumed


@pytest.mark.usefixtures("eager_checkpoints")
def test_a_checkpoint_is_for_the_same_fit_only(tmp_path: Path) -> None:
    checkpoint = interrupt(tmp_path / "x.krs", "krnet", 10)
    for other in ({"seed": 1}, {"settings": {"batch_size": 17}}):
        with pytest.raises(UsageError, match="checkpoint of another fit"):
            encode(tmp_path / "x.krs", "krnet", resume=True, **other)
        assert checkpoint.exists()
    encode(tmp_path / "x.krs", "krnet", seed=1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.krs"]


@pytest.mark.parametrize("codec", ["krnet", "autoencoder", "pq", "transform"])
def test_seeds(tmp_path: Path, codec: str) -> None:
    if codec == "pq":
        pytest.importorskip("faiss")
    settings = {"iterations": 3} | {"pq": {}, "transform": {"batch_size": 16, "width": 8}}.get(
        codec, {"batch_size": 16}
    )
    first, same, other = (
        krstore.encode(
            SOURCE, tmp_path / f"{n}.krs", codec, ratio=1.2, seed=seed, device="cpu", settings=settings
        ).path.read_bytes()
        for n, seed in enumerate((0, 0, 1))
    )
    assert first == same != other


def test_a_fit_does_not_touch_the_global_seed(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    encode(tmp_path / "x.krs", "krnet", settings={"iterations": 2})
    torch.testing.assert_close(torch.rand(3), expected)


def test_streaming_and_residence_reach_like_quality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resident = encode(tmp_path / "a.krs", "krnet")
    monkeypatch.setattr(_training, "RESIDENT_BYTES_CPU", 100)
    monkeypatch.setattr(_training, "BUFFER_BYTES", 64 * SOURCE.spec.sample_bytes)
    streamed = encode(tmp_path / "b.krs", "krnet")
    assert streamed.quality.mse == pytest.approx(resident.quality.mse, rel=0.3)
    assert streamed.path.read_bytes() != resident.path.read_bytes()


def test_iterations_are_sized_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any given, twice the room for operations allows about twice the iterations, between 200 and 40,000."""
    counts = []
    stats = scan(SOURCE)
    context = FitContext(
        stats=stats, budget=None, max_mse=None, device="cpu", seed=0, progress=SILENT, checkpoint=Checkpoint(None)
    )
    network = nn.Linear(36, 36)

    def loss(ids: Tensor, grids: Tensor, iteration: int) -> tuple[Tensor, Tensor]:
        error = network(grids.flatten(1)).square().mean()
        return error, error

    for room in (1.0, 1e9, 2e9, 1e30):
        monkeypatch.setattr(_training, "CPU_FLOPS", room)
        counts.append(Trainer(KRNet.Config(), context, network, feed(SOURCE), loss).planned)
    assert counts[0] == 200
    assert counts[3] == 40_000
    assert counts[2] == pytest.approx(2 * counts[1], rel=0.01)
