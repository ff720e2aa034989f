"""Writes the golden files of the format's version 1. They must decode for ever: what exists is never overwritten."""

from __future__ import annotations

import sys
from pathlib import Path

import ml_dtypes
import numpy as np

import krstore
from krstore.dtypes import numpy_dtype
from krstore.store.header import FORMAT_VERSION
from krstore.testing import ArraySource

SHAPES = {"float32": (3, 4, 4), "float16": (5, 7), "bfloat16": (2, 3, 3), "float64": (9,), "uint8": (3, 5, 5)}
SAMPLES = 10


def example(dtype: str) -> ArraySource:
    """Return samples half of which are exact zeros, as after a ReLU, with extremes of the element type."""
    rng = np.random.default_rng(list(dtype.encode()))
    values = np.maximum(rng.normal(0, 40, (SAMPLES, *SHAPES[dtype])), 0)
    features = values.clip(0, 255).astype(numpy_dtype(dtype))
    if dtype != "uint8":
        limits = ml_dtypes.finfo(numpy_dtype(dtype))
        features.reshape(-1)[:4] = [-0.0, float(limits.tiny) / 4, -1.5, 0.0]  # a negative zero, a subnormal
    if dtype == "float16":
        return ArraySource(features)
    labels = rng.choice(np.array([-7, 0, 3, 1000, 1 << 40]), SAMPLES)
    return ArraySource(features, labels, np.arange(SAMPLES) // 5 if dtype == "float32" else None)


def main() -> None:
    """Write every file that is not there yet."""
    folder = Path(__file__).parent / f"v{FORMAT_VERSION}"
    folder.mkdir(exist_ok=True)
    paths = {dtype: folder / f"raw-{dtype}.krs" for dtype in SHAPES}
    existing = [str(path) for path in paths.values() if path.exists()]
    if existing:
        sys.exit(f"golden files are never overwritten; these exist: {', '.join(existing)}")
    for dtype, path in paths.items():
        source = example(dtype)
        krstore.encode(source, path, codec="raw")
        words = source.features.view(np.uint16) if dtype == "bfloat16" else source.features
        np.save(path.with_suffix(".features.npy"), words, allow_pickle=False)
        for name in ("labels", "task"):
            if getattr(source, name) is not None:
                np.save(path.with_suffix(f".{name}.npy"), getattr(source, name), allow_pickle=False)


if __name__ == "__main__":
    main()
