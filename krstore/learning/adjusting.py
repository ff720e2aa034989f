"""Old exemplars, trained against each other as what they stand for is gone (mnemonics paper, Sec. 4.3, Eq. 10)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from krstore.bilevel import Units, as_stored, train_exemplars
from krstore.learning.config import Adjusting
from krstore.memory.samples import MemorySamples
from krstore.source import Array, class_indices
from krstore.tensors import as_tensor

__all__ = ["adjusted"]


def adjusted(samples: MemorySamples, network: nn.Module, config: Adjusting, device: str) -> Array:
    """Return exemplars (N, *shape), in their dtype, after each half has been trained against the other.

    Halves are every second exemplar of each class. Both are trained from what they were, and the other was, before.

    Args:
        network: maps stored samples to scores, frozen.
    """
    values = samples.read(np.arange(len(samples)))
    stored, labels = as_tensor(values).float().to(device), torch.from_numpy(samples.labels).to(device)
    half = np.zeros(len(samples), bool)
    for rows in class_indices(samples.labels).values():
        half[rows[1::2]] = True
    units, trained = Units.of(samples.spec, stored), stored.clone()
    for chosen in (half, ~half):
        own, other = torch.from_numpy(chosen).to(device), torch.from_numpy(~chosen).to(device)
        if own.any() and other.any():
            trained[own] = train_exemplars(
                network, stored[own], labels[own], _epochs(stored[other], labels[other], config), units,
                steps=config.steps, inner_rate=config.inner_rate,
            )  # fmt: skip
    return as_stored(trained, values.dtype)


def _epochs(x: Tensor, y: Tensor, config: Adjusting) -> Iterator[tuple[Tensor, Tensor, float]]:
    for epoch in range(config.epochs):
        yield x, y, config.rate * 0.5 ** (epoch // config.halve)
