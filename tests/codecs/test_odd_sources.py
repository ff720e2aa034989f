"""Every lossy codec on sources nobody has in mind: it works, or says clearly why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import krstore
from krstore.errors import ArchiveError
from krstore.testing import ArraySource, example_source

LOSSY = ("krnet", "autoencoder", "pq", "transform")
RNG = np.random.default_rng(0)


def grids(*shape: int, dtype: Any = np.float32) -> Any:
    return np.maximum(RNG.normal(size=shape), 0).astype(dtype)


def labels(samples: int) -> Any:
    return RNG.integers(0, 3, samples)


SOURCES = {
    "one sample": ArraySource(grids(1, 6, 4, 4), np.array([3])),
    "two samples of two classes": ArraySource(grids(2, 6, 4, 4), np.array([3, 4])),
    "a class of one sample": ArraySource(grids(60, 6, 4, 4), np.r_[np.zeros(59, np.int64), 7]),
    "a dead channel": example_source(200),
    "constant": ArraySource(np.full((100, 4, 3, 3), 2.5, np.float32), labels(100)),
    "zeros": ArraySource(np.zeros((100, 4, 3, 3), np.float32), labels(100)),
    "scalars": ArraySource(grids(400), labels(400)),
    "one number": ArraySource(grids(1)),
    "vectors": ArraySource(grids(200, 12), labels(200)),
    "vectors of one": ArraySource(grids(200, 1), labels(200)),
    "tokens": ArraySource(grids(100, 5, 8), labels(100)),
    "videos": ArraySource(grids(60, 3, 2, 4, 5), labels(60)),
    "images": ArraySource(RNG.integers(0, 256, (12, 32, 32, 3)).astype(np.uint8), labels(12), channel_axis=2),
    "one position": ArraySource(grids(100, 16, 1, 1), labels(100)),
    "one row": ArraySource(grids(100, 8, 1, 7), labels(100)),
    "float64": ArraySource(grids(100, 6, 4, 4, dtype=np.float64), labels(100)),
    "tiny values": ArraySource(grids(100, 6, 2, 2, dtype=np.float64) * 1e-150, labels(100)),
    "denormals": ArraySource(grids(100, 6, 2, 2) * np.float32(1e-42), labels(100)),
    "bfloat16": ArraySource(grids(100, 6, 4, 4, dtype=ml_dtypes.bfloat16), labels(100)),
    "large float16": ArraySource(RNG.uniform(-65504, 65504, (100, 6, 4, 4)).astype(np.float16), labels(100)),
    "a large offset": ArraySource(grids(100, 6, 4, 4) + np.float32(1e4), labels(100)),
    "no labels": ArraySource(grids(100, 6, 4, 4)),
    "a thousand classes": ArraySource(grids(1000, 4, 2, 2), np.arange(1000) * 7 - 5),
    "extreme labels": ArraySource(grids(50, 6, 4, 4), RNG.choice([-(2**63), 2**63 - 1], 50)),
}
EXACT = {"constant", "zeros"}


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("name", SOURCES)
def test_works(tmp_path: Path, name: str, codec: str) -> None:
    """With room enough: a file of these is not what anybody saves bytes with."""
    if codec == "pq":
        pytest.importorskip("faiss")
    source = SOURCES[name]
    settings = {"iterations": 3} | ({"train_points": 8} if codec == "pq" else {})
    store = krstore.encode(source, tmp_path / "x.krs", codec, max_bytes=100_000, settings=settings, device="cpu")
    assert store.path.stat().st_size <= 100_000
    decoded = store.read(slice(None))
    assert decoded.shape == source.features.shape
    assert decoded.dtype == source.features.dtype
    values, truth = decoded.astype(np.float64), source.features.astype(np.float64)
    assert np.isfinite(values).all()
    assert store.quality.mse == pytest.approx(np.square(values - truth).mean(), rel=1e-6, abs=1e-300)
    slack = 1e-5 * np.abs(truth).max()
    assert truth.min() - slack <= values.min() <= values.max() <= truth.max() + slack
    np.testing.assert_array_equal(store.labels, source.labels)
    if name in EXACT:
        np.testing.assert_allclose(values, truth, rtol=1e-5)
    assert store.check()


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize(("dtype", "value"), [("float32", 3.4e38), ("float64", 1e100)])
def test_values_beyond_float32_arithmetic_are_refused(tmp_path: Path, codec: str, dtype: str, value: float) -> None:
    if codec == "pq":
        pytest.importorskip("faiss")
    source = ArraySource(RNG.choice([-value, 0, value], (50, 4, 2, 2)).astype(dtype))
    with pytest.raises(ArchiveError, match=r"scale the features first"):
        krstore.encode(source, tmp_path / "x.krs", codec, max_bytes=100_000, settings={"iterations": 3}, device="cpu")
    assert not (tmp_path / "x.krs").exists()


def test_integers_of_uint8_come_back_rounded(tmp_path: Path) -> None:
    """Near values, not truncated ones: the mean error is small against a half."""
    pytest.importorskip("faiss")
    source = ArraySource(np.repeat(RNG.integers(0, 256, (64, 4)), 4, axis=0).astype(np.uint8))
    settings = {"bits": 8, "subvectors": 1, "iterations": 10}
    store = krstore.encode(source, tmp_path / "x.krs", "pq", max_mse=1000, settings=settings, device="cpu")
    error = store.read(slice(None)).astype(int) - source.features.astype(int)
    assert abs(error.mean()) < 0.2
