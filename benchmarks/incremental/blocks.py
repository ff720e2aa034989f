"""What the blocks of a network do while it learns task after task: the analysis that MEMO begins with, on small images.

Data and tasks are those of `exemplars`, replayed by a ResNet-32 from twenty exemplars a class, in bfloat16, sixty
epochs and then thirty a task. By block: the norm of its gradients in each epoch of the last task, how far its weights
move within each task, and how alike its feature maps of the first task's test images stay, by centred kernel alignment
(MEMO, Fig. 3); and how much of their variance is that of one image, which such an alignment then follows.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from benchmarks._common import Run, main
from benchmarks.incremental.exemplars import images
from krstore.learning.blocks import alignment, read_analysis
from krstore.learning.building import build_run_config
from krstore.learning.harness import learn

SETTINGS: dict[str, Any] = {
    "data": "given", "device": "cpu", "precision": "bfloat16", "model": "krstore.backbones:resnet32",
    "memory.exemplars": "herding", "memory.per_class": 20, "analyse": True, "base_training.epochs": 60,
    "training.epochs": 30,
}  # fmt: skip
TINY: dict[str, Any] = {
    "model": "krstore.backbones:resnet8", "base": 1, "steps": 2, "base_training.epochs": 1, "training.epochs": 2,
}  # fmt: skip


def measure(run: Run) -> dict[str, Any]:
    """Learn, and return a row for each block, the first one first."""
    config = build_run_config("replay", SETTINGS | (TINY if run.tiny else {}), preset="small")
    result = learn(config, run.folder / "run", dataset=images(run))
    steps = [*read_analysis(run.folder / "run").values()]
    rows = [
        {
            "name": f"block {block + 1}",
            "gradients": steps[-1]["gradients"][:, block].tolist(),
            "moved": [float(found["moved"][block]) for found in steps],
            "alike": [alignment(steps[0]["kernels"][block], found["kernels"][block]) for found in steps],
            "largest": [_largest(found["kernels"][block]) for found in steps],
        }
        for block in range(len(steps[0]["kernels"]))
    ]
    return {"accuracy": [step.accuracy for step in result.steps], "rows": rows}


def _largest(kernel: Tensor) -> float:
    """Return the share of the variance of feature maps that is the most outlying sample's."""
    return float(kernel.diagonal().max() / kernel.diagonal().sum())


if __name__ == "__main__":
    main("blocks", __doc__, measure)
