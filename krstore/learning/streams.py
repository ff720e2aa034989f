"""Where a step's batches come from: the new task's samples, what a memory replays, or both together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from krstore.replay import Replay, Replayable
from krstore.source import Ids, Source, chunks, class_indices
from krstore.tensors import as_tensor

__all__ = ["HELD_BYTES", "Augmentation", "Batch", "Samples", "Stream", "batches_held", "batches_of", "held", "hold_out"]

HELD_BYTES = 1 << 30
CHUNK = 512


class Batch(NamedTuple):
    """What a learner's losses are made of.

    Attributes:
        x: samples as the network takes them (B, *shape).
        y: labels, in the order of learning (B,).
        replayed: which of them are of earlier tasks (B,), bool.
        passed: how much of the epoch lies before it, from 0 for the first batch to 1 for the last.
    """

    x: Tensor
    y: Tensor
    replayed: Tensor
    passed: float = 0.0


class Samples:
    """A source to be replayed; see `krstore.replay.Replayable`."""

    exact = True
    store_of: Ids | None = None

    def __init__(self, source: Source, name: str) -> None:
        self._source, self.path = source, Path(name)
        self.labels = source.labels

    def __len__(self) -> int:
        return self._source.spec.samples

    def decode_tensor(self, rows: Ids) -> Tensor:
        """Return samples (len(rows), *shape)."""
        order = np.argsort(rows, kind="stable")
        return as_tensor(self._source.read(rows[order])[np.argsort(order, kind="stable")])

    def cache(self, limit: int) -> None:
        """A source is read as often as it is asked."""


class _Held:
    """Samples that have been decoded once and are kept as a tensor."""

    def __init__(self, samples: Replayable, values: Tensor) -> None:
        self.path, self.labels, self.store_of, self._values = samples.path, samples.labels, samples.store_of, values
        self.exact = samples.exact

    def __len__(self) -> int:
        return len(self._values)

    def decode_tensor(self, rows: Ids) -> Tensor:
        """Return samples (len(rows), *shape)."""
        return self._values[torch.from_numpy(rows).to(self._values.device)]

    def cache(self, limit: int) -> None:
        """All are kept already."""


def held(samples: Replayable, device: str, limit: int | None = None) -> Replayable:
    """Return samples decoded once and kept on a device, if they take at most `limit` bytes; else as they are.

    By default that is 1 GiB, and on a GPU half of what is free there.
    """
    if not len(samples):
        return samples
    if limit is None:
        on_gpu = device.startswith("cuda")
        limit = torch.cuda.mem_get_info(torch.device(device))[0] // 2 if on_gpu else HELD_BYTES
    first = samples.decode_tensor(np.zeros(1, np.int64))
    if first.nbytes * len(samples) > limit:
        return samples
    values = torch.empty((len(samples), *first.shape[1:]), dtype=first.dtype, device=device)
    for start in range(0, len(samples), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(samples)))
        values[start : start + len(rows)] = samples.decode_tensor(rows)
    return _Held(samples, values)


class _Part:
    """Some samples of another."""

    def __init__(self, samples: Replayable, rows: Ids) -> None:
        assert samples.labels is not None
        self._samples, self._rows, self.path, self.exact = samples, rows, samples.path, samples.exact
        self.labels = samples.labels[rows]
        self.store_of = None if samples.store_of is None else samples.store_of[rows]

    def __len__(self) -> int:
        return len(self._rows)

    def decode_tensor(self, rows: Ids) -> Tensor:
        """Return samples (len(rows), *shape)."""
        return self._samples.decode_tensor(self._rows[rows])

    def cache(self, limit: int) -> None:
        self._samples.cache(limit)


def hold_out(
    parts: Sequence[Replayable], first: int, share: float, seed: int
) -> tuple[list[Replayable], list[Replayable]]:
    """Take random samples out, equally many of each class: a share of those that the smallest old class has.

    One is taken where the share is less, but never the last of a class.

    Args:
        parts: of samples; a class is in one of them.
        first: the first class that is not old.

    Returns:
        what is left of each part, and what was taken from each.
    """
    classes = [class_indices(part.labels) for part in parts]
    counts = {label: len(rows) for own in classes for label, rows in own.items()}
    fewest = min((count for label, count in counts.items() if label < first), default=0)
    each = min(max(1, int(share * fewest)), min(counts.values(), default=0) - 1)
    if each < 1:
        return list(parts), []
    rng, left, taken = np.random.default_rng(seed), [], []
    for part, own in zip(parts, classes, strict=True):
        shuffled = [rng.permutation(rows) for rows in own.values()]
        left.append(_Part(part, np.sort(np.concatenate([rows[each:] for rows in shuffled]))))
        taken.append(_Part(part, np.sort(np.concatenate([rows[:each] for rows in shuffled]))))
    return list(left), list(taken)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training samples (B, C, H, W).

    Attributes:
        flip: mirror half of them left to right.
        crop: shift each by up to so many positions, zeros coming in; 0 for none.
    """

    flip: bool
    crop: int

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return a batch changed."""
        if self.flip:
            mirrored = torch.rand(len(x), generator=generator) < 0.5
            x = torch.where(mirrored.to(x.device).view(-1, 1, 1, 1), x.flip(3), x)
        if self.crop:
            x = self._cropped(x, generator)
        return x

    def _cropped(self, x: Tensor, generator: torch.Generator) -> Tensor:
        height, width = x.shape[2:]
        padded = torch.nn.functional.pad(x, (self.crop,) * 4)
        top, left = torch.randint(0, 2 * self.crop + 1, (2, len(x)), generator=generator).to(x.device)
        rows = top[:, None] + torch.arange(height, device=x.device)
        columns = left[:, None] + torch.arange(width, device=x.device)
        each = torch.arange(len(x), device=x.device)[:, None, None]
        return padded.movedim(1, 3)[each, rows[:, :, None], columns[:, None, :]].movedim(3, 1)


class Stream:
    """The batches of a step's epochs.

    Args:
        samples: what an epoch shows, each once.
        old: samples that are mixed in, all of them once an epoch too; `None` for none.
        first_new: labels below it are of earlier tasks.
        batch_size: of new and old together.
        seed: of the order and of the augmentation.
        prepare: brings stored samples to what the network takes.
        augment: changes them.
        device: where they go.
    """

    def __init__(
        self, samples: Replayable, old: Replayable | None, *, first_new: int, batch_size: int, seed: int,
        prepare: Callable[[Tensor], Tensor], augment: Augmentation, device: str,
    ) -> None:  # fmt: skip
        total = len(samples) + (0 if old is None else len(old))
        own = max(1, round(batch_size * len(samples) / total))
        self._share = 1 - len(samples) / total
        self._new = Replay(samples, batch_size=own, seed=seed, device=device, dtype=None)
        self._old = None if old is None else Replay(old, seed=seed + 1, device=device, dtype=None)
        self._first_new, self._prepare, self._augment = first_new, prepare, augment
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def batches(self) -> int:
        """How many batches an epoch has."""
        return self._new.batches

    def epoch(self) -> Iterator[Batch]:
        """Yield the batches of the next epoch."""
        batches = self._new if self._old is None else self._old.mix(self._new, self._share)
        for number, (x, y, *_) in enumerate(batches):
            passed = min(1.0, number / (self.batches - 1)) if self.batches > 1 else 1.0
            yield Batch(self._augment(self._prepare(x), self._generator), y, y < self._first_new, passed)


def batches_held(
    parts: Sequence[Replayable], prepare: Callable[[Tensor], Tensor], device: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the samples of all parts, as the network takes them, with their labels."""
    for part in parts:
        assert part.labels is not None
        for rows in np.array_split(np.arange(len(part)), max(1, len(part) // CHUNK)):
            yield prepare(part.decode_tensor(rows).to(device)), torch.from_numpy(part.labels[rows]).to(device)


def batches_of(source: Source, prepare: Callable[[Tensor], Tensor], device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all samples in order, as the network takes them, with their labels."""
    assert source.labels is not None
    for ids, values in chunks(source):
        yield prepare(as_tensor(values).to(device)), torch.from_numpy(source.labels[ids]).to(device)
