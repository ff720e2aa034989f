"""The replay memory: what it holds, its bytes, and what is refused."""

from __future__ import annotations

import gc
import json
import pickle
import subprocess
import sys
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory_stores import SHAPE, files, raw_store, size_on_disk
from torch.utils.data import DataLoader

import krstore
from krstore import Memory
from krstore.adapters._experiences import Experiences
from krstore.errors import CorruptStoreError, OutputError, UsageError
from krstore.memory.manifest import MANIFEST
from krstore.memory.summary import summarise
from krstore.testing import ArraySource, example_source


def test_an_empty_memory(memory: Memory) -> None:
    assert (len(memory), memory.classes, memory.stores) == (0, {}, [])
    assert memory.bytes == size_on_disk(memory)
    assert Memory(memory.path).manifest == memory.manifest
    for use in (lambda: memory.samples, lambda: memory.replay(), lambda: memory.merge()):
        with pytest.raises(UsageError, match="is empty; append stores to it first"):
            use()


def test_a_memory_begins_in_a_new_folder(tmp_path: Path, memory: Memory) -> None:
    with pytest.raises(OutputError, match="is not empty"):
        Memory.create(memory.path)
    with pytest.raises(OutputError, match="cannot be made"):
        Memory.create(tmp_path / "no" / "such")
    with pytest.raises(UsageError, match="is no memory: it has no manifest"):
        Memory(tmp_path)


def test_a_memory_whose_making_was_cut_off_is_made(tmp_path: Path) -> None:
    (tmp_path / "memory" / "stores").mkdir(parents=True)
    assert len(Memory.create(tmp_path / "memory")) == 0


def test_missing_files_are_damage(memory: Memory, tmp_path: Path) -> None:
    memory.append(raw_store(tmp_path, 1))
    next((memory.path / "stores").iterdir()).unlink()
    with pytest.raises(CorruptStoreError, match="is missing"):
        Memory(memory.path).verify()


def test_what_is_appended_is_there(memory: Memory, sharing: list[krstore.Store]) -> None:
    expected = np.concatenate([store.read(slice(None)) for store in sharing])
    labels = np.concatenate([store.labels for store in sharing])  # type: ignore[arg-type]
    memory.append(sharing[0])
    memory.append(sharing[1].path)
    for own in (memory, Memory(memory.path, device="cpu"), pickle.loads(pickle.dumps(memory))):
        assert len(own) == 500
        assert own.classes == dict(sorted(Counter(labels.tolist()).items()))
        np.testing.assert_array_equal(own.samples.read(np.arange(500)), expected)
        ids = np.random.default_rng(0).integers(0, 500, 300)
        np.testing.assert_array_equal(own.samples.read(ids), expected[ids])
        np.testing.assert_array_equal(own.samples.labels, labels)
        np.testing.assert_array_equal(own.samples.store_of, np.repeat([0, 1], [300, 200]))
        own.verify()


