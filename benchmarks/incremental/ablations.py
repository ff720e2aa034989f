"""The KRNet paper's ablations: what its losses, its two networks and its frozen layers are worth to KRIL.

Tasks and preset are those of `learning`, data as for `budgets`. Without the auxiliary loss of Eq. 2 (Table III);
without that of Eq. 3 (Table IV); one krnet for all tasks instead of one for the first and one for the rest (Fig. 7):
krnet at a ratio of 100, 400 iterations a fit, after the task has been learnt from its features as they are, so that Eq.
3's network is the one that the paper has. More of ResNet-32's layers fixed (Table V): images pass through them
once, and every feature is kept as it is.
"""

from __future__ import annotations

import functools
from typing import Any

from benchmarks._common import Run, main
from benchmarks.incremental.learning import IMAGES, learnt
from benchmarks.incremental.runs import resumed

SEEDS = (0, 1, 2)
KRNET: dict[str, Any] = {
    "memory.codec": "krnet", "memory.ratio": 100, "memory.settings": {"iterations": 400}, "memory.through_codec": False,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "krnet": ("kril", KRNET),
    "krnet, without L_aux": ("kril", {**KRNET, "options.auxiliary": 0}),
    "krnet, without L_kr2": ("kril", {**KRNET, "memory.task_model": False}),
    "krnet, single": ("kril", {**KRNET, "memory.update": "merge"}),
    **{
        f"raw features, {layers} layers fixed": (
            "kril-oracle", {**IMAGES, "features": True, "frozen_until": f"layer3.{block}"},
        )
        for block, layers in enumerate((23, 25, 27, 29))
    },
}  # fmt: skip
TINY = {"memory.ratio": 2, "memory.settings": {"iterations": 4}}


def measure(run: Run) -> dict[str, Any]:
    """Run every case with every seed, all cases of a seed first; rows of an earlier run are kept."""
    cases = [
        ((name, seed), functools.partial(learnt, run, method, {"seed": seed, **own, **(TINY if run.tiny else {})}))
        for seed in (SEEDS[:1] if run.tiny else SEEDS)
        for name, (method, own) in list(CASES.items())[: 1 if run.tiny else None]
    ]
    return {"rows": resumed(run, ("name", "seed"), cases)}


if __name__ == "__main__":
    main("ablations", __doc__, measure)
