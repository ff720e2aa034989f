"""What the earliest task's features lose as tasks come: merged again and again, or left alone beside a shared decoder.

The archive's classes are cut into eleven tasks. After each, the memory is one store of everything so far, made of what
the last one recites and of the new features (the self-taught update of the KRNet paper, Sec. III-C); or one of all but
the first task, which keeps its own (the paper's double KRNet: the second task is the earliest that is merged); or a
store more.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks._common import Run, archive_facts, main
from benchmarks.case import nmse
from krstore.memory import Memory
from krstore.source import Source, Subset
from krstore.store.writer import encode

TASKS, RATIO, SAMPLES = 11, 40, 2200
KRNET = {"iterations": 400}
APPENDED = None
CASES: dict[str, tuple[str, int | None, dict[str, Any]]] = {  # codec, the first task that is merged, options
    "krnet, single, merged": ("krnet", 0, {"settings": KRNET}),
    "krnet, double, merged": ("krnet", 1, {"settings": KRNET}),
    "transform, linear, merged": ("transform", 0, {"preset": "linear"}),
    "transform, linear, appended": ("transform", APPENDED, {"preset": "linear"}),
    "transform, fast, appended": ("transform", APPENDED, {"preset": "fast", "settings": {"encoder": True}}),
}


def measure(run: Run) -> dict[str, Any]:
    """Let tasks come, and compare features of the earliest one with what the memory decodes them to."""
    source = run.source()
    tasks = _tasks(source, 3 if run.tiny else TASKS, source.spec.samples if run.tiny else SAMPLES)
    done = {row["name"]: row for row in run.earlier.get("rows", [])}
    rows: list[dict[str, Any]] = []
    for name, (codec, merged, options) in CASES.items():
        if run.tiny and "linear" not in name:
            continue
        row = done.get(name)
        if row is None:
            row = {"name": name} | _grown(run, name, tasks, codec, merged, options)
        rows.append(row)
        run.save({"archive": archive_facts(source), "ratio": RATIO, "rows": rows})
    return {"archive": archive_facts(source), "ratio": RATIO, "rows": rows}


def _grown(
    run: Run, name: str, tasks: list[Subset], codec: str, merged: int | None, options: dict[str, Any]
) -> dict[str, Any]:
    memory, errors, sizes = Memory.create(run.folder / name, device="cpu"), [], []
    ratio, earliest = 4 if run.tiny else RATIO, merged or 0
    followed = tasks[earliest].read(np.arange(tasks[earliest].spec.samples))
    before = sum(task.spec.samples for task in tasks[:earliest])
    for number, task in enumerate(tasks):
        path = run.folder / f"{name}-{number}.krs"
        if merged is not None and number > merged:
            memory.append(encode(task, path, "raw"))
            memory.merge(codec, names=[entry.name for entry in memory.manifest.stores[merged:]], ratio=ratio, **options)
        elif merged is None and number:
            decoder = memory.stores[0]
            network = sum(map(memory.folder.network_bytes, memory.manifest.networks))
            limit = task.spec.bytes // ratio + network
            memory.append(encode(task, path, codec, max_bytes=limit, decoder=decoder, device="cpu", **options))
        else:
            memory.append(encode(task, path, codec, ratio=ratio, device="cpu", **options))
        if number >= earliest:
            errors.append(nmse(followed, memory.samples.read(before + np.arange(len(followed)))))
            sizes.append(memory.bytes)
    return {"nmse": errors, "bytes": sizes}


def _tasks(source: Source, count: int, samples: int) -> list[Subset]:
    """Return tasks of equally many samples, those of class after class, the first task twice as large."""
    assert source.labels is not None
    rng = np.random.default_rng(0)
    ids = rng.permutation(source.spec.samples)[:samples]
    ids = ids[np.argsort(source.labels[ids], kind="stable")]
    bounds = np.linspace(0, len(ids), count + 2).astype(int)[1:]
    return [Subset(source, part) for part in np.split(ids, bounds[1:-1])]


if __name__ == "__main__":
    main("generations", __doc__, measure)
