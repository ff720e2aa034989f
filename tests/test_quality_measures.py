"""Quality: every figure against its definition, worked out again with NumPy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import krstore
from krstore.source import Array, Ids, scan
from krstore.store.header import Quality
from krstore.store.quality import measure, round_figure
from krstore.testing import ArraySource


def measured(truth: Array, decoded: Array, labels: Ids | None = None, kept: Ids | None = None) -> Quality:
    """`decoded` has one row a kept sample."""
    source = ArraySource(truth, labels)
    return measure(source, lambda rows: decoded[rows], scan(source), kept)


@given(
    seed=st.integers(0, 10**6),
    samples=st.integers(1, 30),
    dtype=st.sampled_from(["float32", "float16", "uint8", "float64"]),
)
@settings(max_examples=60, deadline=None)
def test_figures_are_their_definitions(seed: int, samples: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    truth = np.abs(40 * rng.normal(size=(samples, 3, 4, 2))).clip(0, 255).astype(dtype)
    decoded = (truth + 3 * rng.normal(size=truth.shape)).clip(0, 255).astype(dtype)
    truth[:, 1] = 7  # a dead channel, which its decoding may miss
    labels = rng.integers(-1, 2, samples)
    quality = measured(truth, decoded, labels)

    x, y = truth.astype(np.float64), decoded.astype(np.float64)
    squares = (x - y) ** 2
    low, high = x.min(axis=(0, 2, 3), keepdims=True), x.max(axis=(0, 2, 3), keepdims=True)
    span = np.where(high > low, high - low, np.inf)
    flat_x, flat_y = x.reshape(samples, -1), y.reshape(samples, -1)
    cosines = (flat_x * flat_y).sum(1) / np.linalg.norm(flat_x, axis=1) / np.linalg.norm(flat_y, axis=1)
    assert quality.mse == pytest.approx(squares.mean(), rel=1e-9)
    assert quality.mse_normalised == pytest.approx((squares / span**2).mean(), rel=1e-9)
    assert quality.nmse == pytest.approx(squares.mean() / x.var(), rel=1e-9)
    assert quality.psnr == pytest.approx(10 * math.log10((x.max() - x.min()) ** 2 / squares.mean()), rel=1e-9)
    assert quality.max_abs == np.abs(x - y).max()
    assert quality.cosine == pytest.approx(cosines.mean(), rel=1e-9)
    per_class = [squares[labels == label].mean() for label in np.unique(labels)]
    np.testing.assert_allclose(quality.per_class, per_class, rtol=1e-6)
    assert quality.coverage_mse is None


def test_channels_lie_where_the_source_says() -> None:
    """(N, T, D): the last axis."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(20, 5, 3)) * [1, 10, 100]
    decoded = truth + rng.normal(size=truth.shape) * [1, 10, 100]
    spans = truth.max(axis=(0, 1)) - truth.min(axis=(0, 1))
    expected = (((truth - decoded) / spans) ** 2).mean()
    assert measured(truth, decoded).mse_normalised == pytest.approx(expected)


def test_a_perfect_decoding() -> None:
    truth = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    quality = measured(truth, truth)
    assert (quality.mse, quality.mse_normalised, quality.nmse, quality.max_abs) == (0, 0, 0, 0)
    assert quality.psnr is None
    assert quality.cosine == pytest.approx(1)


def test_samples_of_zeros() -> None:
    """Alike when both are zero, unlike when one is."""
    truth = np.array([[0, 0], [0, 0], [3, 4], [1, 0]], np.float32)
    decoded = np.array([[0, 0], [1, 1], [0, 0], [0, 1]], np.float32)
    assert measured(truth, decoded).cosine == pytest.approx(1 / 4)


@pytest.mark.parametrize("scale", [1e149, 1e-140])
def test_angles_of_large_and_small_samples(scale: float) -> None:
    truth, decoded = np.array([[3.0, 4.0], [1.0, 0.0]]) * scale, np.array([[4.0, 3.0], [1.0, 0.0]]) * scale
    assert measured(truth, decoded).cosine == pytest.approx((24 / 25 + 1) / 2)


def test_a_constant_archive() -> None:
    truth = np.full((5, 2, 2), 3.0, np.float32)
    quality = measured(truth, truth + 1)
    assert quality.mse == 1
    assert quality.mse_normalised == 0
    assert quality.psnr is None


