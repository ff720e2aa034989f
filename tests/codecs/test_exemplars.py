"""Exemplars: which samples are kept, in what order, and with what they are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

import krstore
from krstore.errors import ArchiveError, CorruptStoreError, TargetUnreachableError, UsageError
from krstore.source import class_indices
from krstore.testing import ArraySource
from krstore_codecs._exemplars import ExemplarsConfig
from krstore_codecs.herding import Herding, KMeans, Random

SELECTIONS = ("herding", "random", "kmeans")


def images(sizes: tuple[int, ...] = (30, 12, 1), seed: int = 0) -> ArraySource:
    """Return uint8 images (N, 8, 8, 3) of classes of these sizes, shuffled, with labels 5, 6, ..."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)) + 5, sizes))
    values = rng.integers(0, 40, (len(labels), 8, 8, 3)) + 60 * (labels - 5)[:, None, None, None]
    return ArraySource(values.astype(np.uint8), labels)


def encode(source: Any, folder: Path, codec: str = "herding", **options: Any) -> krstore.Store:
    given = {"per_class": 4} | options.pop("settings", {})
    path = folder / f"{len(list(folder.iterdir()))}.krs"
    return krstore.encode(source, path, codec, settings=given, device="cpu", **options)


def by_hand(embeddings: NDArray[np.float64], count: int) -> list[tuple[int, NDArray[np.float64]]]:
    """Return iCaRL's Alg. 4 in words: each pick, with the distances that it was the least of (chosen ones infinite)."""
    mean, chosen = embeddings.mean(axis=0), list[int]()
    picks = []
    for k in range(1, count + 1):
        distances = np.full(len(embeddings), np.inf)
        for i, vector in enumerate(embeddings):
            if i not in chosen:
                distances[i] = np.linalg.norm(mean - (vector + sum(embeddings[j] for j in chosen)) / k)
        chosen.append(int(distances.argmin()))
        picks.append((chosen[-1], distances))
    return picks