def test_stores_of_one_network_are_decoded_together(
    memory: Memory, sharing: list[krstore.Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = krstore.encode(
        example_source(40, SHAPE, seed=2), tmp_path / "c.krs", ratio=9, preset="linear", device="cpu"
    )
    memory.append(sharing[0], other, sharing[1])
    ids = np.random.default_rng(0).permutation(540)[:200]
    expected = memory.samples.read(ids)
    asked, together = list[list[int]](), krstore.Store.decode_together

    def watch(self: krstore.Store, parts: Any) -> torch.Tensor:
        asked.append([len(store) for store, _ in parts])
        return together(self, parts)

    monkeypatch.setattr(krstore.Store, "decode_together", watch)
    np.testing.assert_allclose(memory.samples.decode_tensor(ids).numpy(), expected, atol=1e-5)
    assert asked == [[300, 200], [40]]
    damaged = memory.path / "stores" / f"{memory.manifest.stores[2].sha256}.krs"
    data = bytearray(damaged.read_bytes())
    data[data.find(b"latent/coefficients") + 60] ^= 255
    damaged.write_bytes(data)
    with pytest.raises(CorruptStoreError, match=damaged.name):
        Memory(memory.path, device="cpu").samples.decode_tensor(np.arange(540))


def test_a_shared_decoder_is_kept_and_counted_once(memory: Memory, sharing: list[krstore.Store]) -> None:
    memory.append(*sharing)
    assert len(list((memory.path / "networks").iterdir())) == 1
    assert memory.bytes == size_on_disk(memory)
    weights = sharing[0].header.members["payload/network/weights"].bytes
    assert sum(store.bytes.file for store in sharing) - weights - 200 < memory.bytes
    assert memory.bytes < sum(store.bytes.file for store in sharing) - weights + 1200
    for mine, given in zip(memory.stores, sharing, strict=True):
        assert (mine.bytes.network, mine.bytes.latent) == (given.bytes.network, given.bytes.latent)


def test_appending_a_store_again_changes_nothing(memory: Memory, tmp_path: Path) -> None:
    path = raw_store(tmp_path, 1)
    memory.append(path)
    before = files(memory)
    assert memory.append(path) == list(memory.manifest.stores)
    assert files(memory) == before
    assert len(memory) == 20


def test_a_store_that_is_appended_again_is_whole_again(memory: Memory, tmp_path: Path) -> None:
    path = raw_store(tmp_path, 1, labels=[1] * 15 + [2] * 5)
    memory.append(path)
    memory.drop([2])
    memory.append(path)
    assert memory.classes == {1: 15, 2: 5}


def test_appending_a_store_again_mends_it(memory: Memory, sharing: list[krstore.Store]) -> None:
    memory.append(*sharing)
    expected = memory.samples.read(np.arange(500))
    for file in ("networks", "stores"):
        damaged = min((memory.path / file).iterdir())
        damaged.write_bytes(damaged.read_bytes()[:-1])
        Memory(memory.path).append(*sharing)
        np.testing.assert_array_equal(Memory(memory.path, device="cpu").samples.read(np.arange(500)), expected)
        memory.verify()


def test_a_damaged_network_is_not_shared(memory: Memory, sharing: list[krstore.Store]) -> None:
    memory.append(sharing[0])
    (network,) = (memory.path / "networks").iterdir()
    network.write_bytes(b"\0" * network.stat().st_size)
    memory.append(sharing[1])
    memory.verify()


def test_stores_of_another_memory(memory: Memory, sharing: list[krstore.Store], tmp_path: Path) -> None:
    memory.append(*sharing)
    other = Memory.create(tmp_path / "other", device="cpu")
    other.append(*memory.stores)
    assert other.manifest.stores == memory.manifest.stores
    other.append(*sharing)
    assert len(other.stores) == 2
    np.testing.assert_array_equal(other.samples.read(np.arange(500)), memory.samples.read(np.arange(500)))
    other.verify()


def test_all_stores_are_appended_or_none(memory: Memory, tmp_path: Path) -> None:
    good, bad = raw_store(tmp_path, 1), raw_store(tmp_path, 2)
    bad.write_bytes(bad.read_bytes().replace(b"payload", b"payloaf"))
    with pytest.raises(CorruptStoreError):
        memory.append(good, bad)
    assert len(Memory(memory.path)) == 0


def test_stores_that_do_not_belong(memory: Memory, tmp_path: Path) -> None:
    memory.append(raw_store(tmp_path, 1))
    before = files(memory)
    other = krstore.encode(example_source(30), tmp_path / "other.krs", "raw")
    with pytest.raises(UsageError, match=r"other.krs holds samples of \(6, 4, 4\) float32; those of .* have \(4,\)"):
        memory.append(other)
    unlabelled = krstore.encode(ArraySource(np.ones((9, 4), np.float32)), tmp_path / "no.krs", "raw")
    with pytest.raises(UsageError, match=r"no.krs has no labels"):
        memory.append(unlabelled)
    damaged = raw_store(tmp_path, 3)
    data = bytearray(damaged.read_bytes())
    data[60] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(CorruptStoreError):
        memory.append(damaged)
    assert files(memory) == before


def test_dropped_classes_are_replayed_no_more(memory: Memory, tmp_path: Path) -> None:
    memory.append(raw_store(tmp_path, 1), raw_store(tmp_path, 2, labels=[2] * 15 + [3] * 5))
    before = memory.bytes
    assert memory.drop([1]) > 0
    assert memory.bytes < before
    assert len(memory.manifest.stores) == 1
    assert memory.drop([3]) < 0  # the manifest says so
    assert memory.classes == {2: 15}
    assert memory.samples.labels.tolist() == [2] * 15
    with pytest.raises(UsageError, match=r"class 3 is not in .*; it has \[2\]"):
        memory.drop([3])
    memory.merge()
    assert (memory.classes, memory.manifest.stores[0].classes) == ({2: 15}, {2: 15})
    memory.drop([2])
    assert len(memory) == 0
    assert files(memory) == {MANIFEST}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-20], "malformed"),
        (lambda text: text.replace('"raw"', "7"), "malformed"),
        (lambda text: text.replace('"sha256": "', '"sha256": "../'), "malformed"),
        (lambda text: text.replace('"memory_version": 1', '"memory_version": 2'), "version 2 of the format"),
        (lambda text: json.dumps({**json.loads(text), "stores": 2 * json.loads(text)["stores"]}), "stands twice"),
    ],
)
def test_hostile_manifests(memory: Memory, tmp_path: Path, change: Any, message: str) -> None:
    memory.append(raw_store(tmp_path, 1))
    manifest = memory.path / MANIFEST
    manifest.write_text(change(manifest.read_text()))
    with pytest.raises(CorruptStoreError, match=message):
        Memory(memory.path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"1": 20', '"9": 77', r"its classes are {1: 20}; manifest.json has {9: 77}"),
        ('"codec": "raw"', '"codec": "pq"', "its codec are raw; manifest.json has pq"),
        ('"networks": {}', f'"networks": {{"a": "{"0" * 64}"}}', "its member 'a' is missing"),
    ],
)
def test_a_manifest_of_other_stores(memory: Memory, tmp_path: Path, old: str, new: str, message: str) -> None:
    memory.append(raw_store(tmp_path, 1))
    manifest = memory.path / MANIFEST
    assert old in manifest.read_text()
    manifest.write_text(manifest.read_text().replace(old, new))
    with pytest.raises(CorruptStoreError, match=message):
        Memory(memory.path).verify()


