"""Images in the features' place: compressed by WebP or JPEG, and the features computed again from what that decodes to.

Counted are the files less what is the same in all of them, a header that a user would store once; the network that
computes the features is not.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import krstore
from benchmarks.case import Case, Encoded, nmse
from krstore.modules import load_module
from krstore.source import Array

__all__ = ["jpeg", "lossless_bytes", "webp"]

RIFF_BYTES = 20


def webp(case: Case, budget: int) -> Encoded | None:
    """Return the features of WebP images, or the images, at the best quality that meets the budget.

    The archive is of images, or one that `krstore extract` wrote, whose attributes say how, with `images.npz`
    (N, H, W, 3) and `weights.safetensors` of the network beside it.
    """
    return _coded(case, budget, lambda image, quality: _file(image, "WEBP", quality, method=6))


def jpeg(case: Case, budget: int) -> Encoded | None:
    """Return the features of JPEG images, of full or halved colour, whichever has less error; otherwise as `webp`.

    All images share the standard Huffman tables, which count once.
    """
    found = [_coded(case, budget, functools.partial(_jpeg, subsampling=halved)) for halved in (0, 2)]
    return min(filter(None, found), key=lambda made: nmse(case.features, made.decode()), default=None)


def lossless_bytes(images: Array) -> list[int]:
    """Return the bytes of each image (N, H, W, 3) as lossless WebP, headers aside."""
    return [len(_file(image, "WEBP", 100, lossless=True, method=6)) - RIFF_BYTES for image in images]


def _coded(case: Case, budget: int, compress: Callable[[Array, int], bytes]) -> Encoded | None:
    data = case.run.data
    if case.features.dtype == np.uint8 and case.features.shape[1] == 3:
        images, back = case.features.transpose(0, 2, 3, 1), _as_samples
    elif data is not None and (data / "images.npz").exists():
        images, back = np.load(data / "images.npz")["images"], functools.partial(_recomputed, case, data)
    else:
        return None
    low, high, best, size = -1, 101, None, 0
    while high - low > 1:
        middle = (low + high) // 2
        made = [compress(image, middle) for image in images]
        total = sum(map(len, made)) - _shared(made) * (len(made) - 1)
        if total <= budget:
            low, best, size = middle, made, total
        else:
            high = middle
    if best is None:
        return None
    files = best
    return Encoded(
        size, f"quality {low}",
        lambda: back(np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])),
    )  # fmt: skip


def _as_samples(images: Array) -> Array:
    return images.transpose(0, 3, 1, 2)


def _recomputed(case: Case, data: Path, images: Array) -> Array:
    """Return the features of images, computed as the archive's were."""
    folder, facts = case.run.folder, dict[str, Any](case.source.spec.attributes)
    np.savez(folder / "decoded.npz", images=images)
    module = load_module(facts["model"], data / "weights.safetensors")
    again = krstore.extract(
        module, facts["layer"], folder / "decoded.npz", folder / "decoded.h5", mean=facts["mean"], std=facts["std"],
        force=True,
    )  # fmt: skip
    return again.read(np.arange(len(images)))


def _jpeg(image: Array, quality: int, *, subsampling: int) -> bytes:
    return _file(image, "JPEG", max(1, quality), subsampling=subsampling)


def _shared(files: list[bytes]) -> int:
    """Return the bytes of the header that the files have in common; a WebP file's differs only in its lengths."""
    if files[0].startswith(b"RIFF"):
        return RIFF_BYTES
    pairs = zip(min(files), max(files), strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), len(min(files)))


def _file(image: Array, kind: str, quality: int, **options: Any) -> bytes:
    memory = io.BytesIO()
    Image.fromarray(image).save(memory, kind, quality=quality, **options)
    return memory.getvalue()
