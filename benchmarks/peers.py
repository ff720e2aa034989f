"""What people compress feature maps with otherwise, each tuned to a byte budget as its users would.

A peer takes features (N, *shape) and a budget in bytes, and returns what it decodes to and the bytes that this took:
everything that decoding needs beside the library, but no container, header or checksum, which krstore's files pay for.
Where a peer has an entropy coder, the ideal one is counted.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import scipy.fft
import zstandard
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from benchmarks.case import Encoded
from krstore.entropy import entropy_bytes
from krstore.source import Array, default_channel_axis, from_channels_first, to_channels_first

__all__ = ["integers", "klt_dct", "like", "pca", "sz3", "zfp"]

PROBE = 1000  # samples on which a parameter is searched
TRIES = 12
CHUNK_BYTES = 1 << 20
CLOSE = 0.99  # share of a budget at which a search ends
COMPONENTS = (8, 16, 32, 64, 128, 256, 512, 1024)

Floats = NDArray[np.float32]


def filtered(features: Array, budget: int, name: str, options: Callable[[float], Any]) -> Encoded | None:
    """An error-bounded compressor behind an HDF5 filter, at the smallest bound that meets the budget."""
    values = features.astype(np.float32)
    together = min(len(values), max(64, CHUNK_BYTES // max(1, values[0].nbytes)))

    def stored(data: Floats, bound: float) -> tuple[int, bytes]:
        memory = io.BytesIO()
        with h5py.File(memory, "w") as file:
            chunks = (min(together, len(data)), *data.shape[1:])
            dataset = file.create_dataset("x", data=data, chunks=chunks, **options(bound))
            size = int(dataset.id.get_storage_size())
        return size, memory.getvalue()

    probe, spread = values[: max(PROBE, together)], float(values.std()) or 1.0
    share = len(probe) / len(values)
    bound = _search(lambda bound: stored(probe, bound)[0] > budget * share, 1e-4 * spread, 100 * spread)
    best: Encoded | None = None
    for _ in range(8):
        size, data = stored(values, bound)
        if size <= budget:
            best = Encoded(size, f"{name} {bound:.4g}", functools.partial(_unpacked, data, features))
            if size > CLOSE * budget:
                break
        bound *= (size / budget) ** 0.5 * (1.0 if size <= budget else 1.003)
    return best


def sz3(features: Array, budget: int) -> Encoded | None:
    """SZ3, absolute error bound."""
    return filtered(features, budget, "absolute", lambda bound: dict(hdf5plugin.SZ3(absolute=bound)))


def zfp(features: Array, budget: int) -> Encoded | None:
    """ZFP, fixed accuracy."""
    return filtered(features, budget, "accuracy", lambda bound: dict(hdf5plugin.Zfp(accuracy=bound)))


def klt_dct(features: Array, budget: int) -> Encoded | None:
    """KLT over channels, DCT over positions, uniform quantiser, ideal order-0 entropy of coefficients by spread.

    About the channels' means or the mean sample, 16 bits a number: whichever has less error.
    """
    found = [made for by in (False, True) if (made := _klt_dct(features, budget, by_position=by)) is not None]
    return min(found, key=lambda made: float(np.square(made.decode() - features, dtype=np.float64).sum()), default=None)


def _klt_dct(features: Array, budget: int, *, by_position: bool) -> Encoded | None:
    axis = default_channel_axis(features.ndim - 1)
    channels = to_channels_first(features, axis).astype(np.float32)
    mean = channels.mean(axis=0 if by_position else (0, 2), keepdims=True)
    flat = (channels - mean).transpose(0, 2, 1).reshape(-1, channels.shape[1])
    basis = np.linalg.eigh(flat.T @ flat / len(flat))[1][:, ::-1].T.astype(np.float16).astype(np.float32)
    rest = tuple(n for i, n in enumerate(features.shape[1:]) if i != axis)
    grid = np.einsum("kc,ncp->nkp", basis, channels - mean).reshape(len(features), len(basis), *rest)
    axes = tuple(range(2, grid.ndim))
    rows = (scipy.fft.dctn(grid, axes=axes, norm="ortho") if axes else grid).reshape(len(features), -1)
    fixed = 2 * basis.size + 2 * mean.size
    found = _quantise(rows, budget - fixed)
    if found is None:
        return None
    size, step = found

    def decode() -> Array:
        spectrum = (np.rint(rows / step) * step).reshape(grid.shape)
        back = scipy.fft.idctn(spectrum, axes=axes, norm="ortho") if axes else spectrum
        mixed = np.einsum("kc,nkp->ncp", basis, back.reshape(len(features), len(basis), -1)) + mean
        return like(from_channels_first(mixed, features.shape[1:], axis), features)

    about = "mean sample" if by_position else "channels' means"
    return Encoded(size + fixed, f"step {step:.4g}, about the {about}", decode)


def pca(features: Array, budget: int) -> Encoded | None:
    """Principal components of whole samples, 8 bits an entry; scores quantised, ideal order-0 entropy by spread."""
    flat = features.reshape(len(features), -1).astype(np.float32)
    most = min(max(COMPONENTS), *flat.shape)
    fitted = PCA(most, svd_solver="randomized", random_state=0).fit(
        flat[np.random.default_rng(0).permutation(len(flat))[:4000]]
    )
    scale = np.abs(fitted.components_).max(axis=1, keepdims=True) / 127
    basis = (np.rint(fitted.components_ / scale) * scale).astype(np.float32)
    scores = (flat - fitted.mean_) @ basis.T
    best: tuple[float, int, int, float] | None = None
    for count in (c for c in COMPONENTS if c <= most):
        fixed = count * (flat.shape[1] + 4) + 2 * flat.shape[1]
        found = _quantise(scores[:, :count], budget - fixed)
        if found is not None:
            back = np.rint(scores[:PROBE, :count] / found[1]) * found[1] @ basis[:count] + fitted.mean_
            error = float(np.square(back - flat[:PROBE]).sum())
            best = min(best or (math.inf, 0, 0, 0.0), (error, count, fixed + found[0], found[1]))
    if best is None:
        return None
    _, count, size, step = best

    def decode() -> Array:
        back = np.rint(scores[:, :count] / step) * step @ basis[:count] + fitted.mean_
        return like(back.reshape(features.shape), features)

    return Encoded(size, f"{count} components, step {step:.4g}", decode)


def integers(features: Array, bits: int) -> Encoded:
    """Uniform integers of so many bits between each channel's extremes, through zstd 19."""
    axis = default_channel_axis(features.ndim - 1)
    channels = to_channels_first(features, axis).astype(np.float32)
    low, high = channels.min(axis=(0, 2), keepdims=True), channels.max(axis=(0, 2), keepdims=True)
    step = np.where(high > low, (high - low) / (2**bits - 1), 1).astype(np.float32)
    codes = np.rint((channels - low) / step).astype(np.uint8)
    data = zstandard.ZstdCompressor(level=19).compress(codes.tobytes())

    def decode() -> Array:
        octets = np.frombuffer(zstandard.decompress(data), np.uint8).reshape(codes.shape)
        return like(from_channels_first(octets * step + low, features.shape[1:], axis), features)

    return Encoded(len(data) + 8 * low.size, f"{bits} bits", decode)


