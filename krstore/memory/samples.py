"""The live samples of a memory as one sequence: what is replayed, and what a merge encodes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from krstore.errors import UsageError
from krstore.memory.stored import shared_members
from krstore.source import Array, Ids, SourceSpec
from krstore.store.reader import Store

if TYPE_CHECKING:
    from pathlib import Path

    import torch

__all__ = ["MemorySamples"]


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
        stores: which hold them.

    Raises:
        UsageError: there are no stores.
    """

    def __init__(self, path: Path, stores: Sequence[Store], dropped: Sequence[Sequence[int]]) -> None:
        if not stores:
            raise UsageError(f"the memory {path} is empty; append stores to it first")
        self.path, self.stores = path, list(stores)
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
        kin: dict[object, int] = {}  # stores of one network are decoded together, one after another
        self._kin = [kin.setdefault(tuple(shared_members(s).values()) or n, n) for n, s in enumerate(stores)]
        self._in_order = np.argsort(self._kin, kind="stable")
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
        parts, order = self._by_store(ids)
        return np.concatenate([self.stores[number].decode(rows) for number, rows in parts])[order]

    def decode_tensor(self, ids: Ids) -> torch.Tensor:
        """Return samples (len(ids), *shape) on the device where they are decoded."""
        import torch

        parts, order = self._by_store(ids)
        decoded = []
        for first, group in itertools.groupby(parts, key=lambda part: self._kin[part[0]]):
            together = [(self.stores[number], rows) for number, rows in group]
            decoded.append(self.stores[first].decode_together(together))
        return torch.cat(decoded)[torch.from_numpy(order).to(decoded[0].device)]

    def cache(self, limit: int) -> None:
        """Keep up to `limit` bytes of what is read and entropy-decoded, each store by its share of the samples."""
        for number, store in enumerate(self.stores):
            store.cache(limit * int((self.store_of == number).sum()) // max(1, len(self)))

    def _by_store(self, ids: Ids) -> tuple[list[tuple[int, Ids]], Ids]:
        """Return each store's rows of these samples, kin beside kin, and where in all these each sample is."""
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(self):
            raise UsageError(f"samples {ids.min()} to {ids.max()} of a memory of {len(self)}")
        stores = self.store_of[ids]
        used = self._in_order[np.isin(self._in_order, stores)] if len(ids) else self._in_order[:1]
        places = [np.flatnonzero(stores == number) for number in used]
        parts = [(int(number), self._rows[ids[place]]) for number, place in zip(used, places, strict=True)]
        return parts, np.argsort(np.concatenate(places), kind="stable")
