"""A store: one immutable `.krs` file, opened for queries, decoding and replay."""

from __future__ import annotations

import contextlib
import functools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import zstandard

from krstore.errors import CorruptStoreError, KrstoreError, UsageError
from krstore.source import Array, Ids, SourceSpec
from krstore.store.columns import unpack_column
from krstore.store.container import Container
from krstore.store.header import Header, Quality, decode_header
from krstore.store.layout import HEADER

if TYPE_CHECKING:
    import torch

    from krstore.codec import Decoder
    from krstore.replay import Replay

__all__ = ["PAYLOAD", "Sizes", "Store", "StoreSource"]

PAYLOAD = "payload/"
COLUMNS = ("labels", "task", "ids")
MAX_SAMPLES_PER_BYTE = 1024


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
    they are first needed, and the file is held open only from the first of these reads on. A store pickles as its
    path, so it travels to `DataLoader` workers; several threads may read it at once.

    Args:
        path: a `.krs` file.
        device: where neural codecs decode: ``"auto"``, ``"cpu"``, ``"cuda"``...

    Raises:
        UsageError: there is no such file, or it cannot be opened.
        CorruptStoreError: the file is damaged, truncated, contradicts itself, or needs a newer krstore.
    """

    def __init__(self, path: str | Path, *, device: str = "auto") -> None:
        self.path = Path(path)
        self.device = device
        self._container = Container(self.path)
        try:
            with self._reading():
                self.header = self._checked_header()
        finally:
            self._container.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(Store, device=self.device), (str(self.path.absolute()),)

    def __len__(self) -> int:
        return self.header.kept

    def __repr__(self) -> str:
        what = f"{self.codec}, {len(self)} samples of {self.source.shape}, ratio {self.ratio:.1f}"
        return f"Store({str(self.path)!r}: {what})"

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_container"):
            self._container.close()

    def close(self) -> None:
        """Give the file descriptor back; a later read opens the file again."""
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
            elif not self._is_index(name):
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
            ids = np.arange(*ids.indices(self.source.samples))
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
        context = OpenContext(spec=self.source, kept=len(self), labels=self.labels, device=resolve_device(self.device))
        with self._reading():
            return get_codec(self.codec).open(PayloadView(self._container), context)

    def decode_tensor(self, rows: Ids) -> torch.Tensor:
        """Decode payload rows to a tensor on the decoding device."""
        self._check_rows(rows)
        decoder = self.decoder
        with self._reading():
            return decoder.decode_tensor(rows)

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
        with self._reading():
            return unpack_column(self._container.read(name), len(self), name)

    def _check_rows(self, rows: Ids) -> None:
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise UsageError(f"rows {rows.min()} to {rows.max()} of a store of {len(self)} samples")

    def _is_index(self, name: str) -> bool:
        return name.endswith(".index") and name.removesuffix(".index") in self.header.members

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Name the file in every error, and turn what a codec trips over in a damaged payload into an error."""
        try:
            yield
        except CorruptStoreError as error:
            raise CorruptStoreError(f"{self.path}: {str(error).removeprefix(f'{self.path}: ')}") from error
        except (ValueError, LookupError, TypeError, ArithmeticError, struct.error, zstandard.ZstdError) as error:
            raise CorruptStoreError(f"{self.path}: the payload does not fit its codec: {error}") from error
        except MemoryError as error:
            raise KrstoreError(f"{self.path}: not enough memory ({error}); read fewer samples at a time") from error

    def _checked_header(self) -> Header:
        header = decode_header(self._container.header())
        if header.source.samples > MAX_SAMPLES_PER_BYTE * self._container.file_bytes:
            raise CorruptStoreError(f"{header.source.samples} samples in a file of {self._container.file_bytes} bytes")
        present = {name: self._container.size(name) for name in self._container.names() if name != HEADER}
        listed = {name: member.bytes for name, member in header.members.items()}
        if present != listed:
            odd = sorted({*present.items()} ^ {*listed.items()})[0][0]
            raise CorruptStoreError(f"member {odd!r} is missing, unknown, or not of the listed size")
        allowed = (f"{PAYLOAD}network/", f"{PAYLOAD}latent/")
        strangers = [name for name in listed if name not in COLUMNS and not name.startswith(allowed)]
        if strangers:
            raise CorruptStoreError(f"member {strangers[0]!r} does not belong in a store")
        if (header.kind == "exemplar") != ("ids" in listed) or (header.classes is None) == ("labels" in listed):
            raise CorruptStoreError(
                f"a {header.kind} store of {header.classes} classes with columns {[n for n in COLUMNS if n in listed]}"
            )
        return header


class StoreSource:
    """A store's samples as a source: what `krstore.encode` reads when it is given a `.krs` file."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.spec = msgspec.structs.replace(store.header.source, samples=len(store)).spec
        self.labels, self.task = store.labels, store.task

    def read(self, ids: Ids) -> Array:
        """Decode payload rows."""
        return self._store.decode(ids)
