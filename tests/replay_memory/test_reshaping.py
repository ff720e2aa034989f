"""Merging, shrinking and trimming a memory: what is encoded again, and within which bytes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_stores import SHAPE, files, raw_store, size_on_disk

import krstore
from krstore import Memory
from krstore.errors import TargetUnreachableError, UsageError
from krstore.memory.alike import encode_alike
from krstore.testing import ArraySource, example_source


def test_what_a_merge_makes_may_be_there_already(memory: Memory, tmp_path: Path) -> None:
    first, second = raw_store(tmp_path, 1), raw_store(tmp_path, 2)
    memory.append(first, second)
    entry = memory.manifest.stores[0]
    assert memory.replace([memory.manifest.stores[1]], [first]) == [entry]
    assert Memory(memory.path).manifest.stores == (entry,)


def test_merged_stores_are_one(memory: Memory, tmp_path: Path) -> None:
    memory.append(*(raw_store(tmp_path, number) for number in range(3)))
    expected = memory.samples.read(np.arange(60))
    entry = memory.merge()
    assert memory.manifest.stores == (entry,)
    np.testing.assert_array_equal(memory.samples.read(np.arange(60)), expected)
    assert len(files(memory)) == 2
    assert memory.merge() == entry


def test_merging_a_krnet_is_self_taught(memory: Memory, tmp_path: Path) -> None:
    """Its own recitation, not the features it was made from, goes into the new network, beside what is new."""
    old, new = example_source(60), example_source(30, seed=1)
    first = krstore.encode(old, tmp_path / "k.krs", "krnet", ratio=1.0, settings={"iterations": 3}, device="cpu")
    memory.append(first, krstore.encode(new, tmp_path / "r.krs", "raw"))
    taught = np.concatenate([first.read(slice(None)), new.features])
    memory.merge("krnet", ratio=1.0, settings={"iterations": 3})
    (store,) = memory.stores
    direct = krstore.encode(
        ArraySource(taught, np.concatenate([old.labels, new.labels]), attributes=old.spec.attributes),
        tmp_path / "d.krs", "krnet", ratio=1.0, settings={"iterations": 3}, device="cpu",
    )  # fmt: skip
    assert store.codec == "krnet"
    np.testing.assert_array_equal(store.read(slice(None)), direct.read(slice(None)))


def test_shrinking_keeps_a_shared_decoder(memory: Memory, sharing: list[krstore.Store]) -> None:
    memory.append(*sharing)
    networks = memory.manifest.networks
    budget = memory.bytes * 3 // 4
    memory.shrink(budget)
    assert 0.85 * budget < memory.bytes <= budget
    assert memory.bytes == size_on_disk(memory)
    assert memory.manifest.networks == networks
    assert [entry.samples for entry in memory.manifest.stores] == [300, 200]
    before = memory.manifest
    memory.shrink(budget)
    assert memory.manifest == before


def test_shrinking_leaves_what_is_small_enough(memory: Memory, tmp_path: Path) -> None:
    options: dict[str, Any] = {"preset": "linear", "device": "cpu"}
    small = krstore.encode(example_source(400, SHAPE), tmp_path / "small.krs", ratio=60, **options)
    large = krstore.encode(example_source(200, SHAPE, seed=1), tmp_path / "large.krs", ratio=5, **options)
    lossless = krstore.encode(example_source(4, SHAPE), tmp_path / "raw.krs", "raw")
    memory.append(large, small)
    before = {entry.sha256 for entry in memory.manifest.stores}
    budget = int(memory.bytes - 0.7 * large.bytes.file)
    memory.shrink(budget, preset="linear")
    (left,) = before & {entry.sha256 for entry in memory.manifest.stores}
    assert left == memory.folder.identity(small), "encoded anew it would lose more, and has less than its share"
    assert 0.9 * budget < memory.bytes <= budget
    memory.append(lossless)
    with pytest.raises(UsageError, match="is of the lossless codec raw; name another to shrink it with"):
        memory.shrink(memory.bytes - 9000)


def test_shrinking_with_another_codec(memory: Memory, tmp_path: Path) -> None:
    sources = [example_source(200, SHAPE, seed=seed) for seed in (0, 1)]
    memory.append(*(krstore.encode(s, tmp_path / f"{n}.krs", "raw") for n, s in enumerate(sources)))
    with pytest.raises(UsageError, match="lossless codec raw; name another"):
        memory.shrink(30_000)
    memory.shrink(30_000, "transform", preset="linear")
    assert memory.bytes <= 30_000
    assert [entry.codec for entry in memory.manifest.stores] == ["transform", "transform"]


def test_trimming_keeps_the_smaller_set_of_exemplars(memory: Memory, tmp_path: Path) -> None:
    sources = [example_source(200, SHAPE, seed=seed) for seed in (0, 1)]
    large, small = (
        [
            krstore.encode(s, tmp_path / f"{n}-{count}.krs", "herding", settings={"per_class": count}, device="cpu")
            for n, s in enumerate(sources)
        ]
        for count in (8, 3)
    )
    memory.append(*large)
    for change in (memory.merge, lambda: memory.shrink(memory.bytes - 1)):
        with pytest.raises(UsageError, match=r"exemplars \(codec herding\) are not"):
            change()
    memory.trim(6)  # three of each store
    expected = np.concatenate([store.read(store.ids) for store in small])
    np.testing.assert_array_equal(memory.samples.read(np.arange(len(memory))), expected)
    assert set(memory.classes.values()) == {6}
    assert memory.bytes == size_on_disk(memory)
    before = memory.manifest
    memory.trim(6)
    assert memory.manifest == before
    memory.trim(1)
    assert set(memory.classes.values()) == {1}
    assert len(memory.manifest.stores) == 1
    with pytest.raises(UsageError, match="per_class=0 is not positive"):
        memory.trim(0)


def test_trimming_evens_out_what_stores_have(memory: Memory, tmp_path: Path) -> None:
    sizes = (2, 50, 9, 100)
    memory.append(*(raw_store(tmp_path, number, size, np.full(size, 7)) for number, size in enumerate(sizes)))
    memory.trim(31)
    assert sorted(len(store) for store in memory.stores) == [2, 9, 10, 10]
    memory.trim(10)
    assert sorted(len(store) for store in memory.stores) == [2, 2, 3, 3]


def test_trimming_lossy_stores_keeps_their_decoder(memory: Memory, sharing: list[krstore.Store]) -> None:
    memory.append(*sharing)
    networks, before = memory.manifest.networks, memory.bytes
    memory.trim(20)
    assert memory.manifest.networks == networks
    assert set(memory.classes.values()) == {20}
    assert memory.bytes < 0.8 * before


def test_a_budget_out_of_reach_changes_nothing(memory: Memory, sharing: list[krstore.Store]) -> None:
    memory.append(*sharing)
    before = memory.manifest
    for budget, message in (
        (500, "the manifest and what the stores share"),
        (9000, "store .* of .* samples: transform"),
    ):
        with pytest.raises(TargetUnreachableError, match=message):
            memory.shrink(budget)
    assert Memory(memory.path).manifest == before
    memory.verify()


def test_an_encode_that_was_finished_is_not_done_twice(
    memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.append(raw_store(tmp_path, 1), raw_store(tmp_path, 2))

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Memory, "replace", fail)
        with pytest.raises(KeyboardInterrupt):
            memory.merge()
    assert len(list((memory.path / "unfinished").rglob("*.krs"))) == 1
    monkeypatch.setattr("krstore.memory.reshape.encode", fail)
    memory.merge()
    assert not (memory.path / "unfinished").exists()
    assert len(memory.stores) == 1


@pytest.mark.parametrize("kept", [1, 5, 30])
@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("pq", {"ratio": 8}),
        ("pq", {"ratio": 16}),
        ("transform", {"ratio": 20, "preset": "linear"}),
        ("autoencoder", {"ratio": 8, "settings": {"iterations": 10, "c0": 4}}),
    ],
)
def test_any_lossy_store_can_be_trimmed(
    codec: str, options: dict[str, Any], kept: int, memory: Memory, tmp_path: Path
) -> None:
    store = krstore.encode(example_source(200, (8, 4, 4)), tmp_path / "a.krs", codec, device="cpu", **options)
    memory.append(store)
    memory.trim(kept)
    assert set(memory.classes.values()) <= {*range(kept + 1)}
    assert memory.bytes < store.bytes.file + 700
    memory.verify()


def test_a_failed_change_leaves_nothing_behind(memory: Memory, sharing: list[krstore.Store]) -> None:
    memory.append(*sharing)
    before = memory.manifest
    for change in (lambda: memory.shrink(9_000, "pq"), lambda: memory.merge(max_bytes=500)):
        with pytest.raises(TargetUnreachableError):
            change()
        assert not any((memory.path / "unfinished").glob("*"))
    with pytest.raises(UsageError, match="no store to merge"):
        memory.merge(names=[])
    assert Memory(memory.path).manifest == before


def test_a_lossless_memory_shrinks_by_what_was_dropped(memory: Memory, tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
    store = krstore.encode(ArraySource(features, np.arange(200) % 5), tmp_path / "a.krs", "raw")
    memory.append(store)
    memory.drop([0, 1])
    with pytest.raises(UsageError, match="is of the lossless codec raw; name another"):
        memory.shrink(memory.bytes // 2)
    with pytest.raises(UsageError, match="codec raw is lossless; name another to shrink stores with"):
        memory.shrink(memory.bytes - 1, "raw")
    merged = shutil.copytree(memory.path, tmp_path / "merged")
    Memory(merged).merge()
    budget = Memory(merged).bytes + 120  # what the manifest says of what was dropped
    memory.shrink(budget)
    assert memory.bytes <= budget
    np.testing.assert_array_equal(memory.samples.read(np.arange(120)), features[np.arange(200) % 5 >= 2])


def test_new_samples_get_as_many_bytes_as_the_exemplars_that_they_stand_beside(tmp_path: Path) -> None:
    few = krstore.encode(example_source(60, SHAPE), tmp_path / "a.krs", ratio=8, preset="linear", device="cpu")
    many = encode_alike(few, example_source(600, SHAPE, seed=1), tmp_path / "b.krs", device="cpu")
    rates = [store.bytes.latent / len(store) for store in (few, many)]
    assert 0.9 * rates[0] < rates[1] <= 1.02 * rates[0]
