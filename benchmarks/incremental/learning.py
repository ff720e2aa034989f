"""Class-incremental learning on one protocol: every method at its fast preset, what it has learnt and what it keeps.

`--data` names a folder with `train.h5` and `test.h5`, features of the ResNet-32's layer `layer3.0` for all of
CIFAR-100, and `weights.safetensors`, its weights after the first fifty classes of the order `lucir`. Ten tasks of five
classes follow. Runs are in bfloat16.
"""

from __future__ import annotations

import functools
from typing import Any

from benchmarks._common import Run, main
from benchmarks.incremental.runs import figures, resumed
from krstore.learning.building import build_run_config
from krstore.learning.data import Dataset
from krstore.testing import example_source

SEEDS = (0, 1, 2)
IMAGES: dict[str, Any] = {
    "images": True, "model": "krstore.backbones:resnet32", "frozen_until": "layer3.0",
    "mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761),
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "finetune": ("finetune", {}),
    "ewc": ("ewc", {}),
    "mas": ("mas", {}),
    "gfr": ("gfr", {}),
    "kril, transform": ("kril", {"memory.settings": {"restore": False}}),
    "kril, transform, restored": ("kril", {}),
    "kril, pq": ("kril", {"memory.codec": "pq", "memory.ratio": 50}),
    "kril, raw (oracle)": ("kril", {"memory.codec": "raw"}),
    "joint": ("joint", {}),
}

__all__ = ["IMAGES", "learnt"]


def measure(run: Run) -> dict[str, Any]:
    """Run every method with every seed; rows of an earlier run are kept."""
    cases = [
        ((name, seed), functools.partial(learnt, run, method, {"seed": seed, **own}))
        for seed in (SEEDS[:1] if run.tiny else SEEDS)
        for name, (method, own) in list(CASES.items())[: 1 if run.tiny else None]
    ]
    return {"rows": resumed(run, ("name", "seed"), cases)}


def learnt(run: Run, method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Run a method at its fast preset, on features or, where the settings say so, on images; return what came of it."""
    settings = dict(settings)
    dataset, given = _tiny() if run.tiny else _given(run, "images" if settings.pop("images", False) else "")
    config = build_run_config(method, {"device": "cpu", **given, **settings}, preset="fast")
    return figures(run, config, dataset)


def _given(run: Run, part: str) -> tuple[Dataset | None, dict[str, Any]]:
    if run.data is None or not run.data.is_dir():
        raise SystemExit(
            "name a folder with train.h5, test.h5 and weights.safetensors, as python -m benchmarks.archives makes it "
            "(incremental), with --data or KRSTORE_DATA"
        )
    return None, {
        "data": str(run.data / part), "weights": str(run.data / "weights.safetensors"), "precision": "bfloat16",
        "model": "krstore.backbones:resnet32_tail",
    }  # fmt: skip


def _tiny() -> tuple[Dataset, dict[str, Any]]:
    dataset = Dataset.of(example_source(60, (4, 6, 6)), example_source(30, (4, 6, 6), seed=1))
    return dataset, {"data": "example", "model": "torch.nn:Flatten", "base": 1, "steps": 2, "training.epochs": 1}


if __name__ == "__main__":
    main("learning", __doc__, measure)
