"""MEMO's table: a hundred classes from none in twenty steps of five, every method at the bytes that DER comes to.

`--data` names a folder with `train.h5` and `test.h5`, all of CIFAR-100 at 16x16 (`python -m benchmarks.archives
halved`). Preset `small`, six epochs a task, in bfloat16. The budget is that of twenty ResNet-8 and of 2,000 lossless
images; DER's classifier, of all their embeddings, takes the bytes of some 700 of these, and what others save on
networks, they have in images. MEMO has what its authors' code adds, an auxiliary loss and aligned weights, and, as
there, blocks shared by all tasks that learn with each. DER's classifier is trained anew on its exemplars for ten
epochs; fine-tuned, the others learn as long from theirs, balanced, and MEMO's weights are not aligned.
"""

from __future__ import annotations

import functools
from typing import Any

from benchmarks._common import Run, main
from benchmarks.incremental.exemplars import images
from benchmarks.incremental.runs import AS_RELEASED, TUNED, figures, resumed
from krstore.backbones import resnet8
from krstore.learning.building import build_run_config
from krstore.learning.data import Dataset
from krstore.learning.network import stored_bytes

STEPS, SHOWN, IMAGE = 20, 2000, 620  # bytes of a lossless image of 16x16, about
SETTINGS: dict[str, Any] = {
    "data": "given", "device": "cpu", "precision": "bfloat16", "base": 0, "steps": STEPS, "training.epochs": 6,
    "memory.exemplars": "herding",
}  # fmt: skip
FINETUNED: dict[str, Any] = {**TUNED, "finetuning.epochs": 10}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "replay": ("replay", {}),
    "icarl": ("icarl", {}),
    "wa": ("wa", {}),
    "der": ("der", {"finetuning.epochs": 10}),
    "memo": ("memo", AS_RELEASED),
    "replay, fine-tuned": ("replay", FINETUNED),
    "icarl, fine-tuned": ("icarl", FINETUNED),
    "wa, fine-tuned": ("wa", FINETUNED),
    "memo, fine-tuned": ("memo", {**FINETUNED, "options.auxiliary": 1.0}),
    "memo-2, fine-tuned": ("memo", {**FINETUNED, "options.auxiliary": 1.0, "options.specialised": 2}),
}
TINY = {"steps": 3, "base_training.epochs": 1, "training.epochs": 1}


def measure(run: Run) -> dict[str, Any]:
    """Run every method; rows of an earlier run are kept."""
    dataset = images(run)
    budget = 20_000 + STEPS * stored_bytes(resnet8()) + SHOWN * IMAGE
    cases = [
        ((name, 0), functools.partial(_learnt, run, dataset, method, {**own, "budget": budget}))
        for name, (method, own) in list(CASES.items())[: 1 if run.tiny else None]
    ]
    return {"budget": budget, "rows": resumed(run, ("name", "seed"), cases)}


def _learnt(run: Run, dataset: Dataset, method: str, settings: dict[str, Any]) -> dict[str, Any]:
    config = build_run_config(method, SETTINGS | settings | (TINY if run.tiny else {}), preset="small")
    return figures(run, config, dataset)


if __name__ == "__main__":
    main("twenty_steps", __doc__, measure)
