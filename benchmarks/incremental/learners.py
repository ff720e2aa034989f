"""Learners: every method on one protocol, with backward and forward transfer, of predictions and of representations.

Data and tasks are those of `exemplars`, at the preset `small` as it is: ten epochs a task, twenty for DER and thirty of
its classifier on exemplars, thirty for LwF-MC and M2KD. LwF has exemplars too. MEMO is measured as the paper has it,
and with what its authors' code adds. Beside each run a network of random weights learns each task alone, for as many
epochs, from what the method sees (forward transfer), and after each step a linear classifier of the embeddings is
fitted to training samples of all classes seen (transfer of representations).
"""

from __future__ import annotations

import functools
from typing import Any

from benchmarks._common import Run, main
from benchmarks.incremental.exemplars import images
from benchmarks.incremental.runs import AS_RELEASED, on_small_images, resumed

SEEDS = (0, 1, 2)
MEASURED = {"alone": True, "probe": True}
FROZEN = {"frozen_until": "layer2.0"}  # what stays of KRIL's network
CASES: dict[str, dict[str, Any]] = {
    "finetune": {}, "ewc": {}, "mas": {}, "gfr": {}, "lwf-mc": {}, "m2kd": {},
    "m2kd, no pruning": {"options.pruning": False}, "lwf": {}, "replay": {}, "kril": FROZEN, "kril-oracle": FROZEN,
    "icarl": {}, "bic": {}, "wa": {}, "lucir": {}, "memo": {}, "memo, two blocks": {"options.specialised": 2},
    "memo, as released": AS_RELEASED, "der": {}, "der, pruned": {"options.pruning": True}, "joint": {},
}  # fmt: skip


def measure(run: Run) -> dict[str, Any]:
    """Run every method with every seed, all methods of a seed first; rows of an earlier run are kept."""
    dataset = images(run)
    cases = [
        (
            (name, seed),
            functools.partial(on_small_images, run, dataset, name.partition(",")[0], {**own, **MEASURED, "seed": seed}),
        )
        for seed in (SEEDS[:1] if run.tiny else SEEDS)
        for name, own in (CASES if not run.tiny else {"finetune": {}}).items()
    ]
    return {"rows": resumed(run, ("name", "seed"), cases)}


if __name__ == "__main__":
    main("learners", __doc__, measure)
