"""LwF: learning without forgetting (Li and Hoiem, ECCV 2016).

L = L_ce over the new classes + lambda L_kd over the old ones, T = 2. With exemplars, which the paper has none of, L_ce
of a batch that has old samples is over all classes seen: the "LwF" of the mnemonics paper's tables has them. The
paper's warm-up, of the new classifier alone, is left out, as in the class-incremental comparisons.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
from torch import Tensor

from krstore.learning.learners._distillation import DistillingLearner, distillation
from krstore.learning.learners.base import LearnerConfig, Rehearsal, cross_entropy
from krstore.learning.streams import Batch

__all__ = ["LwF", "LwFConfig"]


class LwFConfig(LearnerConfig, frozen=True, kw_only=True):
    """Options of LwF."""

    strength: Annotated[
        float, msgspec.Meta(ge=0, description="lambda, the weight of the distillation (paper: 1; PyCIL: 3)")
    ] = 1.0
    temperature: Annotated[float, msgspec.Meta(gt=0, description="T, of the distillation")] = 2.0


class LwF(DistillingLearner):
    """Learning without forgetting."""

    name = "lwf"
    summary = "learning without forgetting: the old classes' scores are kept on new samples"
    rehearsal: ClassVar = Rehearsal.OPTIONAL
    Config: ClassVar = LwFConfig

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return L_ce, and lambda L_kd."""
        logits = self.network(batch.x)
        terms = {"ce": cross_entropy(logits, batch.y, self._first, "new")}
        if self._teacher is not None and self.config.strength:
            kept = distillation(logits[:, : self._first], self.taught(batch.x), self.config.temperature)
            terms["kd"] = self.config.strength * kept
        return terms
