"""Batches of decoded samples with their labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from krstore.distributed import processes
from krstore.errors import UsageError
from krstore.replay.order import Order
from krstore.replay.prefetch import ahead
from krstore.source import Ids

__all__ = ["CACHE_BYTES", "MixedBatch", "Replay", "Replayable"]

CACHE_BYTES = 256 << 20

Batch = tuple[Tensor, Tensor]


class MixedBatch(NamedTuple):
    """New samples with old ones behind them.

    Attributes:
        x: features (B, *shape).
        y: labels (B,).
        replayed: which of them are old (B,), bool.
    """

    x: Tensor
    y: Tensor
    replayed: Tensor


class _Place(NamedTuple):
    """How far a replay has come: samples of an epoch."""

    epoch: int
    offset: int


class Replayable(Protocol):
    """What can be replayed: a `krstore.Store`, or the samples of a `krstore.Memory`."""

    path: Path

    @property
    def labels(self) -> Ids | None:
        """Class labels (N,)."""

    @property
    def store_of(self) -> Ids | None:
        """The number of each sample's store (N,); `None` where all are of one."""

    def __len__(self) -> int: ...

    def decode_tensor(self, rows: Ids) -> Tensor:
        """Return samples (len(rows), *shape) on the device where they are decoded."""

    def cache(self, limit: int) -> None:
        """Keep up to `limit` bytes of what has been read and entropy-decoded."""


