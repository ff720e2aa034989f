"""Principal components of feature grids, where the fits of residual networks begin.

The channels go through the leading components of their covariance, and what is left through the leading components
over channels and positions together, which is affordable because the first step leaves fewer channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from krstore.source import Source
from krstore_codecs._normalise import Normaliser

__all__ = ["Components", "principal_components"]

MOST_SAMPLES, MOST_BYTES, MOST_COMPONENTS = 4096, 128 << 20, 2048


@dataclass(frozen=True)
class Components:
    """Principal components of grids (n, C, H, W).

    Attributes:
        mean: of each channel (C,).
        channels: the channels' leading components (c0, C), orthonormal.
        centre: mean of the grids after them, flattened (D,), D = c0 H W.
        directions: leading components there (k, D), orthonormal.
        spread: standard deviation along each direction (k,).
    """

    mean: Tensor
    channels: Tensor
    centre: Tensor
    directions: Tensor
    spread: Tensor


def principal_components(source: Source, normaliser: Normaliser, c0: int, count: int, seed: int) -> Components | None:
    """Return up to `count` components of random samples of a source, as many samples as make sense and fit.

    Args:
        c0: channels to keep.
        seed: of the choice and of the randomised decomposition.

    Returns:
        The components, fewer than `count` where there are no more; `None` where there is nothing to decompose:
        c0 exceeds the channels, or the samples do not differ.
    """
    spec, (channels, height, columns) = source.spec, normaliser.grid
    size = min(spec.samples, MOST_SAMPLES, max(1, MOST_BYTES // (4 * spec.elements)))
    count = min(count, size, c0 * height * columns, MOST_COMPONENTS)
    if c0 > channels or size < 2:
        return None
    picked = np.sort(np.random.default_rng(seed).permutation(spec.samples)[:size])
    grids = normaliser.scale(normaliser.to_grid(source.read(picked)))
    vectors = grids.movedim(1, -1).reshape(-1, channels).double()
    mean = vectors.mean(0)
    covariance = torch.cov(vectors.T, correction=0).reshape(channels, channels)
    basis = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :c0].T.float()
    reduced = torch.einsum("kc,nchw->nkhw", basis, grids - mean.float().view(1, -1, 1, 1)).flatten(1)
    if float(reduced.std()) < 1e-6:
        return None
    pca = PCA(count, svd_solver="randomized", iterated_power=2, random_state=seed).fit(reduced.numpy())
    spread = np.sqrt(np.maximum(pca.explained_variance_, 1e-12))
    return Components(mean.float(), basis, *(torch.from_numpy(v).float() for v in (pca.mean_, pca.components_, spread)))
