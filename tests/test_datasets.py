"""A PyTorch dataset as a source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset, Subset, TensorDataset

import krstore
from krstore.errors import ArchiveError, UsageError

X, Y = torch.randn(7, 2, 3, 3), torch.tensor([4, 4, 1, 1, 1, 9, 9])


class Items(list[Any]):
    """Items of a dataset, with what torchvision calls their labels."""

    targets: Any
    target_transform: Any = None


@pytest.mark.parametrize("threads", [1, 3])
def test_pairs_become_a_store(tmp_path: Path, threads: int) -> None:
    dataset = Subset(TensorDataset(X, Y), [5, 0, 2])
    source = krstore.DatasetSource(dataset, threads=threads, attributes={"layer": "conv1"})
    assert repr(source) == "DatasetSource(3 samples of (2, 3, 3) float32)"
    assert source.read(np.empty(0, np.int64)).shape == (0, 2, 3, 3)
    store = krstore.encode(source, tmp_path / "x.krs", "raw")
    torch.testing.assert_close(store.decode_tensor(np.arange(3)), X[[5, 0, 2]])
    assert store.labels is not None
    assert store.labels.tolist() == [9, 4, 1]
    assert (store.source.channel_axis, store.source.attributes) == (0, {"layer": "conv1"})


def test_a_network_sees_a_datasets_images(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    dataset = [(Image.fromarray(image), number % 2) for number, image in enumerate(images)]
    network, settings = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), {"mean": [0.5], "std": [0.25], "device": "cpu"}
    seen = krstore.extract(network, "0", krstore.DatasetSource(dataset), tmp_path / "dataset.h5", **settings)
    arrays = krstore.ArraySource(images, np.arange(5) % 2, channel_axis=2)
    same = krstore.extract(network, "0", arrays, tmp_path / "arrays.h5", **settings)
    np.testing.assert_array_equal(seen.read(np.arange(5)), same.read(np.arange(5)))
    assert seen.labels is not None
    assert seen.labels.tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("P", 3), ("RGBA", 3)])
def test_images_are_grey_or_rgb(mode: str, channels: int) -> None:
    image = Image.linear_gradient("L").resize((6, 4)).convert(mode)
    source = krstore.DatasetSource([image, image])
    assert (source.spec.shape, source.spec.dtype, source.spec.channel_axis) == ((4, 6, channels), "uint8", 2)
    expected = image if mode == "L" else image.convert("RGB")
    np.testing.assert_array_equal(source.read(np.array([1]))[0].squeeze(), np.asarray(expected))
    assert source.labels is None


def test_torchvisions_targets_are_the_labels() -> None:
    items = Items([(x, 4) for x in X])
    items.targets = Y.tolist()
    given = krstore.DatasetSource(items, labels=range(7))
    other = Items(zip(X, (Y - 1).tolist(), strict=True))
    other.targets = Y.tolist()
    sources = (krstore.DatasetSource(items), Y), (given, torch.arange(7)), (krstore.DatasetSource(other), Y - 1)
    for source, expected in sources:
        assert source.labels is not None
        assert source.labels.tolist() == expected.tolist()


def test_labels_are_what_a_target_transform_makes_of_the_targets() -> None:
    items = Items([(x, y // 2) for x, y in zip(X, Y.tolist(), strict=True)])
    items.targets, items.target_transform = Y.tolist(), lambda y: y // 2
    labels = krstore.DatasetSource(items).labels
    assert labels is not None
    assert labels.tolist() == (Y // 2).tolist()


def test_floats_in_another_type() -> None:
    source = krstore.DatasetSource(TensorDataset(X, Y), dtype="float16")
    assert source.spec.dtype == "float16"
    np.testing.assert_array_equal(source.read(np.arange(7)), X.half().numpy())
    assert krstore.DatasetSource(TensorDataset(X, Y), dtype="float32").spec.dtype == "float32"
    with pytest.raises(UsageError, match="samples of float32 cannot be had as uint8"):
        krstore.DatasetSource(TensorDataset(X, Y), dtype="uint8")
    with pytest.raises(UsageError, match="samples of int32 cannot be had as float32"):
        krstore.DatasetSource(TensorDataset(X.int(), Y), dtype="float32")
    with pytest.raises(ArchiveError, match="element type 'float8' is not supported"):
        krstore.DatasetSource(TensorDataset(X, Y), dtype="float8")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat", "dog"], r"labels have shape \(2,\) and type <U3; expected \(2,\) integers"),
        ([0.5, 1.0], r"labels have shape \(2,\) and type float64"),
        ([[1], [2, 3]], r"the labels of the dataset are no integers"),
    ],
)
def test_labels_that_are_none(labels: list[Any], message: str) -> None:
    source = krstore.DatasetSource([(x, y) for x, y in zip(X, labels, strict=False)])
    with pytest.raises(ArchiveError, match=message):
        assert source.labels


def test_what_is_no_number_is_left_to_the_encoder(tmp_path: Path) -> None:
    source = krstore.DatasetSource([torch.tensor([1.0, float("nan")])])
    with pytest.raises(ArchiveError, match="NaN"):
        krstore.encode(source, tmp_path / "x.krs", "raw")


def test_samples_of_several_shapes() -> None:
    source = krstore.DatasetSource([torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, 3).half()])
    for number, said in ((1, r"sample 1 of the dataset is \(2, 4\) float32, sample 0 is \(2, 3\)"), (2, "float16")):
        with pytest.raises(ArchiveError, match=said):
            source.read(np.array([0, number]))


class Augmented:
    """Another sample each time."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.randn(4)


class Endless(IterableDataset[torch.Tensor]):
    """Samples without an index."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield X[0]


@pytest.mark.parametrize(
    ("dataset", "options", "error", "message"),
    [
        (Augmented(), {}, UsageError, "sample 0 of the dataset is another one when it is read again; leave out what"),
        (7, {}, UsageError, "a int is no map-style dataset: it needs a length and an item an index"),
        (Endless(), {}, UsageError, "a Endless is no map-style dataset"),
        ([X[0]], {"threads": 0}, UsageError, "threads=0 is not positive"),
        ([], {}, ArchiveError, "the dataset is empty"),
        ([{"image": 1}], {}, ArchiveError, "element type 'object'"),
        ([X[0]], {"channel_axis": 3}, ArchiveError, "channel_axis=3"),
    ],
)
def test_what_is_no_dataset_of_samples(
    dataset: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        krstore.DatasetSource(dataset, **options)
