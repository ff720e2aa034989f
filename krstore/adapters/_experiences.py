"""A memory of one store an experience, which survives that an experience is done again."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from krstore.archives import open_archive, write_archive
from krstore.codec import Codec, Kind
from krstore.errors import UsageError
from krstore.memory import Memory
from krstore.memory.alike import encode_alike
from krstore.memory.beside import encode_beside
from krstore.memory.samples import MemorySamples
from krstore.progress import SILENT, Progress
from krstore.registry import get_sample_codec
from krstore.source import Ids, Source, SourceSpec, default_channel_axis
from krstore.store.reader import Store
from krstore.tensors import as_array

__all__ = ["PIL", "Experiences", "warn"]

PIL = "pil_image"  # an attribute of what is stored: the samples were images of Pillow's


class Experiences:
    """A memory of one store an experience; what was not finished, or is done again, gives way.

    Attributes:
        finished: how many experiences a checkpoint knows of.
    """

    def __init__(
        self,
        path: str | Path,
        codec: str,
        seed: int,
        device: str,
        encoding: Mapping[str, Any] | None,
        progress: Progress = SILENT,
    ) -> None:
        self._codec: type[Codec[Any, Any]] = get_sample_codec(codec)
        self._seed, self._device, self._encoding, self._progress = seed, device, dict(encoding or {}), progress
        self.memory = Memory.ensure(path, device=device)
        self.finished = 0

    @property
    def chooses(self) -> bool:
        """Whether the codec keeps some samples of an experience, not all."""
        return self._codec.kind is Kind.EXEMPLAR

    def samples(self, before: int | None = None) -> MemorySamples | None:
        """Return what is kept of the experiences before one, by default of all that are finished."""
        stop = self.finished if before is None else before
        kept = [(entry, store) for entry, store in self.memory.pairs() if _experience(store) < stop]
        if not kept:
            return None
        return MemorySamples(self.memory.path, [store for _, store in kept], [entry.dropped for entry, _ in kept])

    def classes(self, before: int | None = None) -> set[int]:
        """Return the labels of the same."""
        samples = self.samples(before)
        return set() if samples is None else set(samples.labels.tolist())

    def take(
        self, number: int, batches: Iterable[Tensor], labels: Ids, attributes: Mapping[str, Any] | None = None
    ) -> Store:
        """Encode an experience's samples into a store, in the place of any of it or of later ones."""
        stale = [entry for entry, store in self.memory.pairs() if _experience(store) >= number]
        kept = [store for _, store in self.memory.pairs() if _experience(store) < number]
        with _archived(batches, labels, number, attributes) as (source, folder):
            store = encode_beside(
                self.memory, next(iter(kept), None), source, folder / "experience.krs", self._codec.name,
                device=self._device, seed=self._seed, progress=self._progress, **self._encoding,
            )  # fmt: skip
            (entry,) = self.memory.replace(stale, [store]) if stale else self.memory.append(store)
        self.finished = number + 1
        return self.memory.stores[self.memory.manifest.stores.index(entry)]

    def passed(
        self, number: int, batches: Iterable[Tensor], labels: Ids, attributes: Mapping[str, Any] | None, output: Path
    ) -> MemorySamples:
        """Return a new experience's samples as the codec of the last one's gives them back, at its rate, in a file."""
        last = max((store for _, store in self.memory.pairs() if _experience(store) < number), key=_experience)
        with _archived(batches, labels, number, attributes) as (source, _):
            store = encode_alike(last, source, output, device=self._device, seed=self._seed, progress=self._progress)
        return MemorySamples(output, [store], [()])


def warn(samples: MemorySamples | None, instead: str) -> None:
    """Warn of new samples that are learnt from as they are, where old ones have been through a lossy codec."""
    if samples is not None and not samples.exact:
        warnings.warn(
            f"new samples are sharper than what {samples.path} makes of old ones, and a network learns to tell them "
            f"apart by that; {instead}",
            stacklevel=3,
        )


@contextlib.contextmanager
def _archived(
    batches: Iterable[Tensor], labels: Ids, experience: int, attributes: Mapping[str, Any] | None
) -> Iterator[tuple[Source, Path]]:
    """Yield samples as an archive, and the folder that it is in while the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.h5"
        _write(path, batches, labels, experience, attributes or {})
        yield open_archive(path), Path(folder)


def _write(path: Path, batches: Iterable[Tensor], labels: Ids, experience: int, attributes: Mapping[str, Any]) -> None:
    """Write samples as an archive; the first batch tells of what shape and dtype they are."""
    remaining = iter(batches)
    first = as_array(next(remaining).cpu())
    rank = first.ndim - 1
    spec = SourceSpec(
        samples=len(labels), shape=first.shape[1:], dtype=first.dtype.name, attributes=attributes,
        channel_axis=2 if rank == 3 and attributes.get(PIL) else default_channel_axis(rank),
    )  # fmt: skip
    with write_archive(path, spec, {"labels": labels, "task": np.full(len(labels), experience)}) as writer:
        writer.append(first)
        for batch in remaining:
            writer.append(as_array(batch.cpu()))


def _experience(store: Store) -> int:
    if store.task is None:
        raise UsageError(f"{store.path} has no task column; give the adapter a memory that it made")
    return int(store.task[0])
