"""The methods that are measured against each other: krstore's codecs, other compressors, and images in their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import krstore
from benchmarks.case import Case, Encoded
from benchmarks.images import jpeg, webp
from benchmarks.learned import factorised, hyperprior
from benchmarks.peers import klt_dct, pca, sz3, zfp
from krstore.errors import TargetUnreachableError
from krstore.source import Array

__all__ = ["CODECS", "IMAGES", "PEERS", "RESTORED", "Method"]

Method = Callable[[Case, float], Encoded | None]
"""Compresses an archive at a ratio; `None` where it cannot be so small, or is not for such archives."""


def _store(codec: str, case: Case, ratio: float, **options: Any) -> Encoded | None:
    if case.run.tiny and codec != "pq":
        options = {"settings": {**options.get("settings", {}), "iterations": 2}}
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


def _recompute(case: Case, ratio: float) -> Encoded | None:
    data = case.run.data
    if data is None or not (data / "images.npz").exists() or "model" not in case.source.spec.attributes:
        return None
    files = {"images": str(data / "images.npz"), "weights": str(data / "weights.safetensors")}
    return _store("recompute", case, ratio, settings=files)


def _peer(peer: Callable[[Array, int], Encoded | None]) -> Method:
    return lambda case, ratio: peer(case.features, case.budget(ratio))


def _within(peer: Callable[[Case, int], Encoded | None]) -> Method:
    return lambda case, ratio: peer(case, case.budget(ratio))


CODECS: dict[str, Method] = {
    "transform": _codec("transform"),
    "transform, fast": _codec("transform", preset="fast"),
    "transform, linear": _codec("transform", preset="linear"),
    "autoencoder": _codec("autoencoder"),
    "krnet": _codec("krnet"),
    "PQ": _codec("pq"),
    "OPQ": _codec("pq", settings={"opq": True}),
    "recompute": _recompute,
}
RESTORED: dict[str, Method] = {"transform, restored": _codec("transform", settings={"restore": True})}
"""Trades error for likeness, and so is judged by accuracy alone."""
PEERS: dict[str, Method] = {
    "KLT + DCT": _peer(klt_dct),
    "PCA": _peer(pca),
    "SZ3": _peer(sz3),
    "ZFP": _peer(zfp),
    "CompressAI, factorised prior": _within(factorised),
    "CompressAI, hyperprior": _within(hyperprior),
}
IMAGES: dict[str, Method] = {"WebP": _within(webp), "JPEG": _within(jpeg)}
