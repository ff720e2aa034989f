"""Quality against number: what one byte budget of memory is best spent on, on small images.

Data and tasks are those of `exemplars`, at the preset `small`, without weight transfer and fine-tuning. The
budget is what some twenty lossless images of each class take. Against as many of them as fit, for iCaRL, LUCIR and
plain replay: three times as many through lossy codecs, new samples through them too or as they are; and all images of
all classes through transform, for replay and KRIL. Fine-tuning without a memory, and learning from all samples, are the
bounds.
"""

from __future__ import annotations

import functools
from typing import Any

from benchmarks._common import Run, main
from benchmarks.incremental.exemplars import images
from benchmarks.incremental.runs import on_small_images, resumed

SEEDS = (0, 1, 2)
BUDGET = 240_000
LOSSLESS = {"memory.exemplars": "herding"}
WEBP = {"memory.exemplars": "herding", "memory.per_class": 60, "memory.codec": "webp"}
TRANSFORM = {"memory.exemplars": "herding", "memory.per_class": 60, "memory.codec": "transform"}
ALL = {"memory.codec": "transform", "memory.preset": "fast", "memory.settings": {"encoder": True}}
AS_THEY_ARE = {"memory.through_codec": False}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "replay, herding, lossless": ("replay", LOSSLESS),
    "replay, herding, 60 by webp": ("replay", WEBP),
    "replay, herding, 60 by webp, new ones as they are": ("replay", WEBP | AS_THEY_ARE),
    "replay, herding, 60 by transform": ("replay", TRANSFORM),
    "replay, herding, 60 by transform, new ones as they are": ("replay", TRANSFORM | AS_THEY_ARE),
    "replay, all by transform": ("replay", ALL),
    "icarl, herding, lossless": ("icarl", LOSSLESS),
    "lucir, herding, lossless": ("lucir", LOSSLESS),
    "lucir, herding, 60 by webp": ("lucir", WEBP),
    "lucir, herding, 60 by webp, new ones as they are": ("lucir", WEBP | AS_THEY_ARE),
    "lucir, herding, 60 by transform": ("lucir", TRANSFORM),
    "lucir, herding, 60 by transform, new ones as they are": ("lucir", TRANSFORM | AS_THEY_ARE),
    "kril, all by transform": ("kril", {**ALL, "frozen_until": "layer2.0"}),
    "finetune": ("finetune", {}),
    "joint": ("joint", {}),
}


def measure(run: Run) -> dict[str, Any]:
    """Run every case with every seed, all cases of a seed first; rows of an earlier run are kept."""
    dataset, budget = images(run), 24_000 if run.tiny else BUDGET
    cases = [
        ((name, seed), functools.partial(on_small_images, run, dataset, method, {**_sized(own, budget), "seed": seed}))
        for seed in (SEEDS[:1] if run.tiny else SEEDS)
        for name, (method, own) in list(CASES.items())[: 1 if run.tiny else None]
    ]
    return {"budget": budget, "rows": resumed(run, ("name", "seed"), cases)}


def _sized(settings: dict[str, Any], budget: int) -> dict[str, Any]:
    return settings | ({"memory.budget": budget} if settings else {})


if __name__ == "__main__":
    main("compressed", __doc__, measure)
