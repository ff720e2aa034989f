"""raw: every bit comes back, in fewer bytes than general compressors take."""

from __future__ import annotations

import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from payloads import MemoryPayload

import krstore
from krstore.checkpoint import Checkpoint
from krstore.codec import FitContext, OpenContext
from krstore.errors import CorruptStoreError, UsageError
from krstore.progress import SILENT
from krstore.source import Array, scan
from krstore.testing import ArraySource, example_source
from krstore_codecs.raw import Raw


def packed(features: Array, **options: int) -> tuple[MemoryPayload, OpenContext]:
    """Pack without a file; `scan` would refuse what is not finite, and the codec must not care."""
    source, payload = ArraySource(features), MemoryPayload()
    codec = Raw(Raw.Config(**options))
    context = FitContext(
        stats=scan(example_source(3)),
        budget=None,
        max_mse=None,
        device="cpu",
        seed=0,
        progress=SILENT,
        checkpoint=Checkpoint(None),
    )
    codec.pack(codec.fit(source, context), 0.0, payload)
    return payload, OpenContext(spec=source.spec, kept=len(features), labels=None, device="cpu")


@st.composite
def anything(draw: st.DrawFn) -> Array:
    """Any bits: NaNs of every kind, infinities, minus zero, denormals."""
    dtype = draw(st.sampled_from(["uint8", "float16", "bfloat16", "float32", "float64"]))
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=7))
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    width = np.dtype(kind).itemsize
    words = draw(
        hnp.arrays(
            f"<u{width}",
            shape,
            elements=st.sampled_from([0, 1, 2 ** (8 * width - 1)]) | st.integers(0, 2 ** (8 * width) - 1),
        )
    )
    return words.view(kind)


@given(features=anything(), block=st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_any_bits_come_back(features: Array, block: int) -> None:
    payload, context = packed(features, block_samples=block)
    decoder = Raw.open(payload, context)
    rows = np.arange(len(features))[::-1].copy()
    found = decoder.decode(rows)
    assert found.dtype == features.dtype
    assert found.tobytes() == features[rows].tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_smaller_than_general_compression(tmp_path: Path, dtype: str) -> None:
    """Rectified activations, against deflate of the plain bytes and of byte planes."""
    features = np.maximum(np.random.default_rng(0).normal(size=(150, 8, 6, 6)), 0).astype(dtype)
    store = krstore.encode(ArraySource(features), tmp_path / "x.krs", "raw")
    planes = features.view(np.uint8).reshape(-1, features.itemsize).T.tobytes()
    assert store.path.stat().st_size < min(len(zlib.compress(features.tobytes(), 9)), len(zlib.compress(planes, 9)))


def test_incompressible_features_cost_little_more_than_themselves(tmp_path: Path) -> None:
    features = np.random.default_rng(0).integers(0, 256, (100, 4096), np.uint8)
    store = krstore.encode(ArraySource(features), tmp_path / "x.krs", "raw")
    assert store.path.stat().st_size < 1.01 * features.nbytes + 2000


def test_a_target_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="raw is lossless: it takes no ratio"):
        krstore.encode(example_source(10), tmp_path / "x.krs", "raw", ratio=2.0)


def test_levels_change_bytes_not_values(tmp_path: Path) -> None:
    source = example_source(100)
    stores = [krstore.encode(source, tmp_path / f"{level}.krs", "raw", settings={"level": level}) for level in (1, 19)]
    assert stores[0].read(slice(None)).tobytes() == stores[1].read(slice(None)).tobytes() == source.features.tobytes()
    assert stores[1].path.stat().st_size <= stores[0].path.stat().st_size


FEATURES = np.random.default_rng(0).choice([0, 0, 1.5, -2.25], (20, 9)).astype(np.float32)


@given(
    place=st.floats(0, 1, exclude_max=True),
    flip=st.integers(1, 255),
    cut=st.booleans(),
    dtype=st.sampled_from(["float32", "uint8"]),
)
@settings(max_examples=200, deadline=None)
def test_a_damaged_block_is_an_error_or_samples(place: float, flip: int, cut: bool, dtype: str) -> None:
    """Past the block's checksum, which is matched to the damage here."""
    payload, context = packed(FEATURES.astype(dtype), block_samples=20)
    data = bytearray(payload.members["latent/samples"])
    at = int(place * len(data))
    if cut:
        data = data[:at]
    else:
        data[at] ^= flip
    payload.write_blocks("latent/samples", 20, [bytes(data)])
    try:
        found = Raw.open(payload, context).decode(np.arange(20))
    except CorruptStoreError:
        return
    assert found.shape == (20, 9)