def test_one_store_in_the_place_of_another(memory: Memory, tmp_path: Path) -> None:
    memory.append(raw_store(tmp_path, 1), raw_store(tmp_path, 2, 30))
    first, second = (memory.path / "stores" / f"{entry.sha256}.krs" for entry in memory.manifest.stores)
    first.write_bytes(second.read_bytes())
    with pytest.raises(CorruptStoreError, match=f"{first.name}: its bytes are"):
        Memory(memory.path).verify()


def test_damage_is_found_and_named(memory: Memory, sharing: list[krstore.Store]) -> None:
    memory.append(*sharing)
    (network,) = (memory.path / "networks").iterdir()
    data = network.read_bytes()
    network.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CorruptStoreError, match=network.name):
        Memory(memory.path).verify()
    with pytest.raises(CorruptStoreError, match="does not match"):
        Memory(memory.path, device="cpu").samples.read(np.arange(3))
    network.unlink()
    with pytest.raises(CorruptStoreError, match="'payload/network/weights' is missing"):
        Memory(memory.path).verify()


# batches


def test_replay_of_a_memory(memory: Memory, tmp_path: Path) -> None:
    memory.append(raw_store(tmp_path, 1, 50), raw_store(tmp_path, 2, 10))
    replay = memory.replay(batch_size=7)
    labels = torch.cat([y for _, y in replay])
    assert Counter(labels.tolist()) == {1: 50, 2: 10}
    for x, y in replay:
        np.testing.assert_array_equal(x[:, 0].long(), y)
    for balance in ("classes", "stores"):
        balanced = torch.cat([y for _, y in memory.replay(balance=balance)])
        assert Counter(balanced.tolist()) == {1: 30, 2: 30}


