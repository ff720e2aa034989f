"""Exemplars: every method that lives on them, with every way to choose them, on small images.

`--data` names a folder with `train.h5` and `test.h5`, twenty classes of 16x16 images (`python -m benchmarks.archives
small`). Ten classes are learnt at first, then five tasks of two, at the preset `small`, with weight transfer and
fine-tuning on the balanced exemplars for all; with one method also adjusted exemplars, and other ways to choose them.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from benchmarks._common import Run, main
from benchmarks.incremental.runs import figures, resumed
from krstore.learning.building import build_run_config
from krstore.learning.data import Dataset, open_dataset
from krstore.testing import ArraySource

SEEDS = (0, 1, 2)
METHODS = ("lwf", "icarl", "bic", "lucir", "wa")
SELECTIONS = ("random", "herding", "mnemonics")
OTHERS = ("kmeans", "mnemonics_released")
ONE = "lucir"
ARMS: dict[str, Any] = {"transfer": True, "finetuning.epochs": 20, "finetuning.schedule": "cosine"}
MNEMONICS: dict[str, Any] = {"epochs": 2, "outer_steps": 20, "steps": 5, "rate": 10.0, "halve": 1}
ADJUSTING = {"memory.adjust.epochs": 12, "memory.adjust.rate": 10.0, "memory.adjust.halve": 10}
TINY: dict[str, Any] = {
    "base": 1, "steps": 2, "base_training.epochs": 1, "training.epochs": 1, "finetuning.epochs": 1,
    "memory.per_class": 4, "memory.exemplar_settings.outer_steps": 1, "memory.adjust.epochs": 1,
}  # fmt: skip

__all__ = ["images"]

Case = tuple[str, str, bool]


def measure(run: Run) -> dict[str, Any]:
    """Run every case with every seed, all cases of a seed first; rows of an earlier run are kept."""
    dataset, chosen = images(run), _cases()[-1:] if run.tiny else _cases()
    cases = [
        ((*case, seed), functools.partial(_learnt, run, dataset, case, seed))
        for seed in (SEEDS[:1] if run.tiny else SEEDS)
        for case in chosen
    ]
    return {"rows": resumed(run, ("method", "selection", "adjust", "seed"), cases)}


def images(run: Run) -> Dataset:
    """Return the images to learn from: the given ones, or noise when tiny."""
    if run.tiny:
        pixels = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), np.uint8)
        labels = np.arange(60) % 3
        return Dataset.of(ArraySource(pixels, labels), ArraySource(pixels[:30], labels[:30]))
    if run.data is None or not run.data.is_dir():
        raise SystemExit("name a folder with train.h5 and test.h5, images of 16x16, with --data or KRSTORE_DATA")
    return open_dataset(run.data)


def _cases() -> list[Case]:
    """Return method, selection, and whether old exemplars are adjusted."""
    plain = [(method, selection, False) for method in METHODS for selection in SELECTIONS]
    others = [(ONE, selection, False) for selection in OTHERS]
    return plain + others + [(ONE, selection, True) for selection in SELECTIONS]


def _learnt(run: Run, dataset: Dataset, case: Case, seed: int) -> dict[str, Any]:
    method, selection, adjust = case
    settings = {**ARMS, "data": "given", "memory.exemplars": selection, "seed": seed, "device": "cpu"}
    if selection == "mnemonics":
        settings |= {f"memory.exemplar_settings.{name}": value for name, value in MNEMONICS.items()}
    if adjust:
        settings |= ADJUSTING
    if run.tiny:
        settings |= TINY
    return figures(run, build_run_config(method, settings, preset="small"), dataset)


if __name__ == "__main__":
    main("exemplars", __doc__, measure)
