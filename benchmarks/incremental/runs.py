"""What the benchmarks of learners share: runs that are done are kept, and each becomes a row of the same figures."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import numpy as np

from benchmarks._common import Run
from krstore.errors import KrstoreError
from krstore.learning.building import build_run_config
from krstore.learning.config import RunConfig
from krstore.learning.data import Dataset
from krstore.learning.harness import learn

__all__ = ["AS_RELEASED", "TUNED", "Rows", "figures", "on_small_images", "resumed"]

KEPT = (
    "last", "average_incremental", "average_incremental_later", "forgetting", "initial_forgetting",
    "backward_transfer", "seconds",
)  # fmt: skip
OTHERS = (
    "last_cnn", "average_incremental_cnn", "forward_transfer", "representation_backward_transfer",
    "representation_forward_transfer",
)  # fmt: skip

TUNED: dict[str, Any] = {"finetuning.epochs": 20, "finetuning.batch_size": 32, "finetuning.schedule": "cosine"}
AS_RELEASED: dict[str, Any] = {"options.auxiliary": 1.0, "options.align": True}  # what MEMO's authors' code adds

Rows = list[dict[str, Any]]


def resumed(
    run: Run, names: Sequence[str], cases: Iterable[tuple[tuple[Any, ...], Callable[[], dict[str, Any]]]]
) -> Rows:
    """Return a row for each case, of what it is called by these names and of what it returns.

    Earlier rows are kept; of the other cases only those that are wanted are run.
    """
    done = {tuple(row[name] for name in names): row for row in run.earlier.get("rows", [])}
    rows: Rows = []
    for key, make in cases:
        said = ", ".join(map(str, key))
        row = done.pop(key, None)
        if row is None and not run.wanted(said):
            continue
        if row is None:
            row = dict(zip(names, key, strict=True)) | make()
            found = row.get("unreachable") or f"{100 * row['last']:.2f} {row['bytes']:,}"
            print(f"{said:48} {found}", file=sys.stderr)
        rows.append(row)
        run.save({"rows": [*rows, *done.values()]})
    return [*rows, *done.values()]


def figures(run: Run, config: RunConfig, dataset: Dataset | None = None) -> dict[str, Any]:
    """Run a method, or go on with a run that was stopped, and return what came of it.

    Bytes are all that it keeps between tasks.
    """
    folder = run.unfinished / hashlib.sha256(msgspec.json.encode(config)).hexdigest()[:16]
    try:
        result = learn(config, folder, dataset=dataset)
    except KrstoreError:  # it would end so again
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder)
    summary, others = result.summary(), result.steps[-1].other_accuracy
    return {
        "accuracy": [step.accuracy for step in result.steps],
        **{f"accuracy_{name}": [step.other_accuracy[name] for step in result.steps] for name in others},
        "classes": np.cumsum([len(task) for task in result.tasks]).tolist(),
        "bytes": summary["memory_bytes"] + summary["held_bytes"],
        "network_bytes": [step.network_bytes for step in result.steps],
        "parameters": [step.parameters for step in result.steps],
        **{figure: summary[figure] for figure in (*KEPT, *OTHERS) if figure in summary},
    }  # fmt: skip


def on_small_images(run: Run, dataset: Dataset, method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Run a method at the preset `small`, and return what came of it; an epoch of two or three tasks when tiny."""
    settings = {"data": "given", "device": "cpu", **settings}
    if run.tiny:
        settings |= {"base_training.epochs": 1, "training.epochs": 1}
        settings |= {"steps": 3} if settings.get("base") == 0 else {"base": 1, "steps": 2}
    return figures(run, build_run_config(method, settings, preset="small"), dataset)