def _search(too_large: Callable[[float], bool], low: float, high: float) -> float:
    for _ in range(TRIES):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if too_large(middle) else (low, middle)
    return high


def _quantise(rows: Floats, budget: float) -> tuple[int, float] | None:
    """Return (bytes, step) of the finest uniform quantiser that meets the budget; `None` where none does."""
    largest = float(np.abs(rows).max(initial=0)) or 1.0
    probe = rows[np.random.default_rng(0).permutation(len(rows))[:PROBE]]
    step = _search(lambda step: _coded(probe, step) * len(rows) / len(probe) > budget, 1e-5 * largest, 2.5 * largest)
    best: tuple[int, float] | None = None
    for _ in range(8 if budget > 0 else 0):
        size = math.ceil(_coded(rows, step))
        if size <= budget:
            best = size, step
            if size > CLOSE * budget:
                break
        step *= (max(size, 1) / max(budget, 1)) ** 0.7 * (1.0 if size <= budget else 1.003)
    return best


def _coded(rows: Floats, step: float) -> float:
    """The ideal bytes of the integers, columns of like spread (a quarter octave) sharing a histogram."""
    codes = np.rint(rows / np.float32(step)).astype(np.int32)
    codes = codes[:, codes.any(axis=0)]
    classes = np.round(4 * np.log2(np.maximum(codes.std(axis=0), 1e-3)))
    histograms = (np.unique(codes[:, classes == k], return_counts=True)[1] for k in np.unique(classes))
    return sum(entropy_bytes(counts) + 3 * len(counts) for counts in histograms) + 0.5 * rows.shape[1]


def _unpacked(data: bytes, features: Array) -> Array:
    with h5py.File(io.BytesIO(data)) as file:
        return like(np.asarray(file["x"][:]), features)


def like(values: Array, features: Array) -> Array:
    """Return decoded values in the features' range and element type."""
    if features.dtype == np.uint8:
        return np.rint(values).clip(0, 255).astype(np.uint8)
    return values.clip(features.min(), features.max()).astype(features.dtype)
