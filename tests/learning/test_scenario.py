"""Data as strangers have it, cut into tasks: orders, few samples, validation, augmentation."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from learning_runs import CLASSES, LABELS, TEST, TRAIN, samples
from PIL import Image
from torch import nn

from krstore.errors import ArchiveError, UsageError
from krstore.learning.data import open_dataset
from krstore.learning.scenario import Scenario
from krstore.learning.streams import Augmentation


def test_a_folder_of_archives(data: Path) -> None:
    dataset = open_dataset(data)
    assert (dataset.train.spec.samples, dataset.test.spec.samples) == (CLASSES * TRAIN, CLASSES * TEST)
    same = open_dataset(data / "train.h5", data / "test.h5")
    np.testing.assert_array_equal(same.train.labels, dataset.train.labels)
    with pytest.raises(UsageError, match=r"name the test set too \(--test\)"):
        open_dataset(data / "train.h5")
    (data / "test.h5").unlink()
    with pytest.raises(UsageError, match="has no training and test set"):
        open_dataset(data)


@pytest.mark.parametrize("count", [0, 77, 78])
def test_classes_have_names_where_the_data_say_one_of_each(count: int, data: Path) -> None:
    for part in ("train", "test"):
        with h5py.File(data / f"{part}.h5", "a") as file:
            file.attrs["class_names"] = [f"n{label}" for label in range(count)]
    scenario = Scenario(open_dataset(data), base=2, steps=2)
    labels = [label for task in scenario.tasks for label in task.names]
    assert scenario.class_names == ([f"n{label}" for label in labels] if count > max(labels) else [])


def test_sets_that_do_not_belong_together(tmp_path: Path, data: Path) -> None:
    x, y = samples(5, 2)
    for name, arrays, message in (
        ("a", {"features": x}, "the test set has no labels"),
        (
            "b",
            {"features": x[:, :3], "labels": y},
            r"training samples are \(4, 6, 6\) float32, test samples \(3, 6, 6\)",
        ),
        ("c", {"features": x[y != 40], "labels": y[y != 40]}, "class 40 is only in one"),
    ):
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(ArchiveError, match=message):
            open_dataset(data / "train.h5", tmp_path / f"{name}.npz")


@pytest.mark.parametrize(("fine", "skip"), [(True, 2), (False, 1)])
def test_the_published_binary_files_of_cifar(tmp_path: Path, fine: bool, skip: int) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / ("cifar-100-binary" if fine else "cifar-10-batches-bin")
    folder.mkdir()
    names = ["train", "test"] if fine else [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    written = {}
    for name in names:
        images, labels = rng.integers(0, 256, (20, 3072), np.uint8), np.arange(20, dtype=np.uint8) % 10
        heads = np.stack([labels + 50, labels], 1)[:, -skip:]
        (folder / f"{name}.bin").write_bytes(np.concatenate([heads, images], 1).tobytes())
        written[name] = images
    dataset = open_dataset(tmp_path)
    expected = np.concatenate([written[name] for name in names[:-1]]).reshape(-1, 3, 32, 32)
    assert dataset.train.spec.samples == len(expected)
    ids = rng.integers(0, len(expected), 30)
    np.testing.assert_array_equal(dataset.train.read(ids), expected[ids])
    np.testing.assert_array_equal(dataset.test.labels, np.arange(20) % 10)
    (folder / f"{names[-1]}.bin").write_bytes(b"x" * 5000)
    with pytest.raises(ArchiveError, match="which are not records of"):
        open_dataset(tmp_path)


def test_folders_of_images_are_brought_to_one_size_and_have_the_same_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, size in (("train/cat/a", (20, 30)), ("train/eel/b", (16, 16)), ("val/cat/c", (40, 18)),
                       ("val/eel/d", (16, 17))):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / f"{name}.png")
    dataset = open_dataset(tmp_path, resize=16)
    assert dataset.train.read(np.arange(2)).shape == (2, 16, 16, 3)
    (tmp_path / "val" / "eel").rename(tmp_path / "val" / "fox")
    with pytest.raises(ArchiveError, match="class 1 is 'eel' in the training set and 'fox' in the test set"):
        open_dataset(tmp_path, resize=16)


def test_tasks_follow_the_order_and_labels_are_places_in_it(data: Path) -> None:
    dataset = open_dataset(data)
    scenario = Scenario(dataset, order="3", base=2, steps=2)
    assert [(task.first, task.stop) for task in scenario.tasks] == [(0, 2), (2, 4), (4, 6)]
    ordered = [name for task in scenario.tasks for name in task.names]
    assert sorted(ordered) == LABELS.tolist()
    for task in scenario.tasks:
        own = scenario.train(task.number)
        assert set(own.labels) == set(range(task.first, task.stop))  # type: ignore[arg-type]
        original = dataset.train.read(np.flatnonzero(np.isin(dataset.train.labels, task.names)))
        np.testing.assert_array_equal(own.read(np.arange(own.spec.samples)), original)
    assert scenario.test_until(1).spec.samples == 4 * TEST
    assert scenario.train_until(2).spec.samples == 6 * TRAIN


def test_equal_tasks_and_few_samples(data: Path) -> None:
    dataset = open_dataset(data)
    scenario = Scenario(dataset, order="ascending", base=0, steps=3, per_class=4, seed=1)
    assert [task.names for task in scenario.tasks] == [(3, 8), (20, 21), (40, 77)]
    assert np.bincount(scenario.train(1).labels).tolist() == [0, 0, 4, 4]  # type: ignore[arg-type]
    for base, steps, message in (
        (6, 1, "expected 0 to 5"),
        (1, 2, "5 classes do not divide into 2"),
        (0, 0, "at least 1"),
    ):
        with pytest.raises(UsageError, match=message):
            Scenario(dataset, base=base, steps=steps)


def test_validation_samples_are_not_trained_on(data: Path) -> None:
    dataset = open_dataset(data)
    scenario = Scenario(dataset, base=2, steps=2, per_class=20, validation=5, seed=3)
    trained, tested = scenario.train_until(2), scenario.test_until(2)
    assert np.bincount(trained.labels).tolist() == [20] * CLASSES  # type: ignore[arg-type]
    assert np.bincount(tested.labels).tolist() == [5] * CLASSES  # type: ignore[arg-type]
    rows = {
        name: {x.tobytes() for x in own.read(np.arange(own.spec.samples)) if x.any()}
        for name, own in (("train", trained), ("test", tested))
    }
    assert not rows["train"] & rows["test"]
    everything = {x.tobytes() for x in dataset.train.read(np.arange(CLASSES * TRAIN))}
    assert rows["test"] < everything
    with pytest.raises(UsageError, match="a class has 30 samples, and none would be left"):
        Scenario(dataset, base=2, steps=2, validation=30)


def test_crops_move_and_flips_mirror() -> None:
    x = torch.arange(2 * 3 * 5 * 5.0).reshape(2, 3, 5, 5) + 1
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(50):
        out = Augmentation(False, 1)(x, generator)
        padded = nn.functional.pad(x, (1, 1, 1, 1))
        for one, whole in zip(out, padded, strict=True):
            places = [(i, j) for i in range(3) for j in range(3) if torch.equal(one, whole[:, i : i + 5, j : j + 5])]
            assert len(places) == 1
            seen.add(places[0])
    assert len(seen) == 9
    flipped = [bool(torch.equal(Augmentation(True, 0)(x[:1], generator), x[:1].flip(3))) for _ in range(50)]
    assert 10 < sum(flipped) < 40


def test_the_order_may_follow_the_seed(data: Path) -> None:
    orders = [
        [task.names for task in Scenario(open_dataset(data), order="seed", base=2, steps=2, seed=seed).tasks]
        for seed in (4, 5)
    ]
    assert orders[0] != orders[1]
    named = Scenario(open_dataset(data), order="4", base=2, steps=2, seed=9).tasks
    assert orders[0] == [task.names for task in named]
