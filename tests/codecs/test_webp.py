"""Images as WebP."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from payloads import MemoryPayload

import krstore
from krstore.codec import OpenContext
from krstore.errors import CorruptStoreError, UsageError
from krstore.testing import ArraySource
from krstore_codecs.webp import WebP

Image = pytest.importorskip("PIL.Image")


def smooth(shape: tuple[int, ...], channels: int) -> np.ndarray:
    """Return 40 images with little noise on slopes, of these shapes of height and width."""
    rng = np.random.default_rng(0)
    slopes = rng.normal(size=(40, 2, 1, 1, channels))
    y, x = np.mgrid[: shape[0], : shape[1]]
    values = 128 + 4 * (slopes[:, 0] * y[..., None] + slopes[:, 1] * x[..., None]) + rng.normal(size=(40, *shape, 1))
    return values.clip(0, 255).astype(np.uint8)


def small_image() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 4)).save(file, "WEBP")
    return file.getvalue()[12:]


@pytest.mark.parametrize(("channels", "axis"), [(3, 2), (3, 0), (1, 2), (1, None)])
def test_lossless_is_lossless_in_every_layout(channels: int, axis: int | None, tmp_path: Path) -> None:
    images = smooth((20, 13), channels)
    images = images[..., 0] if axis is None else np.moveaxis(images, 3, axis + 1)
    store = krstore.encode(ArraySource(np.ascontiguousarray(images)), tmp_path / "a.krs", "webp_lossless")
    np.testing.assert_array_equal(store.read(slice(None)), images)
    assert store.quality.mse == 0
    assert store.ratio > 1.3


def test_a_target_sets_the_quality(tmp_path: Path) -> None:
    source = ArraySource(smooth((32, 32), 3))
    small, large = (krstore.encode(source, tmp_path / f"{r}.krs", "webp", ratio=r) for r in (14, 6))
    assert small.ratio >= 14
    assert 6 <= large.ratio < 14
    assert 0 < large.quality.mse < small.quality.mse < 100


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"VP8L" + struct.pack("<IBI", 5, 0x2F, 16382 | 16382 << 14), "malformed|expected"),  # an image of 268 Mpx
        (small_image(), "an image of 4x8; expected 8x8"),
        (b"not an image", "malformed"),
    ],
)
def test_images_that_are_not_what_they_should_be(file: bytes, message: str) -> None:
    payload = MemoryPayload()
    payload.write_blocks("latent/images", 1, [msgspec.msgpack.encode([file])])
    spec = ArraySource(np.zeros((1, 8, 8, 3), np.uint8)).spec
    context = OpenContext(spec=spec, kept=1, labels=None, device="cpu")
    with pytest.raises(CorruptStoreError, match=message):
        WebP.open(payload, context).decode(np.array([0]))
    with pytest.raises(CorruptStoreError, match="are no images"):
        WebP.open(payload, replace(context, spec=replace(spec, dtype="float32")))


@pytest.mark.parametrize(("shape", "dtype"), [((4, 8, 8), "uint8"), ((3, 8, 8), "float32"), ((8,), "uint8")])
def test_what_is_no_image_is_refused(shape: tuple[int, ...], dtype: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected uint8 images"):
        krstore.encode(ArraySource(np.ones((5, *shape), dtype)), tmp_path / "a.krs", "webp")
