"""joint: trained on the samples of all tasks, as if none had gone; the upper bound."""

from __future__ import annotations

from krstore.learning.learners.base import Rehearsal
from krstore.learning.learners.finetune import Finetune

__all__ = ["Joint"]


class Joint(Finetune):
    """Sees everything again at each step."""

    name = "joint"
    summary = "cross-entropy on the samples of all tasks: the upper bound"
    rehearsal = Rehearsal.EVERYTHING
