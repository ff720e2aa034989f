"""Encoding again what a memory holds: all its stores into one, or each into fewer bytes.

What is encoded is what the stores decode to, so a lossy codec loses a little more each time, and a new store's quality
is told against that. A memory whose stores share a decoder needs no merging: its stores only have to be appended.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from krstore.codec import Kind
from krstore.errors import TargetUnreachableError, UnknownNameError, UsageError
from krstore.memory.alike import encode_alike
from krstore.memory.samples import MemorySamples
from krstore.modules import weights_hash
from krstore.progress import SILENT, Progress
from krstore.registry import get_sample_codec
from krstore.source import Subset, class_indices
from krstore.store.reader import Store
from krstore.store.writer import encode

if TYPE_CHECKING:
    import torch

    from krstore.memory.collection import Collection
    from krstore.memory.manifest import Entry

__all__ = ["merge", "shrink", "trim"]

ENTRY_SLACK = 400  # bytes by which an entry of the manifest may grow


@dataclass(frozen=True, kw_only=True)
class _Encoder:
    """How samples are encoded again; see `krstore.store.writer.encode`."""

    memory: Collection
    codec: str
    preset: str | None
    settings: Mapping[str, Any] | None
    seed: int
    task_model: torch.nn.Module | None
    progress: Progress

    def encode(self, entries: list[Entry], folder: Path, decoder: Store | None = None, **target: Any) -> Store:
        """Encode what these entries replay into a file named after all that it depends on; resumes, or finds it."""
        samples = MemorySamples(self.memory.path, self.memory.opened(entries), [e.dropped for e in entries])
        shared = None if decoder is None else decoder.shared_decoder().sha256
        seen_by = None if self.task_model is None else weights_hash(self.task_model)
        identity = msgspec.json.encode(
            [entries, self.codec, self.preset, self.settings, self.seed, shared, seen_by, target]
        )
        output = folder / f"{hashlib.sha256(identity).hexdigest()[:16]}.krs"
        if output.exists():
            return Store(output)
        return encode(
            samples, output, self.codec, preset=self.preset, settings=self.settings, device=self.memory.device,
            seed=self.seed, resume="auto", task_model=self.task_model, decoder=decoder, progress=self.progress,
            **target,
        )  # fmt: skip


def merge(
    memory: Collection,
    codec: str | None = None,
    *,
    names: Sequence[str] | None = None,
    ratio: float | None = None,
    max_bytes: int | None = None,
    max_mse: float | None = None,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    task_model: torch.nn.Module | None = None,
    progress: Progress = SILENT,
) -> Entry:
    """Encode samples of a memory into one store, which takes their stores' place; an interrupted call is taken up.

    With codec krnet this is the self-taught update of the KRNet paper, Sec. III-C: a new network is fitted to what the
    old one recites and what came since.

    Args:
        memory: where.
        codec: default the one that most of the samples are in.
        names: of the stores to merge; default all.
        ratio, max_bytes, max_mse: the target; default at most the bytes that the samples take now.
        preset, settings, seed, task_model, progress: see `krstore.encode`.

    Returns:
        the new store's entry; the old one's where there is a single store and nothing to change.

    Raises:
        UsageError: the memory is empty, or has no store of a name.
        TargetUnreachableError: the codec cannot honour the target; nothing is changed.
    """
    _check_samples(memory)
    entries = _named(memory, names)
    if not entries:
        raise UsageError("names=[]: no store to merge; leave names out to merge all of them")
    asked = {"ratio": ratio, "max_bytes": max_bytes, "max_mse": max_mse}
    target: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    chosen = codec or Counter({e.codec: e.samples for e in entries}).most_common(1)[0][0]
    _check_dense(chosen, "merged")
    if len(entries) == 1 and not (entries[0].dropped or target or preset or settings) and chosen == entries[0].codec:
        return entries[0]
    if not target and not get_sample_codec(chosen).lossless:
        stored, live = sum(sum(e.classes.values()) for e in entries), sum(e.samples for e in entries)
        networks = {sha256 for entry in entries for sha256 in entry.networks.values()}
        taken = sum(entry.bytes for entry in entries) + sum(map(memory.folder.network_bytes, networks))
        target = {"max_bytes": taken * live // stored}
    encoder = _Encoder(
        memory=memory, codec=chosen, preset=preset, settings=settings, seed=seed, task_model=task_model,
        progress=progress,
    )  # fmt: skip
    with memory.folder.working(_folder("merge", entries, target, chosen, preset, settings, seed)) as folder:
        store = encoder.encode(entries, folder, **target)
        return memory.replace(entries, [store])[0]


def shrink(
    memory: Collection,
    budget: int,
    codec: str | None = None,
    *,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> None:
    """Encode stores of a memory again, so that the whole memory takes at most `budget` bytes.

    Each store may take as many bytes a sample as any other; one that takes fewer is left as it is, and leaves others
    the rest. Those that share a decoder keep it; the others' get smaller with them. An interrupted call is taken up.
    Nothing is done where the memory is small enough.

    Args:
        memory: where.
        budget: bytes of all its files.
        codec: default each store's own.
        preset, settings, seed, progress: see `krstore.encode`.

    Raises:
        UsageError: the memory is empty, or a store is lossless, no other codec is named, and leaving out what has been
            dropped of it is not enough.
        TargetUnreachableError: a codec cannot honour its share of the budget; nothing is changed.
    """
    if memory.bytes <= budget:
        return
    _check_samples(memory)
    entries = list(memory.manifest.stores)
    kept = _shared_networks(memory) if codec is None else {}
    lossy = [entry for entry in entries if not get_sample_codec(codec or entry.codec).lossless]
    fixed = memory.folder.manifest_bytes + ENTRY_SLACK * len(lossy) + sum(kept.values())
    if budget <= fixed:
        cure = "name a codec to encode without the shared decoder, or" if kept else "name"
        raise TargetUnreachableError(
            f"{memory.path}: the manifest and what the stores share take {fixed:,} bytes of the {budget:,} asked for; "
            f"{cure} a larger budget"
        )
    encoder = _Encoder(
        memory=memory, codec="", preset=preset, settings=settings, seed=seed, task_model=None, progress=progress
    )
    with memory.folder.working(_folder("shrink", entries, budget, codec, preset, settings, seed)) as folder:
        sizes = {
            entry.sha256: _own_bytes(memory, entry, kept) * entry.samples / sum(entry.classes.values())
            for entry in entries
        }
        shrunk: dict[str, Store] = {}
        for entry in entries:
            if entry.dropped and entry not in lossy and codec is None:  # its size is known when it is there
                shrunk[entry.sha256] = replace(encoder, codec=entry.codec).encode([entry], folder)
                sizes[entry.sha256] = shrunk[entry.sha256].bytes.file
        shares = _shares(entries, sizes, budget - fixed)
        for entry in entries:
            if entry not in lossy and (codec is not None or shares[entry.sha256] < sizes[entry.sha256]):
                raise UsageError(
                    f"store {entry.name} is of the lossless codec {entry.codec}; name another to shrink it with"
                    if codec is None else f"codec {codec} is lossless; name another to shrink stores with"
                )  # fmt: skip
        large = [entry for entry in lossy if shares[entry.sha256] < sizes[entry.sha256] or entry.dropped]
        for entry, store in zip(large, memory.opened(large), strict=True):
            chosen = codec or entry.codec
            _check_dense(chosen, "shrunk")
            decoder = store if kept.keys() & set(entry.networks.values()) else None
            share = shares[entry.sha256] + sum(kept[network] for network in entry.networks.values() if network in kept)
            with _naming(entry):
                shrunk[entry.sha256] = replace(encoder, codec=chosen).encode(
                    [entry], folder, decoder, max_bytes=int(share)
                )
        old = [entry for entry in entries if entry.sha256 in shrunk]
        memory.replace(old, [shrunk[entry.sha256] for entry in old])


def trim(memory: Collection, per_class: int, *, seed: int = 0, progress: Progress = SILENT) -> None:
    """Keep at most `per_class` samples of each class: the first ones of each store, as many of one as of another.

    Where a store has fewer, the others keep more.

    Of exemplars, which lie in the order of their worth, these are the smaller set. They are stored again with what they
    were stored with; nothing is lost but by a lossy codec. An interrupted call is taken up.

    Raises:
        UsageError: `per_class` is not positive.
    """
    if per_class < 1:
        raise UsageError(f"per_class={per_class} is not positive; krstore.Memory.drop forgets whole classes")
    quotas = _quotas(memory, per_class)
    old, new = [], []
    with memory.folder.working(_folder("trim", memory.manifest.stores, per_class, seed)) as folder:
        for entry, store in memory.pairs():
            samples = MemorySamples(memory.path, [store], [entry.dropped])
            parts = [ids[: quotas[entry.sha256, label]] for label, ids in class_indices(samples.labels).items()]
            kept = np.sort(np.concatenate(parts))
            if len(kept) == len(samples):
                continue
            old.append(entry)
            if not len(kept):
                continue
            path = folder / f"{entry.name}.krs"
            if not path.exists():
                with _naming(entry):
                    encode_alike(store, Subset(samples, kept), path, device=memory.device, seed=seed, progress=progress)
            new.append(Store(path))
        if old:
            memory.replace(old, new)


def _shares(entries: Sequence[Entry], sizes: Mapping[str, float], room: float) -> dict[str, float]:
    """Share `room` bytes among stores by their samples; what one does not need, others get."""
    shares, samples = {}, sum(entry.samples for entry in entries)
    for entry in sorted(entries, key=lambda entry: sizes[entry.sha256] / entry.samples):
        shares[entry.sha256] = min(sizes[entry.sha256], room * entry.samples / samples)
        room -= shares[entry.sha256]
        samples -= entry.samples
    return shares


def _quotas(memory: Collection, per_class: int) -> dict[tuple[str, int], int]:
    """Return how many samples each store keeps of each class, by its hash and the label."""
    quotas = {}
    for label in memory.classes:
        holders = [entry for entry in reversed(memory.manifest.stores) if label in entry.live]
        left = per_class
        # those of few samples first; what does not divide goes to the older ones
        for others, entry in enumerate(sorted(holders, key=lambda entry: entry.live[label])):
            quotas[entry.sha256, label] = min(entry.live[label], left // (len(holders) - others))
            left -= quotas[entry.sha256, label]
    return quotas


def _check_dense(codec: str, done: str) -> None:
    if get_sample_codec(codec).kind is Kind.EXEMPLAR:
        raise UsageError(
            f"exemplars (codec {codec}) are not {done}, which would choose among them again; trim them to fewer "
            "(krstore memory trim), or name a codec that keeps all it is given"
        )


def _folder(what: str, *told: object) -> str:
    """Return the name of the folder to work in, another for everything that is done differently."""
    return f"{what}-{hashlib.sha256(msgspec.json.encode(told)).hexdigest()[:16]}"


def _check_samples(memory: Collection) -> int:
    if not len(memory):
        raise UsageError(f"the memory {memory.path} is empty; append stores to it first")
    return len(memory)


def _named(memory: Collection, names: Sequence[str] | None) -> list[Entry]:
    known = {entry.name: entry for entry in memory.manifest.stores}
    for name in names or ():
        if name not in known:
            raise UnknownNameError("store", name, known)
    return [entry for name, entry in known.items() if names is None or name in names]


def _shared_networks(memory: Collection) -> dict[str, int]:
    """Return the size, by hash, of each network that several stores decode with and can go on decoding with."""
    users = Counter(
        network
        for entry in memory.manifest.stores
        if get_sample_codec(entry.codec).shares_decoder
        for network in set(entry.networks.values())
    )
    return {network: memory.folder.network_bytes(network) for network, count in users.items() if count > 1}


def _own_bytes(memory: Collection, entry: Entry, kept: Mapping[str, int]) -> int:
    return entry.bytes + sum(
        memory.folder.network_bytes(network) for network in entry.networks.values() if network not in kept
    )


@contextlib.contextmanager
def _naming(entry: Entry) -> Iterator[None]:
    try:
        yield
    except TargetUnreachableError as error:
        raise TargetUnreachableError(f"store {entry.name} of {entry.samples} samples: {error}") from error
