"""Replay: epochs, seeds, classes, DataLoaders."""

from __future__ import annotations

import gc
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import krstore
from krstore.errors import CorruptStoreError, UsageError
from krstore.replay import BALANCES, Replay
from krstore.replay.order import Order
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


@pytest.mark.parametrize("balance", ["proportional", "classes"])
def test_workers_decode_the_batches_of_iterating(store: krstore.Store, balance: str) -> None:
    replay = store.replay(batch_size=10, seed=3, balance=balance, drop_last=True)
    loader = DataLoader(replay, batch_sampler=replay.sampler(), num_workers=2)
    epochs = [[y.tolist() for _, y in loader] for _ in range(2)]
    assert epochs == [[y.tolist() for _, y in replay] for _ in range(2)]
    assert len(loader) == replay.batches
    sampler = replay.sampler()
    sampler.set_epoch(1, batch=4)
    assert [y.tolist() for _, y in DataLoader(replay, batch_sampler=sampler)] == epochs[1][4:]


def test_a_dataloader_of_its_own_does_not_balance(store: krstore.Store) -> None:
    with pytest.raises(UsageError, match=r"balance='classes' is of iterating; .*batch_sampler=replay\.sampler\(\)"):
        next(iter(DataLoader(store.replay(balance="classes"), batch_size=10)))


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


# order