def test_unsigned_integers_do_not_wrap() -> None:
    truth, decoded = np.array([[0, 255]], np.uint8), np.array([[255, 0]], np.uint8)
    quality = measured(truth, decoded)
    assert quality.mse == 255**2
    assert quality.max_abs == 255


def test_no_labels_no_classes() -> None:
    truth = np.zeros((4, 2), np.float32)
    assert measured(truth, truth).per_class == ()


@pytest.mark.parametrize("labelled", [True, False])
def test_exemplars_are_measured_and_cover_their_class(labelled: bool) -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(60, 3, 2)).astype(np.float32)
    labels = rng.integers(0, 3, 60) if labelled else None
    kept = rng.permutation(60)[:20]
    decoded = (truth[kept] + 0.05 * rng.normal(size=(20, 3, 2))).astype(np.float32)
    quality = measured(truth, decoded, labels, kept)

    nearest = []
    for sample in range(60):
        own = [
            np.square(truth[sample].astype(np.float64) - decoded[row]).mean()
            for row, exemplar in enumerate(kept)
            if labels is None or labels[exemplar] == labels[sample]
        ]
        nearest.append(min(own))
    assert quality.coverage_mse == pytest.approx(np.mean(nearest), rel=1e-6)
    assert quality.mse == pytest.approx(np.square(truth[kept].astype(np.float64) - decoded).mean())
    if labels is not None:
        errors = np.square(truth[kept].astype(np.float64) - decoded).mean(axis=(1, 2))
        expected = [errors[labels[kept] == label].mean() for label in np.unique(labels[kept])]
        np.testing.assert_allclose(quality.per_class, expected, rtol=1e-6)


def test_a_class_without_exemplar_has_no_coverage() -> None:
    truth = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    kept = np.array([0, 1])
    assert measured(truth, truth[kept], np.array([0, 0, 1, 1]), kept).coverage_mse is None


def test_large_archives_are_measured_in_pieces() -> None:
    """The same figures whether the samples fit one piece of 16 MiB or not."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(80, 1 << 16)).astype(np.float32)
    decoded = truth + rng.normal(size=truth.shape).astype(np.float32)
    quality = measured(truth, decoded)
    error = np.square(truth.astype(np.float64) - decoded)
    assert quality.mse == pytest.approx(error.mean())
    assert quality.max_abs == pytest.approx(math.sqrt(error.max()))


def test_what_a_store_states_is_measured_on_its_own_bytes(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    source = ArraySource(rng.normal(size=(200, 6, 2, 2)).astype(np.float32), rng.integers(0, 4, 200))
    options: dict[str, Any] = {"iterations": 3, "train_points": 16}
    store = krstore.encode(source, tmp_path / "x.krs", "pq", ratio=3, settings=options, device="cpu")
    again = measured(source.features, store.read(slice(None)), source.labels)
    assert again == store.quality


@pytest.mark.parametrize("value", [0.0, 1.23456789e-7, 123456.789, 1 / 3, 1e300])
def test_figures_by_class_keep_seven_digits(value: float) -> None:
    assert round_figure(value) == pytest.approx(value, rel=5.1e-7, abs=0)
    assert len(str(round_figure(value))) <= 13


def test_how_much_of_the_variance_is_kept() -> None:
    """Half the amplitude in one channel keeps a quarter of its variance; a dead channel does not count."""
    truth = np.random.default_rng(0).normal(size=(50, 3, 4, 1)).astype(np.float32)
    truth[:, 2] = 7
    decoded = truth.copy()
    decoded[:, 0] /= 2
    assert measured(truth, decoded).variance_kept == pytest.approx((0.25 + 1) / 2, rel=1e-6)
    assert measured(truth[:, 2:], truth[:, 2:]).variance_kept is None


def test_a_discriminator_tells_smooth_from_sharp_and_nothing_from_the_same() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(300, 3, 16)).astype(np.float32)
    assert measured(truth, truth).discriminator == 0.5
    smooth = truth.copy()
    smooth[:, :, 1:] = (truth[:, :, 1:] + truth[:, :, :-1]) / 2
    told = measured(truth, smooth).discriminator
    assert told is not None
    assert told > 0.8
    alike = measured(truth, rng.normal(size=truth.shape).astype(np.float32)).discriminator
    assert alike is not None
    assert alike == pytest.approx(0.5, abs=0.1)
    assert measured(truth[:3], smooth[:3]).discriminator is None
