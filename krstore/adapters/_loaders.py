"""A new task's `DataLoader` as it should be beside replayed samples: for each process its share, through the codec."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, SequentialSampler

from krstore.datasets import DatasetSource
from krstore.errors import ArchiveError, UsageError
from krstore.memory.alike import encode_alike
from krstore.memory.samples import MemorySamples
from krstore.progress import Progress
from krstore.replay import Replay
from krstore.store.reader import Store

__all__ = ["last_lossy", "passed", "shared", "sharper"]

KEPT = (
    "collate_fn", "generator", "multiprocessing_context", "num_workers", "persistent_workers", "pin_memory",
    "prefetch_factor", "timeout", "worker_init_fn",
)  # fmt: skip
CURE = (
    "its dataset has to give samples as they are stored, the same each time, and what is random to be the replay's "
    "transform; or give a replay of a store of them, or turn through_codec off"
)


def sharper(new: DataLoader[Any] | Replay, replay: Replay) -> bool:
    """Whether new samples are as they were, and replayed ones are not."""
    data = new.dataset if isinstance(new, DataLoader) else new
    return not replay.samples.exact and not (isinstance(data, Replay) and not data.samples.exact)


def last_lossy(replay: Replay) -> Store | None:
    """Return the last store of a replay whose samples do not decode to what they were."""
    stores = replay.samples.stores if isinstance(replay.samples, MemorySamples) else [replay.samples]
    return next((store for store in reversed(stores) if isinstance(store, Store) and not store.exact), None)


def passed(loader: DataLoader[Any], replay: Replay, output: Path, progress: Progress) -> DataLoader[Any]:
    """Return a loader of the same samples in the same order, as the codec of a replay's last lossy store gives them.

    They are in the replay's dtype and behind its transform, on the CPU.

    Args:
        output: the store that they are in, new.
        progress: shows how far encoding has come.

    Raises:
        UsageError: they are not as they are stored, or the replay has no such store.
        KrstoreError: as `krstore.encode`.
    """
    last = last_lossy(replay)
    if last is None:
        raise UsageError(f"{replay.samples.path} has no lossy store")
    stored = last.source
    try:
        source = DatasetSource(
            loader.dataset, dtype=stored.dtype, channel_axis=stored.channel_axis, attributes=stored.attributes
        )
        if source.spec.shape != stored.shape:
            raise UsageError(f"its samples are {source.spec.shape}, the replay's are stored as {stored.shape}")
    except (ArchiveError, UsageError) as error:
        raise UsageError(f"the new task cannot pass through the replay's codec: {error}; {CURE}") from error
    store = encode_alike(last, source, output, device=last.device, progress=progress)
    again = store.replay(device="cpu", dtype=replay.dtype, transform=replay.transform, cache_bytes=replay.cache_bytes)
    return _loader(loader, again, loader.sampler)


def shared(loader: DataLoader[Any], rank: int, world: int) -> DataLoader[Any]:
    """Return a loader of one process' share of the samples.

    Raises:
        UsageError: its sampler is of its own kind.
    """
    if world == 1 or isinstance(loader.sampler, DistributedSampler):
        return loader
    if loader.batch_size is None or not isinstance(loader.sampler, (RandomSampler, SequentialSampler)):
        raise UsageError(
            f"{world} processes: the new task's loader has a sampler of its own; give it one that takes a share for "
            "each process, as torch.utils.data.DistributedSampler does"
        )
    sampler = DistributedSampler[Any](
        loader.dataset, world, rank, shuffle=isinstance(loader.sampler, RandomSampler),
        seed=int(os.environ.get("PL_GLOBAL_SEED", "0")),
    )  # fmt: skip
    return _loader(loader, loader.dataset, sampler)


def _loader(loader: DataLoader[Any], dataset: Any, sampler: Any) -> DataLoader[Any]:
    """Return a loader as another one is, of a dataset by a sampler."""
    options = {name: getattr(loader, name) for name in KEPT}
    if loader.batch_size is None and loader.batch_sampler is not None:
        return DataLoader(dataset, batch_sampler=loader.batch_sampler, **options)
    return DataLoader(dataset, loader.batch_size, sampler=sampler, drop_last=loader.drop_last, **options)
