"""Whether replay keeps up with training: decoded samples a second beside those that a task network trains on.

The task network is the ResNet-32's after `layer3.0` with a classifier, in float32, batches of 128. Stores are read in
random order, with nothing kept in memory, with what has been entropy-decoded kept as far as `cache_bytes` allows by
default, and so that classes take turns beside as many new samples (`mix`); so is a memory of eleven stores with one
decoder. Networks of stores are trained for a few iterations only, as their quality does not matter here.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import krstore
from benchmarks._common import Run, archive_facts, main
from krstore.backbones import resnet32_tail
from krstore.source import Source, Subset

BATCH, SECONDS, STORES = 128, 6.0, 11
CASES: dict[str, dict[str, Any]] = {
    "raw": {},
    "pq": {"ratio": 20},
    "transform": {"ratio": 100, "settings": {"iterations": 100, "width": 72}},
    "autoencoder": {"ratio": 40, "settings": {"iterations": 20}},
    "krnet": {"ratio": 40, "settings": {"iterations": 20}},
}


def measure(run: Run) -> dict[str, Any]:
    """Train for some seconds, then replay every store for as long."""
    source = run.source()
    trained = _rate(_training(source, run.tiny), run.tiny)
    rows = []
    for codec, options in list(CASES.items())[: 2 if run.tiny else None]:
        store = krstore.encode(source, run.folder / f"{codec}.krs", codec, device="cpu", **options)
        rows.append({"name": codec, "file_bytes": store.bytes.file, **_rates(store, run.tiny)})
    memory = _memory(source, run)
    name = f"transform, {len(memory.stores)} stores"
    rows.append({"name": name, "file_bytes": memory.bytes, **_rates(memory, run.tiny)})
    return {"archive": archive_facts(source), "batch": BATCH, "trained": trained, "rows": rows}


def _memory(source: Source, run: Run) -> krstore.Memory:
    """Return a memory of the samples in stores of equal size, with the first one's decoder."""
    memory = krstore.Memory.create(run.folder / "memory", device="cpu")
    options = {"preset": "linear", "ratio": 5} if run.tiny else CASES["transform"]
    decoder = None
    for number, ids in enumerate(np.array_split(np.arange(source.spec.samples), STORES)):
        store = krstore.encode(
            Subset(source, ids), run.folder / f"part{number}.krs", "transform", device="cpu", decoder=decoder, **options
        )
        decoder = decoder or store
        memory.append(store)
    return memory


def _rates(stored: krstore.Store | krstore.Memory, tiny: bool) -> dict[str, float]:
    uncached = _rate(_replayed(stored.replay(batch_size=BATCH, cache_bytes=0, prefetch=0)), tiny)
    kept = stored.replay(batch_size=BATCH, prefetch=0)
    for _ in kept:  # fills the cache
        pass
    cached = _rate(_replayed(kept), tiny)
    return {
        "uncached": uncached,
        "cached": cached,
        "mixed": _rate(_mixed(stored.replay(balance="classes", prefetch=0)), tiny),
    }


def _replayed(replay: krstore.Replay) -> Iterator[int]:
    return (len(y) for _, y in replay.forever())


def _mixed(replay: krstore.Replay) -> Iterator[int]:
    """Yield how many old samples join each batch of new ones."""
    x, y = replay.take(BATCH)
    return (int(batch.replayed.sum()) for batch in replay.mix(itertools.repeat((x, y)), 0.5))


def _training(source: Source, tiny: bool) -> Iterator[int]:
    """Train a task network on random batches of the archive, held in memory; yield the samples of each."""
    assert source.labels is not None
    x = torch.from_numpy(source.read(np.arange(source.spec.samples))).float()
    y = torch.from_numpy(np.unique(source.labels, return_inverse=True)[1])
    body: nn.Module = nn.AdaptiveAvgPool2d(1) if tiny else resnet32_tail()
    network = nn.Sequential(body, nn.Flatten(), nn.Linear(x.shape[1], int(y.max()) + 1))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    while True:
        ids = torch.randint(len(x), (BATCH,))
        loss: Tensor = F.cross_entropy(network(x[ids]), y[ids])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        yield BATCH


def _rate(counts: Iterator[int], tiny: bool) -> float:
    """Return samples a second, after one batch untimed."""
    next(counts)
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < (0.2 if tiny else SECONDS):
        done += next(counts)
    return done / (time.perf_counter() - began)


if __name__ == "__main__":
    main("replay", __doc__, measure)
