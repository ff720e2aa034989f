"""A store: one immutable `.krs` file, opened for queries, decoding and replay."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from krstore.errors import CorruptStoreError, UsageError
from krstore.source import Array, Ids, SourceSpec
from krstore.store.columns import unpack_column
from krstore.store.container import HEADER, Container
from krstore.store.header import Header, Quality, decode_header

if TYPE_CHECKING:
    import torch

    from krstore.codec import Decoder
    from krstore.replay import Replay

__all__ = ["PAYLOAD", "Sizes", "Store", "StoreSource"]

PAYLOAD = "payload/"
COLUMNS = ("labels", "task", "ids")


class Sizes(msgspec.Struct, frozen=True):
    """Where the bytes of a store went.

    `file` is exactly `network` (what all samples share) + `latent` (what each sample or group has) + `labels`
    (labels, tasks and source IDs) + `overhead` (header, directory, block indices, checksums).
    """

    source: int
    file: int
    network: int
    latent: int
    labels: int
    overhead: int


class PayloadView:
    """The payload's members by the names the codec gave them."""

    def __init__(self, container: Container) -> None:
        self._container = container

    def names(self) -> list[str]:
        """Return the payload members' names."""
        return [name.removeprefix(PAYLOAD) for name in self._container.names() if name.startswith(PAYLOAD)]

    def size(self, name: str) -> int:
        """Return the number of bytes of a member."""
        return self._container.size(PAYLOAD + name)

    def read(self, name: str) -> bytes:
        """Return a whole member."""
        return self._container.read(PAYLOAD + name)

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        """Return `size` bytes of a member from `offset`."""
        return self._container.read_at(PAYLOAD + name, offset, size)


