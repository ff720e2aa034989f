"""Replay: a store as the source of (feature, label) batches in a PyTorch training loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from krstore.errors import UsageError

if TYPE_CHECKING:
    from krstore.store.reader import Store

__all__ = ["Replay"]


class Replay(Dataset[tuple[Tensor, Tensor]]):
    """Batches of decoded samples with their labels.

    Iterating yields one epoch of batches ``(x (B, *shape), y (B,))``, each sample once; the next iteration is the
    next epoch, shuffled anew. It is a map-style dataset too: ``replay[i]`` is one pair ``(x, y)``, ``len(replay)``
    the number of samples, and a `DataLoader` fetches whole batches at once (``__getitems__``), also in workers.

    Args:
        store: the store to replay.
        batch_size: B; the last batch of an epoch may be smaller.
        device: where batches go; default where the store decodes.
        shuffle: replay in random order.
        seed: of that order: the same seed gives the same batches, epoch by epoch.
        classes: replay only samples of these labels.
        drop_last: leave out a smaller last batch.
        dtype: of the features; `None` keeps the store's.

    Raises:
        UsageError: the store has no labels, a class is not in it, or `batch_size` is not positive.
    """

    def __init__(
        self,
        store: Store,
        *,
        batch_size: int = 128,
        device: str | torch.device | None = None,
        shuffle: bool = True,
        seed: int = 0,
        classes: Sequence[int] | None = None,
        drop_last: bool = False,
        dtype: torch.dtype | None = torch.float32,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size} is not positive")
        if store.labels is None:
            raise UsageError(f"{store.path} has no labels to replay; use store.read(ids) for its features alone")
        self.store, self.batch_size, self.device, self.dtype = store, batch_size, device, dtype
        self.shuffle, self.seed, self.drop_last = shuffle, seed, drop_last
        self.epoch = 0
        self._labels = torch.from_numpy(store.labels)
        self._rows = np.arange(len(store))
        if classes is not None:
            missing = sorted(set(classes) - set(np.unique(store.labels).tolist()))
            if missing:
                raise UsageError(
                    f"class {missing[0]} is not in {store.path}; it has {np.unique(store.labels).tolist()}"
                )
            self._rows = np.flatnonzero(np.isin(store.labels, list(classes)))

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def batches(self) -> int:
        """How many batches an epoch has."""
        full, rest = divmod(len(self), self.batch_size)
        return full + bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = np.arange(len(self))
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        self.epoch += 1
        for number in range(self.batches):
            yield self._batch(order[number * self.batch_size : (number + 1) * self.batch_size])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        features, labels = self._batch(np.array([index]))
        return features[0], labels[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        features, labels = self._batch(np.asarray(indices))
        return list(zip(features, labels, strict=True))

    def _batch(self, indices: Any) -> tuple[Tensor, Tensor]:
        rows = self._rows[indices]
        features = self.store.decode_tensor(rows)
        device = self.device if self.device is not None else features.device
        return features.to(device, self.dtype or features.dtype), self._labels[torch.from_numpy(rows)].to(device)
