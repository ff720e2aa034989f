"""Batches of decoded samples with their labels."""

from __future__ import annotations

import copy
import math
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from krstore.distributed import processes
from krstore.errors import UsageError
from krstore.replay.course import Course, Place
from krstore.replay.mixing import Batch, MixedBatch, mixed
from krstore.replay.order import Order
from krstore.replay.prefetch import ahead
from krstore.replay.sampler import Positions, ReplaySampler
from krstore.source import Ids

__all__ = ["CACHE_BYTES", "Replay", "Replayable"]

CACHE_BYTES = 256 << 20


class Replayable(Protocol):
    """What can be replayed: a `krstore.Store`, or the samples of a `krstore.Memory`."""

    path: Path

    @property
    def exact(self) -> bool:
        """Whether samples decode to what was encoded."""

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
        """Keep up to `limit` bytes of what has been read and entropy-decoded, also of what is kept already."""


class Replay(Dataset[Batch]):
    """Batches of decoded samples with their labels.

    Iterating yields one epoch of batches ``(x (B, *shape), y (B,))``, decoded in a thread while the last one is in use;
    the next iteration is the next epoch, in another order. `forever` goes on without end, and `take` gives any number
    of samples of the same endless sequence.

    It is a map-style dataset too: ``replay[i]`` is one pair ``(x, y)``, ``len(replay)`` the number of samples, and a
    `DataLoader` fetches whole batches at once (``__getitems__``), also in workers. Which batches these are is the
    loader's to say: ``DataLoader(replay, batch_sampler=replay.sampler())`` has those of iterating.

    Args:
        samples: what to replay.
        batch_size: B; the last batch of an epoch may be smaller.
        device: where batches go; default where the samples are decoded. Workers of a `DataLoader` decode on the CPU,
            and leave them there.
        shuffle: replay in random order.
        seed: of that order: the same seed gives the same batches, epoch by epoch.
        balance: ``"proportional"`` shows each sample once an epoch; ``"classes"`` and ``"stores"`` let all classes, or
            all stores, take turns equally often, those of few samples beginning anew, in epochs of as many samples.
        classes: replay only samples of these labels.
        drop_last: leave out a smaller last batch.
        dtype: of the features; `None` keeps the store's.
        transform: what becomes of the features (n, *shape) of n samples, on their device and in that dtype; for images
            of bytes ``lambda x: x / 255``. It is called where batches are asked for, so that one that augments at
            random draws the same numbers each time. `None` leaves them.
        prefetch: batches that iterating decodes ahead; 0 decodes each when it is asked for.
        cache_bytes: of entropy-decoded integers (or of samples, where a codec has none) that are kept in memory, by
            each process: of the first samples of each store, as many as its share holds. All replays of an open store
            share one cache, of the size that was asked for last; 0 asks for none.
        rank, world_size: share each epoch among processes, which get as many samples each; default those of
            `torch.distributed` where it is initialised by the time that batches are asked for.

    Raises:
        UsageError: there are no labels, a class is not there, or an argument is out of range.

    Attributes:
        rows: which of the samples are replayed (N,).
    """

    _sampled = False

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
        transform: Callable[[Tensor], Tensor] | None = None,
        prefetch: int = 2,
        cache_bytes: int = CACHE_BYTES,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("prefetch", prefetch, 0),
            ("cache_bytes", cache_bytes, 0),
        ):
            if value < least:
                raise UsageError(f"{name}={value} is not {'positive' if least else '0 or more'}")
        if samples.labels is None:
            raise UsageError(f"{samples.path} has no labels to replay; use store.read(ids) for its features alone")
        self.samples, self.batch_size, self.device, self.dtype = samples, batch_size, device, dtype
        self.drop_last, self.prefetch, self.transform, self.cache_bytes = drop_last, prefetch, transform, cache_bytes
        self._labels = torch.from_numpy(samples.labels)
        self.rows = _rows_of(samples, classes)
        if not len(self.rows):
            raise UsageError(f"classes={classes}: nothing of {samples.path} is left to replay")
        if (rank is None) != (world_size is None):
            raise UsageError("give rank and world_size together, or neither")
        process = None if rank is None or world_size is None else (rank, world_size)
        own, world = process or processes()
        order = Order.of(
            balance, samples.labels[self.rows], None if samples.store_of is None else samples.store_of[self.rows],
            shuffle=shuffle, seed=seed, rank=own, world=world,
        )  # fmt: skip
        self._course, self._balanced = Course(order, process), order.groups is not None
        self._place, self._loaded = Place(0, 0), False
        self._told = {
            "samples": len(self.rows),
            "crc32": zlib.crc32(samples.labels[self.rows].tobytes(), zlib.crc32(self.rows.tobytes())),
            "seed": seed, "balance": balance, "shuffle": shuffle,
        }  # fmt: skip
        self._cache()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._cache()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def order(self) -> Order:
        """The order of each epoch, in this process."""
        return self._course.order

    @property
    def batches(self) -> int:
        """How many batches an epoch has, in this process."""
        return self._course.batches(self.batch_size, drop_last=self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        if self._place.offset and not self._loaded:
            self._place = self._place._replace(epoch=self._place.epoch + 1, offset=0)
        self._loaded = False
        for batch, place in ahead(self._epoch(self._place), self.prefetch):
            self._place = place
            yield self._transformed(batch)
        if self._place.offset:
            self._place = self._place._replace(epoch=self._place.epoch + 1, offset=0)

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
        """Return the next `count` samples, of this epoch and, when it is through, of those that follow.

        Raises:
            UsageError: a negative count.
        """
        if count < 0:
            raise UsageError(f"count={count} is negative")
        positions = self._course.after(self._place, count)
        self._place, self._loaded = self._course.behind(self._place, count), False
        return self.read(positions)

    def mix(self, new: Iterable[Batch], share: float = 0.5) -> Iterator[MixedBatch]:
        """Yield each batch of a new task with replayed samples added, so many that they are `share` of the whole.

        They are taken one after another, epoch by epoch, decoded ahead in batches of `batch_size`, transformed, and
        brought to the new ones' device and dtype. New ones are left as they are: what `transform` does to old ones,
        their loader does to them. A batch of the new task is drawn when it is asked for. Nothing else should be taken
        from the replay meanwhile: the mix goes on where its last batch has left off.

        Args:
            new: batches (x, y) of the new task, of a `DataLoader` for example.
            share: of the samples of a mixed batch, from 0 to below 1.

        Raises:
            UsageError: a share out of range, or the new task has other batches, or samples of another shape.
        """
        if not 0 <= share < 1:
            raise UsageError(f"share={share} is not in 0..1, 1 left out")
        return self._mixed(new, share / (1 - share))

    def over(self, samples: Replayable) -> Replay:
        """Return this replay, where it is, over others in the samples' places, with the same labels.

        Raises:
            UsageError: their labels are other ones.
        """
        if samples.labels is None or not np.array_equal(samples.labels, self._labels.numpy()):
            raise UsageError(f"{samples.path} has other labels than {self.samples.path}")
        replay = copy.copy(self)
        replay.samples = samples
        replay._cache()
        return replay

    def sampler(self) -> ReplaySampler:
        """Return the batches of iterating, for the workers of a `DataLoader` to decode; see `ReplaySampler`."""
        self._sampled = True
        return ReplaySampler(self._course, self.batch_size, drop_last=self.drop_last)

    def read(self, indices: Sequence[int] | Ids) -> Batch:
        """Return samples of these indices, of those that this replays, as a batch.

        Raises:
            IndexError: out of range.
        """
        return self._transformed(self._decode(np.asarray(indices, np.int64)))

    def state_dict(self) -> dict[str, Any]:
        """Return how far the replay has come; batches that were decoded ahead and not yet taken do not count.

        Nor do those that a `DataLoader` has fetched, of which there is a warning.
        """
        if self._sampled and self._place == Place(0, 0):
            warnings.warn(
                "a replay does not know how far a DataLoader has come with its sampler; keep epoch and batch yourself, "
                "and go on with sampler.set_epoch(epoch, batch)",
                stacklevel=2,
            )
        return self._place._asdict() | self._identity()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a replay of the same samples and arguments was, in the middle of an epoch too.

        Raises:
            UsageError: it was of other samples, or in another order, or is no such state.
        """
        if not {"epoch", "offset"} <= state.keys() or min(state["epoch"], state["offset"]) < 0:
            raise UsageError(f"{dict(state)} is no state of a replay")
        for name, value in self._identity().items():
            if state.get(name, value) != value:
                raise UsageError(f"the state is of a replay of {name}={state[name]}; this one has {name}={value}")
        place = Place(int(state["epoch"]), int(state["offset"]), float(state.get("owed", 0)))
        self._place, self._loaded = place, True

    def skip_ended(self) -> None:
        """Go on with the next epoch where nothing is left of this one; iterating would have no batch otherwise."""
        if self._place.offset >= min(len(self.order), self.batches * self.batch_size):
            self._place = self._place._replace(epoch=self._place.epoch + 1, offset=0)

    def __getitem__(self, index: int) -> Batch:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        features, labels = self.read([index])
        return features[0], labels[0]

    def __getitems__(self, indices: list[int]) -> list[Batch]:
        if self._balanced and not isinstance(indices, Positions):
            said = (
                f"balance={self._told['balance']!r} is of iterating; DataLoader(replay, batch_sampler=replay.sampler())"
            )
            if not self._sampled:
                raise UsageError(said)
            warnings.warn(
                f"these batches are not the sampler's as it made them, and may lack the balance: {said}", stacklevel=2
            )
        features, labels = self.read(indices)
        return list(zip(features, labels, strict=True))

    def _decode(self, indices: Ids) -> Batch:
        rows = self.rows[indices]
        features = self.samples.decode_tensor(rows)
        device = features.device if self.device is None or get_worker_info() is not None else self.device
        return features.to(device, self.dtype or features.dtype), self._labels[torch.from_numpy(rows)].to(device)

    def _transformed(self, batch: Batch) -> Batch:
        """Return what becomes of a batch; in the caller, whose random numbers a transform may draw."""
        x, y = batch
        return (x if self.transform is None else self.transform(x)), y

    def _epoch(self, place: Place) -> Iterator[tuple[Batch, Place]]:
        """Yield the batches of what is left of an epoch, each with the place behind it."""
        order = self._course.epoch(place.epoch)
        last = len(order) // self.batch_size * self.batch_size if self.drop_last else len(order)
        for start in range(place.offset, last, self.batch_size):
            stop = min(start + self.batch_size, last)
            yield self._decode(order[start:stop]), place._replace(offset=stop)

    def _identity(self) -> dict[str, Any]:
        """Return what a place is of: samples, their order, and how many processes share them."""
        return {**self._told, "world": self.order.world}

    def _mixed(self, new: Iterable[Batch], ratio: float) -> Iterator[MixedBatch]:
        place = self._place

        def old(count: int) -> Iterator[Batch]:
            return ahead(self._decoded(place), self.prefetch * math.ceil(max(1, count) / self.batch_size))

        for batch, count, owed in mixed(new, old, self._transformed, ratio, place.owed):
            self._place = place = self._course.behind(place, count)._replace(owed=owed)
            self._loaded = False
            yield batch

    def _decoded(self, place: Place) -> Iterator[Batch]:
        """Yield what is replayed from a place on, without end, decoded in an epoch's batches wherever it begins."""
        epoch, offset = place.epoch, place.offset
        while True:
            order = self._course.epoch(epoch)
            for start in range(offset - offset % self.batch_size, len(order), self.batch_size):
                x, y = self._decode(order[start : start + self.batch_size])
                passed = max(0, offset - start)
                yield x[passed:], y[passed:]
            epoch, offset = epoch + 1, 0

    def _cache(self) -> None:
        if self.cache_bytes:
            self.samples.cache(self.cache_bytes)


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
