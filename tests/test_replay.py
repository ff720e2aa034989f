"""Replay: epochs, seeds, classes, DataLoaders."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import krstore
from krstore.errors import UsageError
from krstore.replay import Replay
from krstore.testing import ArraySource, example_source

SAMPLES = 103
LABELS = np.random.default_rng(0).choice([-3, 5, 1000], SAMPLES)
SOURCE = ArraySource(np.arange(SAMPLES, dtype=np.float32)[:, None] * np.ones((1, 4), np.float32), LABELS)


@pytest.fixture
def store(tmp_path: Path) -> krstore.Store:
    return krstore.encode(SOURCE, tmp_path / "x.krs", "raw", device="cpu")


def ids_of(batches: Any) -> list[int]:
    """Every sample is filled with its ID."""
    return [int(row[0]) for x, _ in batches for row in x]


def test_an_epoch_has_each_sample_once(store: krstore.Store) -> None:
    replay = store.replay(batch_size=10)
    batches = list(replay)
    assert [len(x) for x, _ in batches] == [10] * 10 + [3]
    assert len(batches) == replay.batches == 11
    assert len(replay) == SAMPLES
    seen = ids_of(batches)
    assert sorted(seen) == list(range(SAMPLES))
    assert seen != sorted(seen)
    for x, y in batches:
        assert (x.shape[1:], x.dtype, y.dtype) == ((4,), torch.float32, torch.int64)
        np.testing.assert_array_equal(y, LABELS[x[:, 0].long()])


def test_the_seed_gives_the_order_epoch_by_epoch(store: krstore.Store) -> None:
    one, same, other = (store.replay(batch_size=10, seed=seed) for seed in (7, 7, 8))
    epochs = [ids_of(one) for _ in range(3)]
    assert epochs == [ids_of(same) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert ids_of(other) != epochs[0]


def test_unshuffled_is_the_stores_order(store: krstore.Store) -> None:
    replay = store.replay(batch_size=10, shuffle=False)
    assert ids_of(replay) == ids_of(replay) == list(range(SAMPLES))


def test_the_last_batch_may_be_dropped(store: krstore.Store) -> None:
    replay = store.replay(batch_size=10, drop_last=True)
    assert [len(x) for x, _ in replay] == [10] * 10
    assert replay.batches == 10
    assert store.replay(batch_size=1000, drop_last=True).batches == 0
    assert [len(x) for x, _ in store.replay(batch_size=1000)] == [SAMPLES]


def test_some_classes_only(store: krstore.Store) -> None:
    replay = store.replay(batch_size=10, classes=[1000, -3])
    expected = np.flatnonzero(LABELS != 5)
    assert len(replay) == len(expected)
    assert sorted(ids_of(replay)) == expected.tolist()
    with pytest.raises(UsageError, match=r"class 6 is not in .*; it has \[-3, 5, 1000\]"):
        store.replay(classes=[5, 6])


@pytest.mark.parametrize("size", [0, -1])
def test_batches_of_nothing(store: krstore.Store, size: int) -> None:
    with pytest.raises(UsageError, match=f"batch_size={size} is not positive"):
        store.replay(batch_size=size)


def test_unlabelled_stores_have_nothing_to_replay(tmp_path: Path) -> None:
    store = krstore.encode(ArraySource(SOURCE.features), tmp_path / "x.krs", "raw")
    with pytest.raises(UsageError, match=r"has no labels to replay; use store\.read"):
        store.replay()


def test_map_style(store: krstore.Store) -> None:
    replay = store.replay(classes=[5])
    members = np.flatnonzero(LABELS == 5)
    x, y = replay[3]
    assert (x.tolist(), y.item(), y.dtype) == ([members[3]] * 4, 5, torch.int64)
    assert replay[-1][0][0] == members[-1]
    for index in (len(replay), -len(replay) - 1):
        with pytest.raises(IndexError, match=f"sample {index} of {len(replay)}"):
            replay[index]
    pairs = replay.__getitems__([4, 0, 4])
    assert [int(x[0]) for x, _ in pairs] == members[[4, 0, 4]].tolist()


class Counting(Replay):
    """Counts how samples are fetched."""

    fetches = 0

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("a DataLoader fetches whole batches")

    def __getitems__(self, indices: list[int]) -> Any:
        type(self).fetches += 1
        return super().__getitems__(indices)


def test_dataloaders_fetch_batches(store: krstore.Store) -> None:
    batches = list(DataLoader(Counting(store), batch_size=25, shuffle=True))
    assert sorted(ids_of(batches)) == list(range(SAMPLES))
    assert Counting.fetches == len(batches) == 5


def test_dataloader_with_workers(store: krstore.Store) -> None:
    batches = list(DataLoader(store.replay(), batch_size=20, num_workers=2))
    assert ids_of(batches) == list(range(SAMPLES))
    np.testing.assert_array_equal(torch.cat([y for _, y in batches]), LABELS)


def test_replay_pickles(store: krstore.Store) -> None:
    replay = store.replay(batch_size=10, seed=3, classes=[5])
    next(iter(replay))
    again = pickle.loads(pickle.dumps(replay))
    assert ids_of(again) == ids_of(replay)


@pytest.mark.parametrize(
    ("dtype", "expected"), [(None, torch.uint8), (torch.float32, torch.float32), (torch.float16, torch.float16)]
)
def test_types(tmp_path: Path, dtype: torch.dtype | None, expected: torch.dtype) -> None:
    source = example_source(50, (3, 4, 4), "uint8")
    replay = krstore.encode(source, tmp_path / "x.krs", "raw").replay(dtype=dtype, shuffle=False, batch_size=50)
    x, _ = next(iter(replay))
    assert x.dtype == expected
    np.testing.assert_array_equal(x.numpy(), source.features.astype(x.numpy().dtype))


def test_bfloat16_sources(tmp_path: Path) -> None:
    source = example_source(50, (3, 4, 4), "bfloat16")
    store = krstore.encode(source, tmp_path / "x.krs", "raw")
    assert next(iter(store.replay()))[0].dtype == torch.float32
    assert next(iter(store.replay(dtype=None)))[0].dtype == torch.bfloat16


def test_batches_go_to_a_device(store: krstore.Store) -> None:
    x, y = next(iter(store.replay(device="meta")))
    assert x.device.type == y.device.type == "meta"
    x, y = next(iter(store.replay()))
    assert x.device.type == y.device.type == "cpu"


def test_a_neural_store_replays_what_it_reads(tmp_path: Path) -> None:
    source = example_source(90)
    store = krstore.encode(source, tmp_path / "x.krs", "krnet", ratio=1.0, settings={"iterations": 3}, device="cpu")
    batches = list(store.replay(batch_size=40, shuffle=False))
    np.testing.assert_allclose(torch.cat([x for x, _ in batches]), store.read(slice(None)), rtol=1e-4, atol=1e-5)


def test_a_neural_stores_batches_are_to_train_on(tmp_path: Path) -> None:
    """Tensors of inference mode would break the first backward pass."""
    store = krstore.encode(
        example_source(90), tmp_path / "x.krs", "krnet", ratio=1.0, settings={"iterations": 3}, device="cpu"
    )
    x, y = next(iter(store.replay(batch_size=40)))
    network = torch.nn.Sequential(torch.nn.Conv2d(6, 3, 4), torch.nn.Flatten())
    torch.nn.functional.cross_entropy(network(x), y % 3).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    x.mul_(2)
