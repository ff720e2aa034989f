"""finetune: cross-entropy on the new task alone; the lower bound."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
from torch import Tensor

from krstore.learning.learners.base import Learner, LearnerConfig, cross_entropy
from krstore.learning.scenario import Task
from krstore.learning.streams import Batch

__all__ = ["Finetune", "FinetuneConfig"]


class FinetuneConfig(LearnerConfig, frozen=True, kw_only=True):
    """Options of finetune."""

    logits: Annotated[
        Literal["all", "new"],
        msgspec.Meta(
            description="that the cross-entropy of a batch without old samples is over: of the new classes alone, as "
            "in PyCIL, or of all seen, which pushes old ones down"
        ),
    ] = "new"


class Finetune(Learner):
    """Forgets as it learns."""

    name = "finetune"
    summary = "cross-entropy on the new task alone: the lower bound"
    Config: ClassVar = FinetuneConfig

    _first = 0

    def begin_step(self, task: Task) -> None:
        """Note which classes are new."""
        self._first = task.first

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy."""
        return {"ce": cross_entropy(self.network(batch.x), batch.y, self._first, self.config.logits)}
