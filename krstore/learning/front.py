"""The frozen part of a network, and what it makes of samples: the KRNet paper's F1, and the features after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from krstore.errors import UnknownNameError, UsageError
from krstore.learning.data import Dataset
from krstore.learning.learners.base import frozen
from krstore.learning.network import Network
from krstore.source import Array, Ids, Source, default_channel_axis
from krstore.tensors import as_array, as_tensor

__all__ = ["cut", "seen_through"]

BATCH = 256


def cut(network: Network, layer: str) -> nn.Module:
    """Take off a network's body what makes a layer's output, and return that, frozen; the body is what follows.

    Raises:
        UsageError: the body cannot be cut, or not there.
    """
    split = getattr(network.body, "split", None)
    if not callable(split):
        raise UsageError("features=true needs a body that can be cut (split), as those of krstore.backbones")
    try:
        front, network.body = split(layer)
    except (AttributeError, KeyError, ValueError) as error:
        known = [name for name, _ in network.body.named_modules() if name.startswith("layer") and name.count(".") < 2]
        raise UnknownNameError("block to cut after", layer, known) from error
    return frozen(front)


def seen_through(dataset: Dataset, front: nn.Module, prepare: Callable[[Tensor], Tensor], device: str) -> Dataset:
    """Return what a frozen network makes of a data set's samples, computed as it is read."""
    return Dataset(*(_SeenThrough(source, front, prepare, device) for source in (dataset.train, dataset.test)))


class _SeenThrough:
    """A source's samples, as a network gives them on."""

    def __init__(self, source: Source, front: nn.Module, prepare: Callable[[Tensor], Tensor], device: str) -> None:
        self._source, self._front, self._prepare, self._device = source, front, prepare, device
        self.labels, self.task = source.labels, source.task
        shape = self.read(np.zeros(1, np.int64)).shape[1:]
        self.spec = replace(
            source.spec, shape=shape, dtype="float32", channel_axis=default_channel_axis(len(shape)), attributes={}
        )

    def read(self, ids: Ids) -> Array:
        """Return features (len(ids), *shape)."""
        parts = [self._features(ids[start : start + BATCH]) for start in range(0, len(ids), BATCH)]
        return np.concatenate(parts) if parts else np.empty((0, *self.spec.shape), np.float32)

    @torch.inference_mode()
    def _features(self, ids: Ids) -> Array:
        return as_array(self._front(self._prepare(as_tensor(self._source.read(ids)).to(self._device))).float())
