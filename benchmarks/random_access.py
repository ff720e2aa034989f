"""Reading 100 random samples of a store against reading all, decoding speed, and what a decoder costs a sample.

Ten thousand samples: the archive's, repeated in turn as they are and mirrored. Networks are trained for a few
iterations only, as their quality does not matter here.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import krstore
from benchmarks._common import Run, archive_facts, main, medians
from krstore.source import Ids, Source
from krstore.testing import ArraySource

SAMPLES, PICKED, REPEATS = 10_000, 100, 5

FRESH = """
import sys, time, numpy, torch, krstore
ids = numpy.random.default_rng(0).choice(int(sys.argv[2]), int(sys.argv[3]), replace=False)
began = time.perf_counter()
krstore.open(sys.argv[1], device="cpu").read(ids)
print(time.perf_counter() - began)
"""


@dataclass(frozen=True)
class Case:
    """A codec with the settings to measure it at, and the most that reading 100 of 10,000 may cost."""

    codec: str
    limit: float
    ratio: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("raw", 0.05),
    Case("pq", 0.2, 20),
    Case("transform", 0.2, 100, {"iterations": 100, "width": 72}),
    Case("autoencoder", 0.2, 40, {"iterations": 20}),
    Case("krnet", 0.2, 40, {"iterations": 20}),
)


def measure(run: Run) -> dict[str, Any]:
    """Encode with every codec and time the reads."""
    source = _repeated(run.source(), 400 if run.tiny else SAMPLES)
    picked, repeats = (10, 1) if run.tiny else (PICKED, REPEATS)
    rows = [_case(case, source, run, picked, repeats) for case in (CASES[::4] if run.tiny else CASES)]
    return {"archive": archive_facts(source), "picked": picked, "repeats": repeats, "rows": rows}


def _case(case: Case, source: ArraySource, run: Run, picked: int, repeats: int) -> dict[str, Any]:
    path = run.folder / f"{case.codec}.krs"
    ratio = case.ratio and (10.0 if run.tiny else case.ratio)
    settings = case.settings | ({"iterations": 5} if run.tiny and case.settings else {})
    store = krstore.encode(source, path, case.codec, ratio=ratio, settings=settings, device="cpu")
    everything, rng = np.arange(len(store)), np.random.default_rng(0)
    opened = medians(
        {
            "all": lambda: store.read(everything),
            "some": lambda: store.read(rng.choice(everything, picked, replace=False)),
        },
        repeats,
    )
    fresh = _medians_of_processes(path, len(store), {"all": len(store), "some": picked}, min(3, repeats))
    return {
        "codec": case.codec,
        "ratio": store.ratio,
        "limit": case.limit,
        "all": opened["all"].wall,
        "some": opened["some"].wall,
        "share": opened["some"].wall / opened["all"].wall,
        "fresh_all": fresh["all"],
        "fresh_some": fresh["some"],
        "fresh_share": fresh["some"] / fresh["all"],
        "samples_per_second": len(store) / opened["all"].wall,
        "multiplications": _multiplications(store, everything[: min(256, len(store))]),
    }


def _medians_of_processes(path: Path, samples: int, counts: dict[str, int], repeats: int) -> dict[str, float]:
    """Return the median seconds from opening the store to its samples, each time in a new process."""

    def once(count: int) -> float:
        command = [sys.executable, "-c", FRESH, str(path), str(samples), str(count)]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    times = [{name: once(count) for name, count in counts.items()} for _ in range(repeats)]
    return {name: float(np.median([each[name] for each in times])) for name in counts}


def _multiplications(store: krstore.Store, rows: Ids) -> float | None:
    """Return a decoder's multiplications a sample; `None` when it is no network."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        store.decode(rows)
    operations = int(counter.get_total_flops())
    return operations / 2 / len(rows) if operations else None


def _repeated(source: Source, samples: int) -> ArraySource:
    """Return so many samples of the source, each second round of them mirrored along the last axis."""
    ids = np.arange(samples)
    features = source.read(ids % source.spec.samples)
    mirrored = (ids // source.spec.samples) % 2 == 1
    features[mirrored] = features[mirrored][..., ::-1]
    labels = None if source.labels is None else source.labels[ids % source.spec.samples]
    return ArraySource(features, labels)


if __name__ == "__main__":
    main("random_access", __doc__, measure)
