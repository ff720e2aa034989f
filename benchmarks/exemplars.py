"""Exemplars: every method that lives on them, with every way to choose them, on small images.

`--data` names a folder with `train.h5` and `test.h5`, twenty classes of 16x16 images (`python -m benchmarks.archives
small`). Ten classes are learnt at first, then five tasks of two, at the preset `small`, with weight transfer and
fine-tuning on the balanced exemplars for all.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import numpy as np

from benchmarks._common import Run, main
from krstore.learning.config import build_run_config
from krstore.learning.data import Dataset, open_dataset
from krstore.learning.harness import learn
from krstore.testing import ArraySource

SEEDS = (0, 1, 2)
METHODS = ("lwf", "icarl", "bic", "lucir", "wa")
SELECTIONS = ("random", "herding", "mnemonics")
ADJUSTED = "lucir"
MNEMONICS: dict[str, Any] = {"epochs": 2, "outer_steps": 20, "steps": 5, "rate": 10.0, "halve": 1}
ADJUSTING = {"memory.adjust.epochs": 20, "memory.adjust.rate": 10.0, "memory.adjust.halve": 10}
KEPT = ("last", "average_incremental", "initial_forgetting", "forgetting", "memory_bytes", "seconds")
OTHERS = ("last_cnn", "average_incremental_cnn")

Case = tuple[str, str, bool]


def measure(run: Run) -> dict[str, Any]:
    """Run every case with every seed, all cases of a seed first; rows of an earlier run are kept."""
    dataset = _tiny() if run.tiny else _given(run)
    done = {_key(row): row for row in run.earlier.get("rows", [])}
    rows: list[dict[str, Any]] = []
    for seed in SEEDS[:1] if run.tiny else SEEDS:
        for case in _cases()[-1:] if run.tiny else _cases():
            row = done.pop((*case, seed), None)
            if row is None:
                row = _learnt(run, dataset, case, seed)
                print(f"{' '.join(map(str, (*case, seed))):32} {100 * row['average_incremental']:.2f}", file=sys.stderr)
            rows.append(row)
            run.save({"rows": [*rows, *done.values()]})
    return {"rows": [*rows, *done.values()]}


def _cases() -> list[Case]:
    """Return method, selection, and whether old exemplars are adjusted."""
    plain = [(method, selection, False) for method in METHODS for selection in SELECTIONS]
    return plain + [(ADJUSTED, selection, True) for selection in SELECTIONS]


def _key(row: dict[str, Any]) -> tuple[str, str, bool, int]:
    return row["method"], row["selection"], row["adjust"], row["seed"]


def _learnt(run: Run, dataset: Dataset, case: Case, seed: int) -> dict[str, Any]:
    method, selection, adjust = case
    settings: dict[str, Any] = {"data": "given", "memory.exemplars": selection, "seed": seed, "device": "cpu"}
    if selection == "mnemonics":
        settings |= {f"memory.exemplar_settings.{name}": value for name, value in MNEMONICS.items()}
    if adjust:
        settings |= ADJUSTING
    if run.tiny:
        settings |= {
            "base": 1, "steps": 2, "base_training.epochs": 1, "training.epochs": 1, "finetuning.epochs": 1,
            "memory.per_class": 4, "memory.exemplar_settings.outer_steps": 1, "memory.adjust.epochs": 1,
        }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=run.folder) as folder:
        result = learn(build_run_config(method, settings, preset="small"), folder, dataset=dataset)
    summary = result.summary()
    return {
        "method": method, "selection": selection, "adjust": adjust, "seed": seed,
        "accuracy": [step.accuracy for step in result.steps],
        "classes": np.cumsum([len(task) for task in result.tasks]).tolist(),
        **{figure: summary[figure] for figure in (*KEPT, *OTHERS) if figure in summary},
    }  # fmt: skip


def _given(run: Run) -> Dataset:
    if run.data is None or not run.data.is_dir():
        raise SystemExit("name a folder with train.h5 and test.h5, images of 16x16, with --data or KRSTORE_DATA")
    return open_dataset(run.data)


def _tiny() -> Dataset:
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (60, 16, 16, 3), np.uint8), np.arange(60) % 3
    return Dataset.of(ArraySource(pixels, labels), ArraySource(pixels[:30], labels[:30]))


if __name__ == "__main__":
    main("exemplars", __doc__, measure)
