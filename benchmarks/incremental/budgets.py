"""Accuracy against bytes of memory: KRIL with every codec, with fewer raw features, and with images, at equal bytes.

`--data` names a folder as `learning` takes it, with a folder `images` in it: `train.h5` and `test.h5`, all of CIFAR-100
as uint8. B50, T = 10, *all* 500 samples of a class, an epoch a task; the budget is that of the memory when all 100
classes have come. Images pass through the frozen network up to `layer3.0` each time, so that the same layers are
trained. Raw features and images are fewer, and get four epochs. Twenty images of each class are the exemplars that the
papers have. Plain replay of features by transform, with new ones through the codec and as they are, shows what the
latter costs a method that nothing else holds back.
"""

from __future__ import annotations

import functools
from typing import Any

from benchmarks._common import Run, main
from benchmarks.incremental.learning import IMAGES, learnt
from benchmarks.incremental.runs import resumed

MEGABYTE = 1_000_000
BUDGETS = (1, 2, 5, 10, 25)
TWENTY_OF_EACH = 6.1  # megabytes of so many images a class
SEEDED = (1, 5)
SEEDS = (0, 1, 2)
FEW_ITERATIONS = {"iterations": 400}
RAW = {"training.epochs": 4, "memory.codec": "raw"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "kril, transform": ("kril", {"memory.codec": "transform"}),
    "kril, transform, new features as they are": (
        "kril", {"memory.codec": "transform", "memory.through_codec": False},
    ),
    "kril, pq": ("kril", {"memory.codec": "pq"}),
    "kril, autoencoder": ("kril", {"memory.codec": "autoencoder", "memory.settings": FEW_ITERATIONS}),
    "kril, krnet": ("kril", {"memory.codec": "krnet", "memory.settings": FEW_ITERATIONS}),
    "kril, raw features": ("kril", RAW),
    "kril, raw images": ("kril", {**IMAGES, **RAW}),
    "replay, transform": ("replay", {"memory.codec": "transform"}),
    "replay, transform, new features as they are": (
        "replay", {"memory.codec": "transform", "memory.through_codec": False},
    ),
    "replay, raw images": ("replay", {**IMAGES, **RAW}),
}  # fmt: skip


def measure(run: Run) -> dict[str, Any]:
    """Run every case at every budget, and the oracle without one; rows of an earlier run are kept."""
    cases = [
        ((name, megabytes, seed), functools.partial(learnt, run, method, settings))
        for name, megabytes, seed, method, settings in _runs(run)
    ]
    return {"rows": resumed(run, ("name", "megabytes", "seed"), cases)}


def _runs(run: Run) -> list[tuple[str, float | None, int, str, dict[str, Any]]]:
    """Return name, budget, seed, method and settings of each run: first one seed of all, then the others."""
    if run.tiny:
        settings = {"memory.codec": "transform", "memory.budget": 12_000, "memory.preset": "linear"}
        return [("kril, transform", 0.012, 0, "kril", settings)]
    shared = {"per_class": 500, "training.epochs": 1}
    found = []
    for seed in SEEDS:
        found.append(("oracle", None, seed, "kril", {**shared, "memory.codec": "raw", "seed": seed}))
        for megabytes in BUDGETS if seed == 0 else SEEDED:
            for name, (method, own) in CASES.items():
                settings = {**shared, **own, "memory.budget": megabytes * MEGABYTE, "seed": seed}
                found.append((name, megabytes, seed, method, settings))
    twenty = {**shared, **IMAGES, **RAW, "memory.per_class": 20, "seed": 0}
    found.append(("replay, raw images", TWENTY_OF_EACH, 0, "replay", twenty))
    return found


if __name__ == "__main__":
    main("budgets", __doc__, measure)