def test_workers_replay_a_memory(memory: Memory, sharing: list[krstore.Store]) -> None:
    memory.append(*sharing)
    expected = memory.samples.read(np.arange(500))
    batches = list(DataLoader(memory.replay(), batch_size=64, num_workers=2))
    np.testing.assert_allclose(torch.cat([x for x, _ in batches]), expected, atol=1e-5)


def test_one_process_encodes_all_shards(memory: Memory, tmp_path: Path) -> None:
    source = example_source(30)
    np.savez(tmp_path / "features.npz", features=source.features, labels=source.labels)
    entries = memory.extend([tmp_path / "features.npz"], "raw", shards=3)
    assert [entry.samples for entry in entries] == [10, 10, 10]
    with pytest.raises(UsageError, match="30 samples do not make 31 shards"):
        memory.extend([tmp_path / "features.npz"], "raw", shards=31)
    for archives in ("features.npz", [source]):
        with pytest.raises(UsageError, match="archives: expected a list of paths; what is no file is encoded"):
            memory.extend(archives, "raw")
    with pytest.raises(UsageError, match=r"nothing\.npz cannot be read"):
        memory.extend([tmp_path / "nothing.npz"], "raw")


def test_an_adapter_counts_a_shared_decoder_once(tmp_path: Path) -> None:
    """At a ratio that leaves a small experience less than the decoder takes, and samples of another scale."""
    kept = Experiences(tmp_path / "memory", "transform", 0, "cpu", {"ratio": 50, "preset": "linear"})
    sources = [example_source(size, SHAPE, seed=seed) for seed, size in enumerate((1500, 150, 150))]
    sizes = []
    for number, source in enumerate(sources):
        scale = 50 if number == 2 else 1
        store = kept.take(number, [scale * torch.from_numpy(source.features)], source.labels)
        sizes.append(store.bytes)
    assert sizes[0].network > 150 * 4 * 512 / 50, "alone it would be out of reach"
    assert len(kept.memory.manifest.networks) == 2
    assert sizes[1].file - sizes[1].network <= 150 * 4 * 512 / 50 + 100


def test_an_archive_that_is_encoded_counts_a_shared_decoder_once(memory: Memory, tmp_path: Path) -> None:
    source = example_source(1500, SHAPE)
    first = krstore.encode(source, tmp_path / "first.krs", ratio=50, preset="linear", device="cpu")
    memory.append(first)
    np.savez(tmp_path / "few.npz", features=source.features[:150], labels=source.labels[:150])
    (entry,) = memory.extend([tmp_path / "few.npz"], ratio=50, decoder=first.path)
    assert entry.networks == memory.manifest.stores[0].networks
    assert entry.bytes <= 150 * 4 * 512 / 50


def test_what_an_adapter_was_told_to_drop_is_not_replayed(tmp_path: Path) -> None:
    kept = Experiences(tmp_path / "memory", "raw", 0, "cpu", None)
    kept.take(0, [torch.zeros(6, 4)], np.array([1, 1, 1, 2, 2, 2]))
    kept.memory.drop([2])
    samples = kept.samples()
    assert samples is not None
    assert (len(samples), kept.classes()) == (3, {1})


@pytest.mark.parametrize("label", [np.int64(1), torch.tensor(1), np.uint8(1)])
def test_classes_to_drop_may_be_any_integers(label: Any, memory: Memory, tmp_path: Path) -> None:
    memory.append(raw_store(tmp_path, 1, labels=[0, 1] * 10))
    memory.drop([label])
    assert Memory(memory.path).classes == {0: 10}


@pytest.mark.parametrize("label", [1.0, True, "1", None, np.float64(1), torch.tensor(1.0)])
def test_what_is_no_integer_is_dropped_by_nobody(label: Any, memory: Memory, tmp_path: Path) -> None:
    memory.append(raw_store(tmp_path, 1, labels=[0, 1] * 10))
    with pytest.raises(UsageError, match="is no integer label"):
        memory.drop([label])
    assert Memory(memory.path).classes == {0: 10, 1: 10}


