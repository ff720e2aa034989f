"""The methods, one a module: what each paper adds to the harness, and nothing else."""

from __future__ import annotations

from importlib import import_module

from krstore.errors import KrstoreError, UnknownNameError
from krstore.learning.learners.base import Learner

__all__ = ["LEARNERS", "get_learner"]

LEARNERS = {
    "bic": "BiC",
    "der": "DER",
    "ewc": "EWC",
    "finetune": "Finetune",
    "gfr": "GFR",
    "icarl": "ICaRL",
    "joint": "Joint",
    "kril": "KRIL",
    "kril-oracle": "KRILOracle",
    "lucir": "LUCIR",
    "lwf": "LwF",
    "lwf-mc": "LwFMC",
    "m2kd": "M2KD",
    "mas": "MAS",
    "memo": "MEMO",
    "replay": "ExperienceReplay",
    "wa": "WA",
}


def get_learner(name: str) -> type[Learner]:
    """Import and return a learner by name.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in LEARNERS:
        raise UnknownNameError("method", name, LEARNERS)
    learner = getattr(import_module(f"krstore.learning.learners.{name.replace('-', '_')}"), LEARNERS[name])
    if not (isinstance(learner, type) and issubclass(learner, Learner)):
        raise KrstoreError(f"{LEARNERS[name]} is no learner")
    return learner
