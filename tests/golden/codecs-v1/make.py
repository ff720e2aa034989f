"""Writes the golden stores of the codecs with entropy-coded integers. What exists is never overwritten."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import krstore
from krstore.store.opened import PayloadView
from krstore.testing import ArraySource
from krstore_codecs._latents import IntegerBlocks

__all__ = ["STORES", "integers"]

HERE = Path(__file__).parent
SAMPLES, EVERY = 240, 16
RATIOS = {"transform-restored": 24}
STORES: dict[str, tuple[str, tuple[int, ...], str, dict[str, Any]]] = {
    "transform-net": ("transform", (6, 4, 4), "latent/coefficients", {"width": 8, "iterations": 30}),
    "transform-tiles": ("transform", (4, 8, 8), "latent/coefficients", {"width": 0, "tile": 2}),
    "transform-tokens": ("transform", (65, 4), "latent/coefficients", {"width": 0}),
    "transform-sequence": ("transform", (40, 3), "latent/coefficients", {"width": 0}),
    "transform-long": ("transform", (2, 3, 40), "latent/coefficients", {"width": 0, "tile": 1}),
    "transform-whole": ("transform", (2, 20, 3), "latent/coefficients", {"width": 0, "tile": 1}),
    "transform-vectors": ("transform", (24,), "latent/coefficients", {"width": 4, "iterations": 30}),
    "transform-restored": ("transform", (6, 4, 4), "latent/coefficients", {"width": 0, "restore": True}),
    "autoencoder": ("autoencoder", (6, 4, 4), "latent/codes", {"latent": 5, "c0": 4, "iterations": 30}),
    "krnet-codes": ("krnet", (6, 4, 4), "latent/codes", {"latent": 3, "c0": 4, "d0": 8, "iterations": 30}),
}


def integers(path: Path, member: str) -> np.ndarray[Any, Any]:
    """Return what the entropy coder of a store decodes to, (N, L) int32."""
    with krstore.open(path) as store:
        payload = PayloadView(store._container)
        length = msgspec.msgpack.decode(payload.read(f"{member}.columns"))[0]
        return IntegerBlocks(payload, member, len(store), length).read(np.arange(len(store)))


def example(shape: tuple[int, ...]) -> ArraySource:
    """Return rectified mixtures of a few patterns, or for 65 tokens a first one and smooth squares, with labels."""
    rng = np.random.default_rng(list(shape))
    if shape[0] == 65:
        smooth = np.exp(-(np.subtract.outer(np.arange(8), np.arange(8)) ** 2) / 4.0)
        squares = np.einsum("ij,njkc,kl->nilc", smooth, rng.normal(size=(SAMPLES, 8, 8, shape[1])), smooth)
        values = np.concatenate([rng.normal(size=(SAMPLES, 1, shape[1])), squares.reshape(SAMPLES, 64, -1)], axis=1)
    else:
        values = np.tensordot(rng.normal(size=(SAMPLES, 4)), rng.normal(size=(4, *shape)), 1)
        values = values + 0.1 * rng.normal(size=(SAMPLES, *shape))
    return ArraySource(np.maximum(values, 0).astype(np.float32), rng.integers(0, 3, SAMPLES))


def main() -> None:
    """Write every store that is not there yet, its integers, and some of the features that it decodes to."""
    missing = {name: store for name, store in STORES.items() if not (HERE / f"{name}.krs").exists()}
    if not missing:
        sys.exit("golden files are never overwritten; all exist")
    for name, (codec, shape, member, settings) in missing.items():
        path = HERE / f"{name}.krs"
        store = krstore.encode(example(shape), path, codec, ratio=RATIOS.get(name, 4), settings=settings, device="cpu")
        np.save(HERE / f"{name}.features.npy", store.read(slice(None, None, EVERY)), allow_pickle=False)
        np.save(HERE / f"{name}.integers.npy", integers(path, member).astype(np.int16), allow_pickle=False)


if __name__ == "__main__":
    main()
