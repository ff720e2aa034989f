"""Methods that keep networks, or let theirs grow: what they learn, and what the networks take, on small images.

Data as of `exemplars`, at the preset `small`. Without exemplars, five equal tasks and thirty epochs: M2KD with and
without pruning, LwF-MC with and without either of its two additions, fine-tuning. With twenty exemplars a class, ten
classes and then five tasks of two, and fine-tuning on the balanced exemplars for all: DER with and without pruning and
without its auxiliary loss, MEMO, MEMO-2, MEMO with what its authors' code adds, iCaRL.
"""

from __future__ import annotations

import functools
from typing import Any

from benchmarks._common import Run, main
from benchmarks.incremental.exemplars import images
from benchmarks.incremental.runs import AS_RELEASED, TUNED, on_small_images, resumed

SEEDS = (0, 1, 2)
ALONE: dict[str, Any] = {"base": 0, "steps": 5, "base_training.epochs": 30, "training.epochs": 30}
LWF_MC = {"options.pruning": False, "options.multi_model": False, "options.auxiliary": 0.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "finetune": ("finetune", ALONE),
    "lwf-mc": ("m2kd", {**ALONE, **LWF_MC}),
    "lwf-mc, auxiliary distillation": ("m2kd", {**ALONE, **LWF_MC, "options.auxiliary": 1.0}),
    "lwf-mc, multi-model distillation": ("m2kd", {**ALONE, **LWF_MC, "options.multi_model": True}),
    "m2kd, no pruning": ("m2kd", {**ALONE, "options.pruning": False}),
    "m2kd": ("m2kd", ALONE),
    "icarl": ("icarl", TUNED),
    "der": ("der", {}),
    "der, no auxiliary loss": ("der", {"options.auxiliary": 0.0}),
    "der, pruned": ("der", {"options.pruning": True}),
    "memo": ("memo", TUNED),
    "memo-2": ("memo", {**TUNED, "options.specialised": 2}),
    "memo, auxiliary loss, aligned": ("memo", {**TUNED, **AS_RELEASED}),
}


def measure(run: Run) -> dict[str, Any]:
    """Run every case with every seed, all cases of a seed first; rows of an earlier run are kept."""
    dataset = images(run)
    cases = [
        ((name, seed), functools.partial(on_small_images, run, dataset, method, {**own, "seed": seed}))
        for seed in (SEEDS[:1] if run.tiny else SEEDS)
        for name, (method, own) in list(CASES.items())[: 1 if run.tiny else None]
    ]
    return {"rows": resumed(run, ("name", "seed"), cases)}


if __name__ == "__main__":
    main("growing", __doc__, measure)