@given(samples=st.integers(1, 25), length=st.integers(1, 6), seed=st.integers(0, 999), share=st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_herding_is_the_papers_greedy_choice(samples: int, length: int, seed: int, share: float) -> None:
    vectors = np.random.default_rng(seed).normal(size=(samples, length)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    count = max(1, round(share * samples))
    order = Herding(ExemplarsConfig()).rank(vectors, count, 0)
    assert len(set(order.tolist())) == count
    for picked, (_, distances) in zip(order, by_hand(vectors.astype(np.float64), count), strict=True):
        assert distances[picked] == pytest.approx(distances.min(), abs=1e-5)
        nearest = np.sort(distances)[:2]
        if len(nearest) == 2 and nearest[1] - nearest[0] < 1e-4:
            break  # a tie, after which the two may differ


def test_smaller_sets_are_prefixes_of_herdings_and_randoms() -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    for selection in (Herding, Random):
        codec = selection(ExemplarsConfig())
        long = codec.rank(vectors, 20, 3)
        np.testing.assert_array_equal(codec.rank(vectors, 7, 3), long[:7])


def test_kmeans_keeps_one_of_each_cluster() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(4, dtype=np.float32)
    of = np.repeat(np.arange(4), (20, 10, 5, 2))
    vectors = (centres[of] + 0.01 * rng.normal(size=(37, 4))).astype(np.float32)
    assert of[KMeans(ExemplarsConfig()).rank(vectors, 4, 0)].tolist() == [0, 1, 2, 3]
    assert len(set(KMeans(ExemplarsConfig()).rank(vectors, 37, 0).tolist())) == 37


@pytest.mark.parametrize("codec", SELECTIONS)
def test_exemplars_are_the_source_s_own_rank_by_rank(codec: str, tmp_path: Path) -> None:
    source = images()
    store = encode(source, tmp_path, codec)
    assert store.labels is not None
    assert store.labels.tolist() == [5, 6, 7, 5, 6, 5, 6, 5, 6]
    np.testing.assert_array_equal(source.labels[store.ids], store.labels)
    np.testing.assert_array_equal(store.read(store.ids), source.features[store.ids])
    assert store.read(store.ids).dtype == np.uint8
    assert store.config["codec"] == "webp_lossless"
    assert store.quality.mse == 0
    fewer = encode(source, tmp_path, codec, settings={"per_class": 2})
    if codec != "kmeans":
        assert fewer.ids.tolist() == store.ids[:5].tolist()


def test_coverage_is_the_mean_distance_to_the_nearest_of_the_class(tmp_path: Path) -> None:
    source = images((9, 7))
    store = encode(source, tmp_path, settings={"per_class": 2})
    kept = {label: store.ids[store.labels == label] for label in (5, 6)}
    values = source.features.astype(np.float64)
    expected = np.mean(
        [min(np.square(values[i] - values[j]).mean() for j in kept[label]) for i, label in enumerate(source.labels)]
    )
    assert store.quality.coverage_mse == pytest.approx(expected)


def test_a_total_is_shared_by_the_classes(tmp_path: Path) -> None:
    store = encode(images(), tmp_path, settings={"per_class": None, "total": 11})
    assert np.bincount(store.labels)[5:].tolist() == [3, 3, 1]


def test_twenty_of_each_class_without_a_word(tmp_path: Path) -> None:
    store = encode(images(), tmp_path, settings={"per_class": None})
    assert np.bincount(store.labels)[5:].tolist() == [20, 12, 1]


def test_bytes_say_how_many(tmp_path: Path) -> None:
    source = images((60, 60))
    smaller, larger = (
        encode(source, tmp_path, settings={"per_class": None}, max_bytes=limit) for limit in (6_000, 12_000)
    )
    assert smaller.bytes.file <= 6_000 < larger.bytes.file <= 12_000
    assert larger.ids[: len(smaller)].tolist() == smaller.ids.tolist()
    more = encode(source, tmp_path, settings={"per_class": len(larger) // 2 + 1})
    assert more.bytes.file > 0.99 * 12_000
    with pytest.raises(TargetUnreachableError):
        encode(source, tmp_path, settings={"per_class": None}, max_bytes=900)


def test_more_exemplars_of_a_lossy_codec_in_the_same_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = np.maximum(rng.normal(size=(200, 1, 1, 1)) + rng.normal(size=(200, 8, 4, 4)), 0).astype(np.float32)
    source = ArraySource(features, np.arange(200) % 2)
    plain = encode(source, tmp_path)
    given = {"per_class": 30, "codec": "transform", "codec_preset": "linear"}
    store = encode(source, tmp_path, settings=given, max_bytes=plain.bytes.file)
    assert store.bytes.file <= plain.bytes.file
    assert (len(plain), len(store)) == (8, 60)
    assert store.ids[:8].tolist() == plain.ids.tolist()
    decoded = store.read(store.ids)
    assert 0 < np.square(decoded - features[store.ids]).mean() < features.var()
    assert store.config["codec"] == "transform"


def test_choosing_by_given_embeddings(tmp_path: Path) -> None:
    source = images((20, 20))
    vectors = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
    with h5py.File(tmp_path / "embeddings.h5", "w") as file:
        file["features"] = vectors
    store = encode(source, tmp_path, settings={"embeddings": str(tmp_path / "embeddings.h5")})
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for label, ids in class_indices(source.labels).items():
        rows = Herding(ExemplarsConfig()).rank(unit[ids], 4, 0)
        assert store.ids[store.labels == label].tolist() == ids[rows].tolist()
    with h5py.File(tmp_path / "few.h5", "w") as file:
        file["features"] = vectors[:7]
    with pytest.raises(UsageError, match="has 7 samples; the archive has 40"):
        encode(source, tmp_path, settings={"embeddings": str(tmp_path / "few.h5")})


def test_choosing_by_a_network(tmp_path: Path) -> None:
    source = images((20, 20))

    class Corner(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, 0, 0]

    store = encode(source, tmp_path, task_model=Corner())
    corners = source.features[:, 0, 0].astype(np.float32)
    unit = corners / np.linalg.norm(corners, axis=1, keepdims=True)
    for label, ids in class_indices(source.labels).items():
        rows = Herding(ExemplarsConfig()).rank(unit[ids], 4, 0)
        assert store.ids[store.labels == label].tolist() == ids[rows].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": {"total": 9}}, "per_class=4 and total=9; give one of them"),
        ({"settings": {"per_class": None, "total": 2}}, "total=2 is less than an exemplar of each of 3 classes"),
        ({"ratio": 9}, "a target and 4 exemplars of each class, stored by the lossless codec webp_lossless"),
        ({"max_mse": 9.0}, "max_mse=9 says nothing of how many"),
        ({"settings": {"codec": "random"}}, "codec=random keeps exemplars itself"),
        ({"settings": {"codec": "rwa"}}, "rwa"),
        ({"settings": {"codec": "pq", "codec_settings": {"subvectors": 7}}}, "subvectors"),
        ({"settings": {"codec": "transform", "codec_settings": {"widht": 3}}}, "widht"),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        encode(images(), tmp_path, **options)


def test_without_labels_there_is_one_class(tmp_path: Path) -> None:
    source = ArraySource(images().features, None)
    assert len(encode(source, tmp_path, settings={"per_class": None, "total": 7})) == 7
    with pytest.raises(UsageError, match="there are no labels; give a total"):
        encode(source, tmp_path)


def test_broken_samples_are_named(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    features[3, 1] = np.nan
    with pytest.raises(ArchiveError, match="3"):
        encode(ArraySource(features, np.zeros(9, np.int64)), tmp_path)
    features = np.where(np.arange(9) == 5, 1e149, 1)[:, None]
    with pytest.raises(ArchiveError, match="sample 5 cannot be compared with others"):
        encode(ArraySource(features, np.zeros(9, np.int64)), tmp_path)


def test_a_store_of_a_codec_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = encode(images(), tmp_path)
    monkeypatch.setattr("krstore_codecs._exemplars.get_sample_codec", lambda name: Random)
    with pytest.raises(CorruptStoreError, match="which keeps exemplars itself"):
        krstore.Store(store.path, device="cpu").read(store.ids)


def test_the_task_model_is_the_callers_own(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(x.flatten(1) * self.scale, 0.9, self.training)

    network = Noisy().train()
    store = encode(images(), tmp_path, task_model=network)
    assert network.training
    assert network.scale.requires_grad
    np.testing.assert_array_equal(store.ids, encode(images(), tmp_path).ids)


@pytest.mark.parametrize("sizes", [(1000, *[5] * 20), (400,)])
def test_a_target_is_used_up(sizes: tuple[int, ...], tmp_path: Path) -> None:
    source = images(sizes)
    source.features[:, :6] = 0  # which compresses well
    limit = 20_000
    store = krstore.encode(source, tmp_path / "x.krs", "random", max_bytes=limit, device="cpu")
    assert 0.9 * limit < store.bytes.file <= limit
