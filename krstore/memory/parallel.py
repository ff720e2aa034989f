"""Encoding archives, or parts of them, into a memory: by one process, or by several that share the work."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch

from krstore.archives import open_archive
from krstore.distributed import barrier, broadcast, processes
from krstore.errors import UsageError
from krstore.memory.beside import target_beside
from krstore.memory.folder import Folder
from krstore.modules import weights_hash
from krstore.progress import SILENT, Progress
from krstore.registry import get_sample_codec
from krstore.source import Source, Subset
from krstore.store.reader import Store
from krstore.store.writer import encode

if TYPE_CHECKING:
    from krstore.memory.collection import Collection
    from krstore.memory.manifest import Entry

__all__ = ["extend"]


def extend(
    memory: Collection,
    archives: Sequence[str | Path],
    codec: str = "transform",
    *,
    shards: int = 1,
    ratio: float | None = None,
    max_mse: float | None = None,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    decoder: Store | str | Path | None = None,
    seed: int = 0,
    task_model: torch.nn.Module | None = None,
    trust: bool = False,
    progress: Progress = SILENT,
) -> list[Entry]:
    """Encode archives into stores of a memory, all of which it takes at once.

    Where `torch.distributed` is initialised, each process encodes its share, and the first commits all of them. Shards
    that an interrupted call has finished are not encoded again: whatever kills a process, the memory is as it was, and
    the same call completes it.

    Args:
        memory: on a file system that all processes see.
        archives: paths; see `krstore.archives.open_archive`.
        codec, preset, settings, decoder, seed, task_model, progress: see `krstore.encode`.
        shards: stores that each archive is cut into, by contiguous parts.
        ratio, max_mse: the target of each store; default the codec's. What the memory has of a decoder does not count.
        trust: see `krstore.archives.open_archive`.

    Returns:
        the entries of the new stores.

    Raises:
        UsageError: archives are no paths, fewer samples than shards, two shards of the same samples, or as
            `Memory.append`.
        ArchiveError, TargetUnreachableError: as `krstore.encode`; the memory is as it was.
    """
    rank, world = processes()
    if isinstance(archives, str) or not all(isinstance(archive, str | Path) for archive in archives):
        raise UsageError("archives: expected a list of paths; what is no file is encoded and then appended")
    paths = [Path(archive) for archive in archives]
    if shards < 1:
        raise UsageError(f"shards={shards} is not positive")
    get_sample_codec(codec)
    told = [_identity(path) for path in paths]
    memory.reload()
    _check_sources(memory, paths, trust)
    opened = Store(decoder) if isinstance(decoder, str | Path) else decoder
    shared = None if opened is None else _identity(opened.path)
    seen_by = None if task_model is None else weights_hash(task_model)
    identity = msgspec.json.encode([told, codec, shards, ratio, max_mse, preset, settings, shared, seen_by, seed])
    name = f"encode-{hashlib.sha256(identity).hexdigest()[:16]}"
    with memory.folder.working(name, rank=rank if world > 1 else None) as folder:
        parts = [(number, part) for number in range(len(paths)) for part in range(shards)]
        for number, part in parts[rank::world]:
            output = folder / f"{number}-{part}.krs"
            if not output.exists():
                source = _part(open_archive(paths[number], trust=trust), paths[number], part, shards)
                target: dict[str, Any] = {"ratio": ratio, "max_mse": max_mse}
                if opened is not None:
                    target = target_beside(memory, opened, source, preset=preset, **target)
                encode(
                    source, output, codec, preset=preset, settings=settings, decoder=opened, seed=seed, resume="auto",
                    device=memory.device, task_model=task_model, progress=progress, **target,
                )  # fmt: skip
        barrier()
        added: list[Entry] = []
        if rank == 0:
            stores = [Store(folder / f"{number}-{part}.krs") for number, part in parts]
            _check_distinct(stores, [f"shard {part} of {paths[number]}" for number, part in parts])
            added = memory.append(*stores, progress=progress)
        hashes = torch.zeros(len(parts), 32, dtype=torch.uint8)
        for row, entry in zip(hashes, added, strict=False):
            row[:] = torch.tensor(list(bytes.fromhex(entry.sha256)))
        broadcast(hashes)
    memory.reload()
    entries = {entry.sha256: entry for entry in memory.manifest.stores}
    names = [bytes(row.tolist()).hex() for row in hashes]
    return [entries[name] for name in names if name in entries]  # another process may have dropped some by now


def _check_sources(memory: Collection, paths: Sequence[Path], trust: bool) -> None:
    """Refuse archives whose samples do not belong beside the memory's, or beside each other's."""
    kinds: dict[tuple[Any, ...], Path] = {}
    for path in paths:
        source = open_archive(path, trust=trust)
        memory.check_source(source, path)
        kinds.setdefault((source.spec.shape, source.spec.dtype, source.spec.channel_axis), path)
    if len(kinds) > 1:
        (own, one), (other, two), *_ = kinds.items()
        raise UsageError(f"{two} holds samples of {other[0]} {other[1]}; those of {one} have {own[0]} {own[1]}")


def _check_distinct(stores: Sequence[Store], names: Sequence[str]) -> None:
    """Refuse stores of the same bytes, of which a memory would take one."""
    seen: dict[str, str] = {}
    for store, name in zip(stores, names, strict=True):
        sha256 = Folder.identity(store)
        if sha256 in seen:
            raise UsageError(f"{seen[sha256]} and {name} have the same samples; a memory takes a store once")
        seen[sha256] = name


def _identity(path: Path) -> list[str | int]:
    try:
        status = path.stat()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def _part(source: Source, path: Path, part: int, shards: int) -> Source:
    if shards == 1:
        return source
    samples = source.spec.samples
    if not 1 <= shards <= samples:
        raise UsageError(f"{path}: {samples} samples do not make {shards} shards")
    bounds = np.linspace(0, samples, shards + 1).astype(np.int64)
    return Subset(source, np.arange(bounds[part], bounds[part + 1]))
