"""A store: one immutable `.krs` file, opened for queries, decoding and replay."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from krstore.errors import CorruptStoreError, UsageError
from krstore.source import MAX_SAMPLES_PER_BYTE, Array, Ids, SourceSpec
from krstore.store.columns import unpack_column
from krstore.store.header import Header, Quality
from krstore.store.opened import PAYLOAD, PayloadView, StoreFile

if TYPE_CHECKING:
    import torch

    from krstore.codec import Decoder, SharedDecoder
    from krstore.replay import Replay

__all__ = ["Store", "StoreSource"]


class Store(StoreFile[Header]):
    """An open store of samples; see `krstore.store.opened.StoreFile`."""

    _header_type = Header

    def __init__(self, path: str | Path, *, device: str = "auto") -> None:
        super().__init__(path, device=device)
        self._decoders: dict[str, Decoder] = {}
        self._cache_limit: int | None = None

    def __len__(self) -> int:
        return self.header.kept

    def __repr__(self) -> str:
        what = f"{self.codec}, {len(self)} samples of {self.source.shape}, ratio {self.ratio:.1f}"
        return f"Store({str(self.path)!r}: {what})"

    @property
    def source(self) -> SourceSpec:
        """What was encoded."""
        return self.header.source.spec

    @property
    def quality(self) -> Quality:
        """How far the decoded samples are from the source, as measured when the store was written."""
        return self.header.quality

    @property
    def exact(self) -> bool:
        """Whether the decoded samples are equal to those of the source."""
        return self.quality.mse == 0

    @functools.cached_property
    def labels(self) -> Ids | None:
        """Class labels (len(self),) int64; `None` where the source had none."""
        return self._column("labels")

    @functools.cached_property
    def task(self) -> Ids | None:
        """The task of each sample (len(self),); `None` where the source had none."""
        return self._column("task")

    @functools.cached_property
    def ids(self) -> Ids:
        """The source's IDs of the stored samples (len(self),): 0..N-1, or an exemplar store's choice in order."""
        ids = self._column("ids")
        if ids is None:
            return np.arange(len(self))
        if len(np.unique(ids)) != len(ids) or ids.min() < 0 or ids.max() >= self.source.samples:
            raise CorruptStoreError(f"{self.path}: the kept samples' IDs are not distinct IDs of the source")
        return ids

    @functools.cached_property
    def _order(self) -> Ids:
        return np.argsort(self.ids)

    def read(self, ids: Any) -> Array:
        """Decode samples by their source IDs.

        Args:
            ids: integers in any order, repeats allowed; or a slice over the source's IDs.

        Returns:
            features (len(ids), *shape) in the source's dtype.

        Raises:
            UsageError: an ID is out of range, or an exemplar store does not keep it.
            CorruptStoreError: the payload is damaged.
            KrstoreError: so many samples do not fit into memory.
        """
        return self.decode(self.rows(ids))

    def decode(self, rows: Ids) -> Array:
        """Decode payload rows (rows count stored samples, 0..len-1)."""
        self._check_rows(rows)
        decoder = self.decoder
        with self._reading():
            return decoder.decode(rows)

    def rows(self, ids: Any) -> Ids:
        """Return the payload rows of these source IDs."""
        if isinstance(ids, slice):
            asked = range(*ids.indices(self.source.samples))
            ids = np.array(asked[: len(self) + 1], np.int64)  # of more than there are, one of these is not kept
        given = np.atleast_1d(np.asarray(ids))
        if given.size == 0:
            return np.empty(0, np.int64)
        if given.ndim != 1 or given.dtype.kind not in "iu":
            raise UsageError(f"sample IDs of shape {given.shape} and type {given.dtype}; expected a list of integers")
        wanted = given.astype(np.int64)
        outside = wanted[(wanted < 0) | (wanted >= self.source.samples)]
        if len(outside):
            raise UsageError(f"sample {outside[0]} does not exist; IDs are 0 to {self.source.samples - 1}")
        if "ids" not in self.header.members:
            return wanted
        found = np.searchsorted(self.ids, wanted, sorter=self._order).clip(max=len(self) - 1)
        rows = self._order[found]
        missing = wanted[self.ids[rows] != wanted]
        if len(missing):
            raise UsageError(
                f"sample {missing[0]} is not kept: this {self.codec} store holds {len(self)} exemplars of "
                f"{self.source.samples} samples (see its ids)"
            )
        return np.asarray(rows, np.int64)

    @property
    def decoder(self) -> Decoder:
        """The open payload; imports the codec's code.

        Workers of a `DataLoader` decode on the CPU: a forked process cannot use its parent's GPU.
        """
        from torch.utils.data import get_worker_info

        device = self._resolved_device if get_worker_info() is None else "cpu"
        if device not in self._decoders:
            self._decoders[device] = self._opened(device)
        return self._decoders[device]

    @functools.cached_property
    def _resolved_device(self) -> str:
        from krstore.tensors import resolve_device

        return resolve_device(self.device)

    def _opened(self, device: str) -> Decoder:
        from krstore.codec import OpenContext
        from krstore.registry import get_sample_codec

        self._check_installed()
        context = OpenContext(spec=self.source, kept=len(self), labels=self.labels, device=device)
        with self._reading():
            decoder = get_sample_codec(self.codec).open(PayloadView(self._container), context)
        if self._cache_limit is not None:
            decoder.cache(self._cache_limit)
        return decoder

    def shared_decoder(self) -> SharedDecoder:
        """Return the decoder without its samples, for an encode that is to use it as it is; it has been opened."""
        from krstore.codec import SharedDecoder

        assert self.decoder is not None
        prefix = f"{PAYLOAD}network/"
        hashes = [member.sha256 for name, member in sorted(self.header.members.items()) if name.startswith(prefix)]
        return SharedDecoder(PayloadView(self._container), hashlib.sha256("".join(hashes).encode()).hexdigest())

    def decode_tensor(self, rows: Ids) -> torch.Tensor:
        """Decode payload rows to a tensor on the decoding device."""
        self._check_rows(rows)
        decoder = self.decoder
        with self._reading():
            return decoder.decode_tensor(rows)

    def decode_together(self, parts: Sequence[tuple[Store, Ids]]) -> torch.Tensor:
        """Decode rows of stores that have this one's network, one store's after another's, on the decoding device."""
        for store, rows in parts:
            store._check_rows(rows)
        opened = [(store.decoder, rows) for store, rows in parts]
        try:
            with self._reading():
                return self.decoder.decode_together(opened)
        except CorruptStoreError:
            import torch

            return torch.cat([store.decode_tensor(rows) for store, rows in parts])  # names the store that is damaged

    def cache(self, limit: int) -> None:
        """Keep up to `limit` bytes of what is read and entropy-decoded, what is kept already included; 0 forgets it."""
        self._cache_limit = limit
        self.decoder.cache(limit)

    @property
    def store_of(self) -> None:
        """All samples are of one store; see `krstore.replay.Replayable`."""
        return None

    def replay(self, batch_size: int = 128, **options: Any) -> Replay:
        """Return an iterable of (features, labels) batches for a training loop; see `krstore.replay.Replay`."""
        from krstore.replay import Replay

        return Replay(self, batch_size=batch_size, **options)

    def _column(self, name: str) -> Ids | None:
        if name not in self.header.members:
            return None
        with self._reading():
            return unpack_column(self._container.read(name), len(self), name)

    def _check_rows(self, rows: Ids) -> None:
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise UsageError(f"rows {rows.min()} to {rows.max()} of a store of {len(self)} samples")

    @property
    def _source_bytes(self) -> int:
        return self.header.source.bytes

    def _check_columns(self, header: Header, columns: list[str]) -> None:
        if header.kept > MAX_SAMPLES_PER_BYTE * self._container.file_bytes:
            raise CorruptStoreError(f"{header.kept} samples in a file of {self._container.file_bytes} bytes")
        if (header.kind == "exemplar") != ("ids" in columns) or (header.classes is None) == ("labels" in columns):
            raise CorruptStoreError(f"a {header.kind} store of {header.classes} classes with columns {columns}")


class StoreSource:
    """A store's samples as a source: what `krstore.encode` reads when it is given a `.krs` file.

    Attributes:
        path: of the store.
    """

    def __init__(self, store: Store) -> None:
        self._store, self.path = store, store.path
        self.spec = msgspec.structs.replace(store.header.source, samples=len(store)).spec
        self.labels, self.task = store.labels, store.task

    def read(self, ids: Ids) -> Array:
        """Decode payload rows."""
        return self._store.decode(ids)
