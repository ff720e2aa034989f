"""Images in the features' place: compressed by WebP, and the features computed again from what it decodes to."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import krstore
from benchmarks.peers import Encoded
from krstore.modules import load_module
from krstore.source import Array, Source

__all__ = ["webp"]

RIFF_BYTES = 20  # the same in every file


def webp(source: Source, folder: Path, data: Path, budget: int) -> Encoded | None:
    """Return the features of WebP images at the best quality that meets the budget, network not counted.

    Args:
        source: an archive that `krstore extract` wrote; its attributes say how.
        folder: for temporary files.
        data: a folder with `images.npz` (N, H, W, 3) and `weights.safetensors` of the network.
    """
    images = np.load(data / "images.npz")["images"]
    low, high, files = -1, 100, None
    while high - low > 1:
        middle = (low + high) // 2
        made = [_compress(image, middle) for image in images]
        if sum(map(len, made)) - RIFF_BYTES * len(made) <= budget:
            low, files = middle, made
        else:
            high = middle
    if files is None:
        return None
    size = sum(map(len, files)) - RIFF_BYTES * len(files)

    def decode() -> Array:
        decoded = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
        np.savez(folder / "webp.npz", images=decoded)
        facts: dict[str, Any] = dict(source.spec.attributes)
        module = load_module(facts["model"], data / "weights.safetensors")
        again = krstore.extract(
            module, facts["layer"], folder / "webp.npz", folder / "webp.h5", mean=facts["mean"], std=facts["std"],
            force=True,
        )  # fmt: skip
        return again.read(np.arange(len(decoded)))

    return Encoded(size, f"quality {low}", decode)


def _compress(image: Array, quality: int) -> bytes:
    memory = io.BytesIO()
    Image.fromarray(image).save(memory, "WEBP", quality=quality, method=6)
    return memory.getvalue()
