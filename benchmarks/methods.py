"""The methods that are measured against each other: krstore's codecs, other compressors, and images in their place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import krstore
from benchmarks._common import Run
from benchmarks.images import jpeg, webp
from benchmarks.learned import factorised, hyperprior
from benchmarks.peers import Encoded, klt_dct, pca, sz3, zfp
from krstore.errors import TargetUnreachableError
from krstore.source import Array, Source

__all__ = ["CODECS", "IMAGES", "PEERS", "Case", "Method", "nmse"]


@dataclass(frozen=True)
class Case:
    """An archive to compress.

    Attributes:
        run: the benchmark's; its tiny runs train for an iteration or two.
        source, features: the archive, streamed and whole.
    """

    run: Run
    source: Source
    features: Array

    def budget(self, ratio: float) -> int:
        """Return the bytes of a ratio."""
        return int(self.features.nbytes / ratio)


def nmse(features: Array, decoded: Array) -> float:
    """Return the mean squared error as a share of the features' variance."""
    squared = np.square(features.astype(np.float64) - decoded.astype(np.float64)).mean()
    return float(squared / features.var(dtype=np.float64))


Method = Callable[[Case, float], Encoded | None]
"""Compresses an archive at a ratio; `None` where it cannot be so small, or is not for such archives."""


def _store(codec: str, case: Case, ratio: float, **options: Any) -> Encoded | None:
    if case.run.tiny and codec != "pq":
        options = {"settings": {"iterations": 2}}
    path = case.run.folder / "x.krs"
    try:
        store = krstore.encode(case.source, path, codec, ratio=ratio, force=True, **options)
    except TargetUnreachableError:
        return None
    names = ("tile", "channels", "width", "latent", "group_size", "iterations", "subvectors", "bits")
    setting = ", ".join(f"{name} {store.config[name]}" for name in names if store.config.get(name) is not None)
    return Encoded(store.bytes.file, setting, lambda: store.read(slice(None)))


def _codec(codec: str, **options: Any) -> Method:
    return lambda case, ratio: _store(codec, case, ratio, **options)


def _peer(peer: Callable[[Array, int], Encoded | None]) -> Method:
    return lambda case, ratio: peer(case.features, case.budget(ratio))


def _learned(peer: Callable[..., Encoded | None]) -> Method:
    return lambda case, ratio: peer(case.features, case.budget(ratio), case.run.folder, tiny=case.run.tiny)


def _image(peer: Callable[[Source, Path, Path, int], Encoded | None]) -> Method:
    def method(case: Case, ratio: float) -> Encoded | None:
        data = case.run.data
        if data is None or not (data / "images.npz").exists():
            return None
        return peer(case.source, case.run.folder, data, case.budget(ratio))

    return method


CODECS: dict[str, Method] = {
    "transform": _codec("transform"),
    "transform, fast": _codec("transform", preset="fast"),
    "transform, linear": _codec("transform", preset="linear"),
    "autoencoder": _codec("autoencoder"),
    "krnet": _codec("krnet"),
    "PQ": _codec("pq"),
    "OPQ": _codec("pq", settings={"opq": True}),
}
PEERS: dict[str, Method] = {
    "KLT + DCT": _peer(klt_dct),
    "PCA": _peer(pca),
    "SZ3": _peer(sz3),
    "ZFP": _peer(zfp),
    "CompressAI, factorised prior": _learned(factorised),
    "CompressAI, hyperprior": _learned(hyperprior),
}
IMAGES: dict[str, Method] = {"WebP, recomputed": _image(webp), "JPEG, recomputed": _image(jpeg)}
