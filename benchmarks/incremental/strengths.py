"""How strongly EWC and MAS hold on to weights: the strengths that their presets have are chosen here.

Tasks, preset and data are those of `learning`, but that fifty training samples of each class, which are not trained
on, stand in the test set's place.
"""

from __future__ import annotations

import functools
from typing import Any

from benchmarks._common import Run, main
from benchmarks.incremental.learning import learnt
from benchmarks.incremental.runs import resumed
from krstore.errors import KrstoreError

STRENGTHS = {"ewc": (3, 10, 30), "mas": (0.003, 0.01, 0.03, 0.1, 1)}


def measure(run: Run) -> dict[str, Any]:
    """Run both methods at every strength, with one seed; rows of an earlier run are kept."""
    cases = [
        ((name, strength), functools.partial(_held, run, name, strength))
        for name, strengths in list(STRENGTHS.items())[: 1 if run.tiny else None]
        for strength in strengths[: 1 if run.tiny else None]
    ]
    return {"rows": resumed(run, ("name", "strength"), cases)}


def _held(run: Run, name: str, strength: float) -> dict[str, Any]:
    held_out = {} if run.tiny else {"validation": 50}
    try:
        return learnt(run, name, {**held_out, "options.strength": strength})
    except KrstoreError as error:
        return {"unreachable": str(error)}


if __name__ == "__main__":
    main("strengths", __doc__, measure)