def test_classes_take_turns(store: krstore.Store) -> None:
    """103 samples of three classes, rarer ones more than once: each three in a row have every class."""
    replay = store.replay(batch_size=3, balance="classes")
    batches = [y.tolist() for _, y in replay]
    assert all(sorted(batch) == [-3, 5, 1000] for batch in batches[:-1])
    assert sum(map(len, batches)) == SAMPLES
    missed = set(range(SAMPLES)) - set(ids_of(replay))
    values, counts = np.unique(LABELS, return_counts=True)
    assert {LABELS[i] for i in missed} <= set(values[counts > SAMPLES / 3].tolist())


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("world", [1, 2, 5])
def test_processes_share_an_epoch(store: krstore.Store, balance: str, world: int) -> None:
    shares = [ids_of(store.replay(balance=balance, rank=rank, world_size=world)) for rank in range(world)]
    assert {len(share) for share in shares} == {-(-SAMPLES // world)}
    together = np.stack([np.array(share) for share in shares], axis=1).reshape(-1)
    whole = ids_of(store.replay(balance=balance))
    np.testing.assert_array_equal(together[:SAMPLES], whole)
    assert store.replay(rank=0, world_size=world, batch_size=10).batches == math.ceil(len(shares[0]) / 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"balance": "fair"}, "unknown balance 'fair'"),
        ({"balance": "classes", "shuffle": False}, "draws at random; it needs shuffle=True"),
        ({"rank": 2, "world_size": 2}, r"rank=2 is not in 0\.\.1"),
        ({"rank": 2}, "give rank and world_size together"),
        ({"classes": []}, "nothing of .* is left to replay"),
        ({"prefetch": -1}, "prefetch=-1 is not 0 or more"),
        ({"cache_bytes": -1}, "cache_bytes=-1 is not 0 or more"),
    ],
)
def test_arguments_out_of_range(store: krstore.Store, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        store.replay(**options)


@pytest.mark.parametrize("prefetch", [0, 1, 7])
def test_it_goes_on_in_the_middle_of_an_epoch(store: krstore.Store, prefetch: int) -> None:
    whole, first, rest = (store.replay(batch_size=10, seed=5, prefetch=prefetch) for _ in range(3))
    expected = [ids_of([batch]) for batch in [*whole, *whole]]
    stream = first.forever()
    seen = [ids_of([next(stream)]) for _ in range(15)]
    stream.close()
    rest.load_state_dict(first.state_dict())
    assert seen + [ids_of([batch]) for batch in rest] == expected


def test_leaving_an_epoch_begins_the_next(store: krstore.Store) -> None:
    whole, left = (store.replay(batch_size=10, seed=5) for _ in range(2))
    list(whole)
    next(iter(left))
    assert ids_of(left) == ids_of(whole)


def test_any_number_is_taken_from_the_same_sequence(store: krstore.Store) -> None:
    batches, pieces = store.replay(batch_size=10), store.replay()
    expected = ids_of([*batches, *batches, *batches])
    taken = [i for count in (0, 1, 40, 200, 7) for i in ids_of([pieces.take(count)])]
    assert taken == expected[:248]
    state = pieces.state_dict()
    assert (state["epoch"], state["offset"], state["owed"]) == (2, 248 - 2 * SAMPLES, 0.0)


def test_endless_batches_need_one(store: krstore.Store) -> None:
    with pytest.raises(UsageError, match="103 samples do not fill a batch of 200"):
        next(store.replay(batch_size=200, drop_last=True).forever())


@given(share=st.floats(0, 0.9), size=st.integers(1, 40), prefetch=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_old_samples_join_new_ones(share: float, size: int, prefetch: int) -> None:
    replay = krstore.Replay(Memoryless(), prefetch=prefetch)
    new = [(torch.full((size, 4), -1.0), torch.full((size,), 77)) for _ in range(6)]
    mixed = list(replay.mix(iter(new), share))
    old = sum(int(batch.replayed.sum()) for batch in mixed)
    assert old == pytest.approx(6 * size * share / (1 - share), abs=1)
    for x, y, replayed in mixed:
        assert len(x) == len(y) == len(replayed)
        assert (y[~replayed] == 77).all()
        assert len(y) - int(replayed.sum()) == size
        np.testing.assert_array_equal(x[replayed][:, 0].long(), y[replayed])
    assert replay.state_dict()["epoch"] * 9 + replay.state_dict()["offset"] == old


def test_a_mix_goes_on_where_it_was() -> None:
    """Two old samples join five new ones, then three, since 0.35 of the whole are 2.7: what rounding owes is kept."""
    new = [(torch.zeros(5, 4), torch.full((5,), 77)) for _ in range(7)]
    whole = [batch.y.tolist() for batch in krstore.Replay(Memoryless()).mix(new, 0.35)]
    assert len({len(y) for y in whole}) == 2
    for stop in range(1, 7):
        first, rest = krstore.Replay(Memoryless()), krstore.Replay(Memoryless())
        seen = [batch.y.tolist() for batch in first.mix(new[:stop], 0.35)]
        rest.load_state_dict(first.state_dict())
        assert seen + [batch.y.tolist() for batch in rest.mix(new[stop:], 0.35)] == whole


def test_a_mix_leaves_the_loaders_random_numbers_alone() -> None:
    """Prefetching draws nothing: a loop that draws from PyTorch's generator sees the same stream as without."""

    def numbers(prefetch: int) -> list[float]:
        torch.manual_seed(0)
        new = ((torch.rand(4, 4), torch.zeros(4, dtype=torch.long)) for _ in range(8))
        mixed = krstore.Replay(Memoryless(), prefetch=prefetch).mix(new)
        return [float(x.sum()) + float(torch.rand(1)) for x, _, _ in mixed]

    assert numbers(0) == numbers(3)


@pytest.mark.parametrize(
    ("batch", "said"), [((torch.zeros(2, 4), torch.zeros(2), torch.zeros(2)), "3 parts"), ({"x": 1}, "dict")]
)
def test_batches_that_cannot_be_mixed(batch: Any, said: str) -> None:
    with pytest.raises(UsageError, match=rf"batches are {said}; mixing takes \(x, y\)"):
        next(krstore.Replay(Memoryless()).mix([batch]))


def test_a_replay_over_others_is_where_it_was(store: krstore.Store, tmp_path: Path) -> None:
    other = krstore.encode(ArraySource(-SOURCE.read(np.arange(SAMPLES)), LABELS), tmp_path / "other.krs", "raw")
    replay = store.replay(batch_size=10, seed=3, classes=[5, 1000], transform=lambda x: 2 * x)
    replay.take(7)
    over = replay.over(other)
    assert over.state_dict() == replay.state_dict()
    for (x, y), (negative, labels) in zip(replay, over, strict=True):
        assert torch.equal(x, -negative)
        assert torch.equal(y, labels)
    unlike = krstore.encode(ArraySource(SOURCE.read(np.arange(3)), [1, 2, 3]), tmp_path / "unlike.krs", "raw")
    with pytest.raises(UsageError, match=r"unlike\.krs has other labels than"):
        replay.over(unlike)


@pytest.mark.parametrize("mixing", [False, True])
def test_random_augmentation_is_the_same_with_each_seed(mixing: bool) -> None:
    """It draws in the caller, between what the loop draws, however far ahead batches are decoded."""

    def drawn(prefetch: int) -> list[list[float]]:
        replay = krstore.Replay(
            Memoryless(), transform=lambda x: x + torch.rand(len(x), 1), batch_size=2, prefetch=prefetch
        )
        torch.manual_seed(0)
        new = [(torch.zeros(3, 4), torch.zeros(3, dtype=torch.long))] * 6
        batches = replay.mix(new, 0.4) if mixing else replay.forever()
        return [[*x[:, 0].tolist(), float(torch.rand(1))] for (x, *_), _ in zip(batches, range(6), strict=False)]

    assert drawn(0) == drawn(1) == drawn(4)


def test_new_samples_of_another_shape_cannot_be_mixed() -> None:
    with pytest.raises(UsageError, match=r"new samples are \(5,\) with labels \(\), replayed ones \(4,\) with labels"):
        next(krstore.Replay(Memoryless()).mix([(torch.zeros(2, 5), torch.zeros(2))]))


def test_what_mixes_nothing_transforms_nothing() -> None:
    replay = krstore.Replay(Memoryless(), transform=torch.Tensor.amax)
    x, _, replayed = next(replay.mix([(torch.zeros(2, 5), torch.zeros(2))], share=0))
    assert x.shape == (2, 5)
    assert not replayed.any()


def test_features_may_be_transformed() -> None:
    replay = krstore.Replay(Memoryless(), transform=lambda x: -x, batch_size=4)
    for x, y in replay:
        np.testing.assert_array_equal(x[:, 0], -y)
    x, y, replayed = next(replay.mix([(torch.ones(2, 4), torch.tensor([5, 6]))]))
    assert x[~replayed].min() == 1
    np.testing.assert_array_equal(x[replayed][:, 0], -y[replayed])


@pytest.mark.parametrize(
    "options",
    [{"classes": [1, 2]}, {"classes": [2, 3]}, {"seed": 7}, {"balance": "classes"}, {"rank": 0, "world_size": 2}],
)
def test_a_state_is_of_one_order(options: dict[str, Any]) -> None:
    state = json.loads(json.dumps(krstore.Replay(Memoryless(), **options).state_dict()))
    krstore.Replay(Memoryless(), **options).load_state_dict(state)
    for others in ({}, {"classes": [1, 7]}):
        with pytest.raises(UsageError, match="the state is of a replay of"):
            krstore.Replay(Memoryless(), **others).load_state_dict(state)


@pytest.mark.parametrize("how", ["mix", "take"])
def test_a_place_that_was_loaded_is_left_behind(how: str) -> None:
    """Then iterating begins the next epoch, as it does without a checkpoint."""
    new = [(torch.zeros(2, 4), torch.full((2,), 77))]
    whole, first, rest = (krstore.Replay(Memoryless(), batch_size=2) for _ in range(3))
    whole.take(3)
    first.take(3)
    rest.load_state_dict(first.state_dict())
    for replay in (whole, rest):
        list(replay.mix(new)) if how == "mix" else replay.take(2)
    assert [y.tolist() for _, y in rest] == [y.tolist() for _, y in whole]


def test_a_place_beyond_an_epoch_is_in_the_next() -> None:
    shared = krstore.Replay(Memoryless(), rank=1, world_size=3)
    shared.load_state_dict({"epoch": 0, "offset": 8})
    expected = krstore.Replay(Memoryless(), rank=1, world_size=3)
    expected.take(3)
    assert shared.take(4)[1].tolist() == expected.take(4)[1].tolist()


def test_an_order_is_drawn_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, original = list[int](), Order.epoch
    monkeypatch.setattr(Order, "epoch", lambda self, number: drawn.append(number) or original(self, number))
    replay = krstore.Replay(Memoryless(), batch_size=2)
    for _ in range(9):
        replay.take(2)
    list(replay)
    assert drawn == [0, 1, 2]


def test_a_pickled_replay_caches_as_much() -> None:
    asked = krstore.Replay(Memoryless(), cache_bytes=1234)
    assert pickle.loads(pickle.dumps(asked)).samples.cached == [1234, 1234]
    assert krstore.Replay(Memoryless(), cache_bytes=0).samples.cached == [], "another replay's cache is left alone"


class Memoryless:
    """Nine samples, each filled with its label."""

    path = Path("nowhere")
    exact = True
    labels = np.arange(9)
    store_of = None

    def __init__(self) -> None:
        self.cached: list[int] = []

    def __len__(self) -> int:
        return 9

    def decode_tensor(self, rows: Any) -> torch.Tensor:
        return torch.from_numpy(rows).float()[:, None].expand(-1, 4)

    def cache(self, limit: int) -> None:
        self.cached.append(limit)


def test_shares_that_mix_nothing(store: krstore.Store) -> None:
    for share in (-0.1, 1.0):
        with pytest.raises(UsageError, match=r"is not in 0\.\.1"):
            next(store.replay().mix([], share))


def test_threads_are_used_again(store: krstore.Store) -> None:
    for _ in range(2):
        before = threading.active_count()
        for batch in store.replay(batch_size=10, prefetch=4):
            assert len(batch[0]) == 10
            break
        gc.collect()
    assert threading.active_count() == before, "the thread of the first is there for the second"


FORKED = """
import sys
from torch.utils.data import DataLoader
import krstore

store = krstore.open(sys.argv[1], device="cpu")
for _ in range(60):
    list(store.replay(batch_size=32))
    loader = DataLoader(store.replay(), 32, num_workers=2, multiprocessing_context="fork", timeout=10)
    assert sum(len(y) for _, y in loader) == 300
"""


def test_workers_are_forked_after_batches_were_decoded_ahead(tmp_path: Path) -> None:
    """In forks of a process in which a thread that had decoded had ended, MKL hung: in one of some dozens."""
    options: dict[str, Any] = {"ratio": 4, "preset": "linear", "device": "cpu"}
    path = krstore.encode(example_source(300, (8, 4, 4)), tmp_path / "x.krs", "transform", **options).path
    ran = subprocess.run([sys.executable, "-c", FORKED, path], capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr


def test_a_forked_process_works_ahead_with_threads_of_its_own(store: krstore.Store) -> None:
    list(store.replay())
    child = os.fork()
    if child == 0:
        os._exit(0 if sorted(ids_of(store.replay(batch_size=10))) == [*range(SAMPLES)] else 1)
    for _ in range(600):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("it hangs")
    assert status == 0


def test_errors_of_the_thread_reach_the_loop(tmp_path: Path) -> None:
    store = krstore.encode(SOURCE, tmp_path / "x.krs", "raw", device="cpu")
    data = bytearray(store.path.read_bytes())
    at = data.find(b"latent/samples") + 60
    data[at] ^= 255
    store.path.write_bytes(data)
    with pytest.raises(CorruptStoreError, match="does not match its checksum"):
        list(krstore.open(store.path).replay(batch_size=10))


class Watched:
    """Nine samples, and by which threads each was decoded."""

    path, exact, labels, store_of = Path("nowhere"), True, np.arange(9), None

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.decoded = threading.Semaphore(0)

    def __len__(self) -> int:
        return 9

    def decode_tensor(self, rows: Any) -> torch.Tensor:
        self.threads.append(threading.current_thread().name)
        self.decoded.release()
        return torch.zeros(len(rows), 4)

    def cache(self, limit: int) -> None: ...


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_batches_are_decoded_ahead_in_a_thread(prefetch: int) -> None:
    watched = Watched()
    batches = iter(krstore.Replay(watched, batch_size=1, prefetch=prefetch))
    next(batches)
    for _ in range(1 + prefetch):
        assert watched.decoded.acquire(timeout=30)
    assert not watched.decoded.acquire(timeout=0.05), "no more than that are made before they are asked for"
    if prefetch:
        assert all(name.startswith("krstore-replay") for name in watched.threads)
    else:
        assert watched.threads == [threading.current_thread().name]


def test_arguments_of_places_and_batches_out_of_range(store: krstore.Store) -> None:
    replay = store.replay(batch_size=10)
    with pytest.raises(UsageError, match="count=-1 is negative"):
        replay.take(-1)
    for state in ({}, {"epoch": 0}, {"epoch": 0, "offset": -5}):
        with pytest.raises(UsageError, match="is no state of a replay"):
            replay.load_state_dict(state)
    with pytest.raises(UsageError, match="neither can be negative"):
        replay.sampler().set_epoch(0, -1)
    x, y = torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(UsageError, match="has 3 samples and 2 labels"):
        next(replay.mix([(x, y)]))
    with pytest.raises(UsageError, match="are of ndarray and ndarray; mixing takes tensors"):
        next(replay.mix([(x.numpy(), y.numpy())]))  # type: ignore[list-item]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_in_the_middle_of_an_epoch(store: krstore.Store, workers: int) -> None:
    replay = store.replay(batch_size=10, seed=5, balance="classes")
    sampler = replay.sampler()
    loader = DataLoader(replay, batch_sampler=sampler, num_workers=workers, persistent_workers=workers > 0)
    whole = [ids_of([batch]) for _ in range(2) for batch in loader]
    again = replay.sampler()
    rest = DataLoader(replay, batch_sampler=again, num_workers=workers)
    again.set_epoch(1, 4)
    assert [ids_of([batch]) for batch in rest] == whole[11 + 4 :]
    assert len(rest) == 11, "of an epoch, whatever of it was left"
    with pytest.warns(UserWarning, match="does not know how far a DataLoader has come"):
        replay.state_dict()


def test_a_balance_is_not_lost_on_a_loader_of_its_own_batches(store: krstore.Store) -> None:
    replay = store.replay(balance="classes", batch_size=10)
    with pytest.raises(UsageError, match=r"batch_sampler=replay\.sampler\(\)"):
        list(DataLoader(replay, batch_size=10, shuffle=True))
    batches = list(replay.sampler())
    for whole_or_part in (batches[0], batches[0][:3], batches[0] + batches[1], [0, *batches[0]][:0] + batches[0]):
        replay.__getitems__(whole_or_part)
    with pytest.warns(UserWarning, match="are not the sampler's as it made them"):
        list(DataLoader(replay, batch_size=10, shuffle=True))
