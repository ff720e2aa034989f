"""New samples as they should be beside replayed ones: through the codec as these were, each process its share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, SequentialSampler, Subset, default_collate

from krstore.datasets import DatasetSource
from krstore.errors import ArchiveError, UsageError
from krstore.memory.alike import encode_alike
from krstore.memory.samples import MemorySamples
from krstore.progress import Progress
from krstore.replay import Replay
from krstore.source import SourceSpec
from krstore.store.reader import Store

__all__ = ["lossy", "passed", "shared", "sharper"]

Batches = DataLoader[Any] | Replay

KEPT = (
    "generator", "multiprocessing_context", "num_workers", "persistent_workers", "pin_memory", "prefetch_factor",
    "timeout", "worker_init_fn",
)  # fmt: skip
CURE = (
    "its dataset has to give samples as they are stored, the same each time, and what is random to be the replay's "
    "transform; or give a replay of a store of them, or turn through_codec off"
)


def lossy(replay: Replay) -> list[Store]:
    """Return the stores that a replay shows samples of which do not decode to what they were."""
    samples = replay.samples
    if isinstance(samples, MemorySamples):
        stores = [samples.stores[number] for number in np.unique(samples.store_of[replay.rows])]
    else:
        stores = [samples] if isinstance(samples, Store) else []
    return [store for store in stores if not store.exact]


def sharper(new: Batches, replay: Replay) -> bool:
    """Whether new samples are as they were, and ones that a replay shows are not."""
    data = new.dataset if isinstance(new, DataLoader) else new
    while isinstance(data, Subset):
        data = data.dataset
    return bool(lossy(replay)) and not (isinstance(data, Replay) and not data.samples.exact)


def passed(new: Batches, replay: Replay, output: Path, progress: Progress) -> Batches:
    """Return the same samples in the same order, as the codec of a replay's last lossy store gives them.

    Those of a `DataLoader` are in the replay's dtype and behind its transform, on the CPU.

    Args:
        output: the store that they are in, new.
        progress: shows how far encoding has come.

    Raises:
        UsageError: they are not as they are stored.
        KrstoreError: as `krstore.encode`.
    """
    last = lossy(replay)[-1]
    try:
        source = _source(new, last.source)
        if source.spec.shape != last.source.shape:
            raise UsageError(f"its samples are {source.spec.shape}, the replay's are stored as {last.source.shape}")
        if source.labels is None:
            raise UsageError("its samples have no labels")
        if isinstance(new, DataLoader):
            _check_stacks(new, source)
    except (ArchiveError, UsageError) as error:
        raise UsageError(f"the new task cannot pass through the replay's codec: {error}; {CURE}") from error
    store = encode_alike(last, source, output, device=last.device, progress=progress)
    if isinstance(new, Replay):
        return new.over(store)
    again = store.replay(device="cpu", dtype=replay.dtype, transform=replay.transform, cache_bytes=replay.cache_bytes)
    return _loader(new, again, new.sampler, default_collate)


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
    return _loader(loader, loader.dataset, sampler, loader.collate_fn)


def _source(new: Batches, stored: SourceSpec) -> DatasetSource | MemorySamples:
    if isinstance(new, DataLoader):
        return DatasetSource(
            new.dataset, dtype=stored.dtype, channel_axis=stored.channel_axis, attributes=stored.attributes
        )
    if isinstance(new.samples, Store):
        return MemorySamples(new.samples.path, [new.samples], [()])
    if not isinstance(new.samples, MemorySamples):
        raise UsageError(f"a replay of {type(new.samples).__name__} is of no store")
    return new.samples


def _check_stacks(loader: DataLoader[Any], source: DatasetSource | MemorySamples) -> None:
    """Refuse a loader that does more to a dataset's items than to stack samples and labels."""
    if type(loader).__iter__ is not DataLoader.__iter__:
        raise UsageError(f"a {type(loader).__name__} makes batches of its own")
    if loader.batch_size is None and loader.batch_sampler is None:
        raise UsageError("a loader without a batch size takes what its dataset makes of several indices")
    if loader.collate_fn is default_collate:
        return
    ids = np.arange(min(2, source.spec.samples))
    try:
        x, y = loader.collate_fn([loader.dataset[number] for number in ids.tolist()])
        assert source.labels is not None
        same = np.array_equal(np.asarray(x).astype(source.spec.dtype), source.read(ids))
        same = same and np.array_equal(np.asarray(y), source.labels[ids])
    except (TypeError, ValueError):
        same = False
    if not same:
        raise UsageError("its collate_fn makes something else than samples as they are stored, and labels")


def _loader(loader: DataLoader[Any], dataset: Any, sampler: Any, collate_fn: Any) -> DataLoader[Any]:
    """Return a loader as another one is, of a dataset by a sampler."""
    options = {name: getattr(loader, name) for name in KEPT} | {"collate_fn": collate_fn}
    if loader.batch_size is None and loader.batch_sampler is not None:
        return DataLoader(dataset, batch_sampler=loader.batch_sampler, **options)
    return DataLoader(dataset, loader.batch_size, sampler=sampler, drop_last=loader.drop_last, **options)
