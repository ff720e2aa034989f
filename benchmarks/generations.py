"""What the earliest task's features lose as tasks come: merged again and again, or left alone beside a shared decoder.

The archive's classes are cut into eleven tasks. After each, the memory is one store of everything so far, made of what
the last one recites and of the new features (the self-taught update of the KRNet paper, Sec. III-C); or a store more.
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
CASES: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "krnet, merged": ("krnet", True, {"settings": KRNET}),
    "transform, linear, merged": ("transform", True, {"preset": "linear"}),
    "transform, linear, appended": ("transform", False, {"preset": "linear"}),
    "transform, fast, appended": ("transform", False, {"preset": "fast", "settings": {"encoder": True}}),
}


def measure(run: Run) -> dict[str, Any]:
    """Let tasks come, and compare the first one's features with what the memory decodes them to."""
    source = run.source()
    tasks = _tasks(source, 3 if run.tiny else TASKS, source.spec.samples if run.tiny else SAMPLES)
    first = tasks[0].read(np.arange(tasks[0].spec.samples))
    done = {row["name"]: row for row in run.earlier.get("rows", [])}
    rows: list[dict[str, Any]] = []
    for name, (codec, merging, options) in CASES.items():
        if run.tiny and "linear" not in name:
            continue
        row = done.get(name)
        if row is None:
            row = {"name": name} | _grown(run, name, tasks, first, codec, merging, options)
        rows.append(row)
        run.save({"archive": archive_facts(source), "ratio": RATIO, "rows": rows})
    return {"archive": archive_facts(source), "ratio": RATIO, "rows": rows}


def _grown(
    run: Run, name: str, tasks: list[Subset], first: np.ndarray[Any, Any], codec: str, merging: bool,
    options: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    memory, errors, sizes = Memory.create(run.folder / name, device="cpu"), [], []
    ratio = 4 if run.tiny else RATIO
    for number, task in enumerate(tasks):
        path = run.folder / f"{name}-{number}.krs"
        if merging and number:
            memory.append(encode(task, path, "raw"))
            memory.merge(codec, ratio=ratio, **options)
        elif number:
            decoder = memory.stores[0]
            network = sum(map(memory.folder.network_bytes, memory.manifest.networks))
            limit = task.spec.bytes // ratio + network
            memory.append(encode(task, path, codec, max_bytes=limit, decoder=decoder, device="cpu", **options))
        else:
            memory.append(encode(task, path, codec, ratio=ratio, device="cpu", **options))
        errors.append(nmse(first, memory.samples.read(np.arange(len(first)))))
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