def test_what_is_unfinished_is_told_of(memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.append(raw_store(tmp_path, 1), raw_store(tmp_path, 2))
    monkeypatch.setattr(memory, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        memory.merge()
    monkeypatch.undo()
    facts = summarise(memory)
    assert facts["unfinished"] == size_on_disk(memory) - memory.bytes > 0
    memory.merge()
    assert summarise(memory)["unfinished"] == 0
    assert memory.bytes == size_on_disk(memory)


@pytest.mark.parametrize("archives", [1, 2])
def test_no_shard_is_lost_for_being_like_another(archives: int, memory: Memory, tmp_path: Path) -> None:
    np.savez(tmp_path / "zeros.npz", features=np.zeros((40, 4), np.float32), labels=np.zeros(40, np.int64))
    with pytest.raises(UsageError, match=r"shard 0 of .*zeros.npz and shard . of .*zeros.npz have the same samples"):
        memory.extend([tmp_path / "zeros.npz"] * archives, "raw", shards=3 - archives)
    assert len(Memory(memory.path)) == 0


def test_what_does_not_belong_is_refused_before_it_is_encoded(
    memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.append(raw_store(tmp_path, 1))
    other = Memory(memory.path)
    other.append(raw_store(tmp_path, 2))
    other.merge()  # of which the first knows nothing
    monkeypatch.setattr("krstore.memory.parallel.encode", None)
    np.savez(tmp_path / "a.npz", features=np.zeros((4, 4), np.float32))
    np.savez(tmp_path / "b.npz", features=np.zeros((4, 5), np.float32), labels=np.zeros(4, np.int64))
    for name, message in (("a", r"a\.npz has no labels"), ("b", r"b\.npz holds samples of \(5,\) float32; those of")):
        with pytest.raises(UsageError, match=message):
            memory.extend([tmp_path / f"{name}.npz"], "raw")
    new = Memory.create(tmp_path / "new")
    np.savez(tmp_path / "c.npz", features=np.zeros((4, 6), np.float32), labels=np.zeros(4, np.int64))
    with pytest.raises(UsageError, match=r"c\.npz holds samples of \(6,\) float32; those of .*b\.npz have \(5,\)"):
        new.extend([tmp_path / "b.npz", tmp_path / "c.npz"], "raw")
    with pytest.raises(UsageError, match="shards=0 is not positive"):
        memory.extend([tmp_path / "b.npz"], "raw", shards=0)


MANY = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from krstore import Memory
memory = Memory(sys.argv[1], device="cpu")
memory.verify()
assert sum(len(y) for _, y in memory.replay(batch_size=50)) == 120 * 2
memory.merge()
assert memory.classes == {label: 2 for label in range(120)}
"""


def test_a_memory_of_more_stores_than_a_process_may_hold_open(memory: Memory, tmp_path: Path) -> None:
    memory.append(*(raw_store(tmp_path, number, samples=2) for number in range(120)))
    ran = subprocess.run([sys.executable, "-c", MANY, str(memory.path)], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr


def test_what_is_cached_of_stores_outlives_an_append(memory: Memory, tmp_path: Path) -> None:
    memory.append(raw_store(tmp_path, 1))
    (before,) = memory.stores
    memory.append(raw_store(tmp_path, 2))
    assert memory.stores[0] is before
    memory.drop([1])
    assert before not in memory.stores
    memory.append(raw_store(tmp_path, 1))
    assert all(store is not before for store in memory.stores), "its file is another one now"
    np.testing.assert_array_equal(memory.samples.labels, [2] * 20 + [1] * 20)


def test_what_is_dropped_is_let_go_of(memory: Memory, tmp_path: Path) -> None:
    memory.append(raw_store(tmp_path, 1), raw_store(tmp_path, 2))
    dropped = weakref.ref(memory.stores[0])
    memory.drop([1])
    gc.collect()
    assert dropped() is None
