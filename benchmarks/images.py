"""Images in the features' place: compressed by WebP or JPEG, and the features computed again from what that decodes to.

Counted are the files less what is the same in all of them, a header that a user would store once; the network that
computes the features is not.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import krstore
from benchmarks.peers import Encoded
from krstore.modules import load_module
from krstore.source import Array, Source

__all__ = ["jpeg", "lossless_bytes", "webp"]

RIFF_BYTES = 20


def webp(source: Source, folder: Path, data: Path, budget: int) -> Encoded | None:
    """Return the features of WebP images at the best quality that meets the budget.

    Args:
        source: an archive that `krstore extract` wrote; its attributes say how.
        folder: for temporary files.
        data: a folder with `images.npz` (N, H, W, 3) and `weights.safetensors` of the network.
    """
    return _recomputed(source, folder, data, budget, lambda image, quality: _file(image, "WEBP", quality, method=6))


def jpeg(source: Source, folder: Path, data: Path, budget: int) -> Encoded | None:
    """Return the features of JPEG images (Huffman tables of their own); otherwise as `webp`."""
    return _recomputed(
        source, folder, data, budget, lambda image, quality: _file(image, "JPEG", quality, optimize=True)
    )


def lossless_bytes(images: Array) -> list[int]:
    """Return the bytes of each image (N, H, W, 3) as lossless WebP, headers aside."""
    return [len(_file(image, "WEBP", 100, lossless=True, method=6)) - RIFF_BYTES for image in images]


def _recomputed(
    source: Source, folder: Path, data: Path, budget: int, compress: Callable[[Array, int], bytes]
) -> Encoded | None:
    images = np.load(data / "images.npz")["images"]
    low, high, best, size = 0, 101, None, 0
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

    def decode() -> Array:
        decoded = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
        np.savez(folder / "decoded.npz", images=decoded)
        facts: dict[str, Any] = dict(source.spec.attributes)
        module = load_module(facts["model"], data / "weights.safetensors")
        again = krstore.extract(
            module, facts["layer"], folder / "decoded.npz", folder / "decoded.h5", mean=facts["mean"],
            std=facts["std"], force=True,
        )  # fmt: skip
        return again.read(np.arange(len(decoded)))

    return Encoded(size, f"quality {low}", decode)


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
