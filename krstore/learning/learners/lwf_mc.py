"""LwF-MC: iCaRL's loss without exemplars, and the classifier's largest output (iCaRL paper, Sec. 4)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from krstore.learning.learners._distillation import DistillingLearner
from krstore.learning.learners.base import Rehearsal
from krstore.learning.learners.icarl import binary_loss
from krstore.learning.streams import Batch

__all__ = ["LwFMC"]


class LwFMC(DistillingLearner):
    """Learning without forgetting, multi-class."""

    name = "lwf-mc"
    summary = "LwF as iCaRL compares with it: one sigmoid a class, distilled"
    rehearsal: ClassVar = Rehearsal.OPTIONAL

    own_classifier = True

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the binary cross-entropy."""
        taught = None if self._teacher is None else self.taught(batch.x)
        return {"bce": binary_loss(self.network(batch.x), batch.y, taught)}

    def exemplar_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the binary cross-entropy without a teacher."""
        return {"bce": binary_loss(self.network(batch.x), batch.y, None)}