class Replay(Dataset[Batch]):
    """Batches of decoded samples with their labels.

    Iterating yields one epoch of batches ``(x (B, *shape), y (B,))``, decoded in a thread while the last one is in use;
    the next iteration is the next epoch, in another order. `forever` goes on without end, and `take` gives any number
    of samples of the same endless sequence. It is a map-style dataset too: ``replay[i]`` is one pair ``(x, y)``,
    ``len(replay)`` the number of samples, and a `DataLoader` fetches whole batches at once (``__getitems__``), also in
    workers.

    Args:
        samples: what to replay.
        batch_size: B; the last batch of an epoch may be smaller.
        device: where batches go; default where the samples are decoded.
        shuffle: replay in random order.
        seed: of that order: the same seed gives the same batches, epoch by epoch.
        balance: ``"proportional"`` shows each sample once an epoch; ``"classes"`` and ``"stores"`` let all classes, or
            all stores, take turns equally often, those of few samples beginning anew, in epochs of as many samples.
        classes: replay only samples of these labels.
        drop_last: leave out a smaller last batch.
        dtype: of the features; `None` keeps the store's.
        prefetch: batches that iterating decodes ahead; 0 decodes each when it is asked for.
        cache_bytes: of entropy-decoded integers (or of samples, where a codec has none) that are kept in memory.
        rank, world_size: share each epoch among processes, which get as many samples each; default those of
            `torch.distributed` where it is initialised.

    Raises:
        UsageError: there are no labels, a class is not there, or an argument is out of range.
    """

    def __init__(
        self,
        samples: Replayable,
        *,
        batch_size: int = 128,
        device: str | torch.device | None = None,
        shuffle: bool = True,
        seed: int = 0,
        balance: str = "proportional",
        classes: Sequence[int] | None = None,
        drop_last: bool = False,
        dtype: torch.dtype | None = torch.float32,
        prefetch: int = 2,
        cache_bytes: int = CACHE_BYTES,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("prefetch", prefetch, 0),
            ("cache_bytes", cache_bytes, 0),
        ):
            if value < least:
                raise UsageError(f"{name}={value} is not {'positive' if least else '0 or more'}")
        if samples.labels is None:
            raise UsageError(f"{samples.path} has no labels to replay; use store.read(ids) for its features alone")
        self.samples, self.batch_size, self.device, self.dtype = samples, batch_size, device, dtype
        self.drop_last, self.prefetch = drop_last, prefetch
        self._labels = torch.from_numpy(samples.labels)
        self._rows = _rows_of(samples, classes)
        if not len(self._rows):
            raise UsageError(f"classes={classes}: nothing of {samples.path} is left to replay")
        own, processes = _processes(rank, world_size)
        self.order = Order.of(
            balance, samples.labels[self._rows], None if samples.store_of is None else samples.store_of[self._rows],
            shuffle=shuffle, seed=seed, rank=own, world=processes,
        )  # fmt: skip
        self._place, self._loaded = _Place(0, 0), False
        samples.cache(cache_bytes)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def batches(self) -> int:
        """How many batches an epoch has, in this process."""
        full, rest = divmod(len(self.order), self.batch_size)
        return full + bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        if self._place.offset and not self._loaded:
            self._place = _Place(self._place.epoch + 1, 0)
        self._loaded = False
        for batch, place in ahead(self._epoch(self._place), self.prefetch):
            self._place = place
            yield batch
        if self._place.offset:
            self._place = _Place(self._place.epoch + 1, 0)

    def forever(self) -> Iterator[Batch]:
        """Yield the batches of one epoch after another, without end.

        Raises:
            UsageError: an epoch has no batch.
        """
        if not self.batches:
            raise UsageError(f"{len(self.order)} samples do not fill a batch of {self.batch_size}")
        while True:
            yield from self

    def take(self, count: int) -> Batch:
        """Return the next `count` samples, of this epoch and, when it is through, of those that follow."""
        batch, self._place = self._next(self._place, count)
        return batch

    def mix(self, new: Iterable[Batch], share: float = 0.5) -> Iterator[MixedBatch]:
        """Yield each batch of a new task with replayed samples added, so many that they are `share` of the whole.

        They are taken one after another, epoch by epoch, decoded ahead, and brought to the new ones' device and dtype.

        Args:
            new: batches (x, y) of the new task, of a `DataLoader` for example.
            share: of the samples of a mixed batch, from 0 to below 1.

        Raises:
            UsageError: a share out of range.
        """
        if not 0 <= share < 1:
            raise UsageError(f"share={share} is not in 0..1, 1 left out")
        for batch, place in ahead(self._mixed(new, share / (1 - share), self._place), self.prefetch):
            self._place = place
            yield batch

    def read(self, indices: Sequence[int] | Ids) -> Batch:
        """Return samples of these indices, of those that this replays, as a batch.

        Raises:
            IndexError: out of range.
        """
        rows = self._rows[np.asarray(indices, np.int64)]
        features = self.samples.decode_tensor(rows)
        device = self.device if self.device is not None else features.device
        return features.to(device, self.dtype or features.dtype), self._labels[torch.from_numpy(rows)].to(device)

    def state_dict(self) -> dict[str, int]:
        """Return how far the replay has come; batches that were decoded ahead and not yet taken do not count."""
        return self._place._asdict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where a replay of the same samples and arguments was, in the middle of an epoch too."""
        self._place, self._loaded = _Place(int(state["epoch"]), int(state["offset"])), True

    def __getitem__(self, index: int) -> Batch:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        features, labels = self.read([index])
        return features[0], labels[0]

    def __getitems__(self, indices: list[int]) -> list[Batch]:
        features, labels = self.read(indices)
        return list(zip(features, labels, strict=True))

    def _epoch(self, place: _Place) -> Iterator[tuple[Batch, _Place]]:
        """Yield the batches of what is left of an epoch, each with the place behind it."""
        order = self.order.epoch(place.epoch)
        last = len(order) // self.batch_size * self.batch_size if self.drop_last else len(order)
        for start in range(place.offset, last, self.batch_size):
            stop = min(start + self.batch_size, last)
            yield self.read(order[start:stop]), _Place(place.epoch, stop)

    def _mixed(self, new: Iterable[Batch], ratio: float, place: _Place) -> Iterator[tuple[MixedBatch, _Place]]:
        owed = 0.0  # samples and what rounding has left of one
        for x, y in new:
            owed += len(x) * ratio
            count = math.floor(owed + 0.5)
            owed -= count
            (old_x, old_y), place = self._next(place, count)
            replayed = torch.arange(len(x) + count, device=x.device) >= len(x)
            both = torch.cat([x, old_x.to(x.device, x.dtype)]), torch.cat([y, old_y.to(y.device, y.dtype)])
            yield MixedBatch(*both, replayed), place

    def _next(self, place: _Place, count: int) -> tuple[Batch, _Place]:
        pieces = [np.empty(0, np.int64)]
        while count > 0:
            pieces.append(self.order.epoch(place.epoch)[place.offset : place.offset + count])
            count -= len(pieces[-1])
            through = place.offset + len(pieces[-1]) == len(self.order)
            place = _Place(place.epoch + 1, 0) if through else _Place(place.epoch, place.offset + len(pieces[-1]))
        return self.read(np.concatenate(pieces)), place


def _rows_of(samples: Replayable, classes: Sequence[int] | None) -> Ids:
    labels = samples.labels
    assert labels is not None
    if classes is None:
        return np.arange(len(samples))
    known = np.unique(labels).tolist()
    missing = sorted(set(classes) - set(known))
    if missing:
        raise UsageError(f"class {missing[0]} is not in {samples.path}; it has {known}")
    return np.flatnonzero(np.isin(labels, list(classes)))


def _processes(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return this process' rank and the number of processes."""
    if (rank is None) != (world_size is None):
        raise UsageError("give rank and world_size together, or neither")
    if rank is not None and world_size is not None:
        return rank, world_size
    return processes()