class Store:
    """An open store.

    Opening reads and checks the directory and the header only. Labels, the codec and its network are loaded when
    they are first needed. A store pickles as its path and reopens lazily, so it travels to `DataLoader` workers.

    Args:
        path: a `.krs` file.
        device: where neural codecs decode: ``"auto"``, ``"cpu"``, ``"cuda"``...

    Raises:
        CorruptStoreError: the file is damaged, truncated, contradicts itself, or needs a newer krstore.
    """

    def __init__(self, path: str | Path, *, device: str = "auto") -> None:
        self.path = Path(path)
        self.device = device
        if not self.path.is_file():
            raise UsageError(f"{self.path} is not a file")
        self._container = Container(self.path)
        try:
            self.header = self._checked_header()
        except BaseException:
            self._container.close()
            raise

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(Store, device=self.device), (str(self.path.absolute()),)

    def __len__(self) -> int:
        return self.header.kept

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}: {self.codec}, {len(self)} samples of {self.source.shape}, ratio {self.ratio:.1f})"

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the store cannot be read any more."""
        self._container.close()

    @property
    def codec(self) -> str:
        """The codec's name."""
        return self.header.codec

    @property
    def config(self) -> dict[str, Any]:
        """The codec's options."""
        return self.header.config

    @property
    def source(self) -> SourceSpec:
        """What was encoded."""
        return self.header.source.spec

    @property
    def quality(self) -> Quality:
        """How far the decoded samples are from the source, as measured when the store was written."""
        return self.header.quality

    @property
    def ratio(self) -> float:
        """Bytes of the source samples over bytes of this file."""
        return self.header.source.bytes / self._container.file_bytes

    @functools.cached_property
    def bytes(self) -> Sizes:
        """Where the bytes went."""
        split = {"network": 0, "latent": 0, "labels": 0}
        for name, member in self.header.members.items():
            if name in COLUMNS:
                split["labels"] += member.bytes
            elif not name.endswith(".index"):
                split[name.split("/")[1]] += member.bytes
        file = self._container.file_bytes
        return Sizes(source=self.header.source.bytes, file=file, **split, overhead=file - sum(split.values()))

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

    def read(self, ids: Any) -> Array:
        """Decode samples by their source IDs.

        Args:
            ids: integers in any order, repeats allowed; or a slice over the source's IDs.

        Returns:
            features (len(ids), *shape) in the source's dtype.

        Raises:
            UsageError: an ID is out of range, or an exemplar store does not keep it.
            CorruptStoreError: the payload is damaged.
        """
        return self.decoder.decode(self.rows(ids))

    def rows(self, ids: Any) -> Ids:
        """Return the payload rows of these source IDs."""
        if isinstance(ids, slice):
            ids = np.arange(self.source.samples)[ids]
        ids = np.atleast_1d(np.asarray(ids))
        if ids.size == 0:
            return np.empty(0, np.int64)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise UsageError(f"sample IDs of shape {ids.shape} and type {ids.dtype}; expected a list of integers")
        ids = ids.astype(np.int64)
        outside = ids[(ids < 0) | (ids >= self.source.samples)]
        if len(outside):
            raise UsageError(f"sample {outside[0]} does not exist; IDs are 0 to {self.source.samples - 1}")
        if "ids" not in self.header.members:
            return ids
        order = np.argsort(self.ids)
        found = np.searchsorted(self.ids, ids, sorter=order).clip(max=len(order) - 1)
        rows = order[found]
        missing = ids[self.ids[rows] != ids]
        if len(missing):
            raise UsageError(
                f"sample {missing[0]} is not kept: this {self.codec} store holds {len(self)} exemplars of "
                f"{self.source.samples} samples (see its ids)"
            )
        return np.asarray(rows, np.int64)

    @functools.cached_property
    def decoder(self) -> Decoder:
        """The open payload; imports the codec's code."""
        from krstore.codec import OpenContext
        from krstore.registry import codec_names, get_codec
        from krstore.tensors import resolve_device

        if self.codec not in codec_names():
            raise UsageError(
                f"{self.path} was written by codec {self.codec!r}, which is not installed; "
                f"known: {', '.join(codec_names())}"
            )
        context = OpenContext(
            spec=self.source, kept=len(self), labels=self.labels, device=resolve_device(self.device)
        )
        try:
            return get_codec(self.codec).open(PayloadView(self._container), context)
        except (ValueError, KeyError, IndexError, TypeError, ArithmeticError) as error:
            raise CorruptStoreError(f"{self.path}: the payload does not fit its codec: {error}") from error

    def decode_tensor(self, rows: Ids) -> torch.Tensor:
        """Decode payload rows to a tensor on the decoding device (rows count stored samples, 0..len-1)."""
        return self.decoder.decode_tensor(rows)

    def replay(self, batch_size: int = 128, **options: Any) -> Replay:
        """Return an iterable of (features, labels) batches for a training loop; see `krstore.replay.Replay`."""
        from krstore.replay import Replay

        return Replay(self, batch_size=batch_size, **options)

    def check(self) -> dict[str, int]:
        """Read everything and check every checksum; return the number of bytes checked by member.

        Raises:
            CorruptStoreError: names the first damaged member, or block with its samples.
        """
        from krstore.store.verify import check_members

        return check_members(self.path, self._container, self.header)

    def _column(self, name: str) -> Ids | None:
        if name not in self.header.members:
            return None
        return unpack_column(self._container.read(name), len(self), name)

    def _checked_header(self) -> Header:
        try:
            header = decode_header(self._container.header())
        except CorruptStoreError as error:
            raise CorruptStoreError(f"{self.path}: {str(error).removeprefix(f'{self.path}: ')}") from None
        present = {name: self._container.size(name) for name in self._container.names() if name != HEADER}
        listed = {name: member.bytes for name, member in header.members.items()}
        if present != listed:
            odd = sorted({*present.items()} ^ {*listed.items()})[0][0]
            raise CorruptStoreError(f"{self.path}: member {odd!r} is missing, unknown, or not of the listed size")
        allowed = (f"{PAYLOAD}network/", f"{PAYLOAD}latent/")
        strangers = [name for name in listed if name not in COLUMNS and not name.startswith(allowed)]
        if strangers or (header.kind == "exemplar") != ("ids" in listed):
            raise CorruptStoreError(f"{self.path}: members {strangers or ['ids']} do not belong in a {header.kind} store")
        return header


class StoreSource:
    """A store's samples as a source: what `krstore.encode` reads when it is given a `.krs` file."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.spec = msgspec.structs.replace(store.header.source, samples=len(store)).spec
        self.labels, self.task = store.labels, store.task

    def read(self, ids: Ids) -> Array:
        """Decode payload rows."""
        return self._store.decoder.decode(ids)

