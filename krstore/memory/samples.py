"""The live samples of a memory as one sequence: what is replayed, and what a merge encodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from krstore.errors import UsageError
from krstore.source import Array, Ids, SourceSpec
from krstore.store.reader import Store

if TYPE_CHECKING:
    from pathlib import Path

    import torch

__all__ = ["MemorySamples"]

Part = TypeVar("Part")


class MemorySamples:
    """Samples of several stores, one store after another; a `krstore.source.Source` with IDs 0..N-1.

    Args:
        path: the memory's folder, for messages.
        stores: of samples of one shape and dtype, each with labels.
        dropped: the labels of each store whose samples are left out.

    Attributes:
        spec: of all samples together.
        labels, task: of each sample (N,); `task` is `None` unless every store has it.
        store_of: the number of each sample's store (N,).
        exact: whether all of them are what was encoded.

    Raises:
        UsageError: there are no stores.
    """

    def __init__(self, path: Path, stores: Sequence[Store], dropped: Sequence[Sequence[int]]) -> None:
        if not stores:
            raise UsageError(f"the memory {path} is empty; append stores to it first")
        self.path, self._stores = path, list(stores)
        rows, labels, tasks = [], [], []
        for store, without in zip(stores, dropped, strict=True):
            assert store.labels is not None
            live = np.flatnonzero(~np.isin(store.labels, list(without)))
            rows.append(live)
            labels.append(store.labels[live])
            tasks.append(None if store.task is None else store.task[live])
        self._rows = np.concatenate(rows)
        self.labels: Ids = np.concatenate(labels)
        self.task: Ids | None = (
            None if any(t is None for t in tasks) else np.concatenate([t for t in tasks if t is not None])
        )
        self.store_of: Ids = np.repeat(np.arange(len(stores)), [len(live) for live in rows])
        self.exact = all(store.exact for store in stores)
        first = stores[0].source
        shared = {
            key: value for key, value in first.attributes.items()
            if all(store.source.attributes.get(key) == value for store in stores)
        }  # fmt: skip
        self.spec = SourceSpec(
            samples=len(self._rows), shape=first.shape, dtype=first.dtype, channel_axis=first.channel_axis,
            features_key=first.features_key, labels_key=first.labels_key, attributes=shared,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, ids: Ids) -> Array:
        """Return samples (len(ids), *shape) in the memory's dtype."""
        parts, order = self._by_store(ids, lambda store, rows: store.decode(rows))
        return np.concatenate(parts)[order]

    def decode_tensor(self, ids: Ids) -> torch.Tensor:
        """Return samples (len(ids), *shape) on the device where they are decoded."""
        import torch

        parts, order = self._by_store(ids, lambda store, rows: store.decode_tensor(rows))
        return torch.cat(parts)[torch.from_numpy(order).to(parts[0].device)]

    def cache(self, limit: int) -> None:
        """Keep up to `limit` bytes of what is read and entropy-decoded, each store by its share of the samples."""
        for number, store in enumerate(self._stores):
            store.cache(limit * int((self.store_of == number).sum()) // max(1, len(self)))

    def _by_store(self, ids: Ids, decode: Callable[[Store, Ids], Part]) -> tuple[list[Part], Ids]:
        """Decode each store's part of these samples; return the parts and where in them each sample is."""
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(self):
            raise UsageError(f"samples {ids.min()} to {ids.max()} of a memory of {len(self)}")
        stores = self.store_of[ids]
        order = np.argsort(stores, kind="stable")
        used = np.unique(stores) if len(ids) else np.zeros(1, np.int64)
        parts = [decode(self._stores[number], self._rows[ids[stores == number]]) for number in used]
        return parts, np.argsort(order, kind="stable")
