"""Equal memory: methods at the same bytes of network, what they keep beside it, and memory together, on small images.

Data and tasks are those of `exemplars`, at the preset `small`: ten epochs a task, twenty for DER. All but KRIL, and
replay of all images, fine-tune on the balanced exemplars for twenty epochs when a task has been learnt, DER its
classifier alone and for thirty. MEMO has what its authors' code adds. KRIL keeps images, which pass through the first
stages again, or their features, which the frozen first stages, counted in the network, have made. Exemplars are
lossless and fill what the networks leave of the budget, or are as many as said of each class, and lossy: of a codec as
exact as the budget allows.
"""

from __future__ import annotations

import functools
from typing import Any

from benchmarks._common import Run, main
from benchmarks.incremental.exemplars import images
from benchmarks.incremental.runs import AS_RELEASED, TUNED, figures, resumed
from krstore.errors import TargetUnreachableError
from krstore.learning.building import build_run_config
from krstore.learning.data import Dataset

BUDGETS = (450_000, 900_000, 1_600_000, 2_200_000)
SEEDED = (900_000, 2_200_000)
SEEDS = (0, 1, 2)
ALL = {"memory.codec": "transform", "memory.preset": "fast", "memory.settings": {"encoder": True}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "replay": ("replay", {**TUNED, "memory.exemplars": "herding"}),
    "icarl": ("icarl", TUNED),
    "wa": ("wa", TUNED),
    "bic": ("bic", TUNED),
    "lucir": ("lucir", TUNED),
    "lucir, 100 by webp": ("lucir", {**TUNED, "memory.codec": "webp", "memory.per_class": 100}),
    "lucir, 100 by transform": ("lucir", {**TUNED, "memory.codec": "transform", "memory.per_class": 100}),
    "replay, all by transform": ("replay", ALL),
    "kril, all by transform": ("kril", {**ALL, "frozen_until": "layer2.0"}),
    "kril, all features by transform": ("kril", {**ALL, "frozen_until": "layer2.0", "features": True}),
    "memo": ("memo", {**TUNED, **AS_RELEASED}),
    "memo-2": ("memo", {**TUNED, **AS_RELEASED, "options.specialised": 2}),
    "der": ("der", {}),
    "der, pruned": ("der", {"options.pruning": True, "options.sparsity": 0.5}),
}


def measure(run: Run) -> dict[str, Any]:
    """Run every case at every budget with one seed, and at some with the others; rows of an earlier run are kept."""
    dataset = images(run)
    if run.tiny:
        wanted = [("replay", 20_000, 0), ("der", 20_000, 0)]
    else:
        wanted = [(name, size, seed) for seed in SEEDS for name in CASES for size in (SEEDED if seed else BUDGETS)]
    cases = [(key, functools.partial(_learnt, run, dataset, *key)) for key in wanted]
    return {"rows": resumed(run, ("name", "budget", "seed"), cases)}


def _learnt(run: Run, dataset: Dataset, name: str, budget: int, seed: int) -> dict[str, Any]:
    method, own = CASES[name]
    settings = {"data": "given", "device": "cpu", **own, "budget": budget, "seed": seed}
    if run.tiny:
        settings |= {"model": "torch.nn:Flatten", "flip": False, "base": 1, "steps": 2, "finetuning.epochs": 1}
        settings |= {"base_training.epochs": 1, "training.epochs": 1}
    try:
        return figures(run, build_run_config(method, settings, preset="small"), dataset)
    except TargetUnreachableError as error:
        return {"unreachable": str(error)}


if __name__ == "__main__":
    main("equal_memory", __doc__, measure)
