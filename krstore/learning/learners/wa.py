"""WA: maintaining discrimination and fairness (Zhao et al., CVPR 2020).

lambda L_kd + (1 - lambda) L_ce, lambda = C_old / C, T = 2, weights of the classifier clamped at 0 after each step; then
weight aligning (Eqs. 6 to 9): the new classes' weights are scaled so that their norms have the mean of the old ones'.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from krstore.learning.learners._distillation import DistillingLearner, distillation
from krstore.learning.learners.base import LearnerConfig, SampleBatches
from krstore.learning.scenario import Task
from krstore.learning.streams import Batch

__all__ = ["WA", "WAConfig", "aligned"]


class WAConfig(LearnerConfig, frozen=True, kw_only=True):
    """Options of WA."""

    temperature: Annotated[float, msgspec.Meta(gt=0, description="T, of the distillation")] = 2.0
    clamp: Annotated[
        bool, msgspec.Meta(description="keep the classifier's weights at 0 or above, so that norms go with outputs")
    ] = True


class WA(DistillingLearner):
    """Weight aligning."""

    name = "wa"
    summary = "WA: distillation, then the new classes' weights scaled to the old ones' norms"
    Config: ClassVar = WAConfig

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the two terms."""
        logits = self.network(batch.x)
        ce = F.cross_entropy(logits, batch.y)
        if self._teacher is None:
            return {"ce": ce}
        share = self._first / self._stop
        kd = distillation(logits[:, : self._first], self.taught(batch.x), self.config.temperature)
        return {"ce": (1 - share) * ce, "kd": share * kd}

    @torch.no_grad()
    def after_update(self) -> None:
        """Clamp the classifier's weights."""
        if self.config.clamp:
            self.network.head.weight.clamp_(min=0)

    @torch.no_grad()
    def end_step(self, task: Task, samples: SampleBatches) -> None:
        """Align the weights."""
        if task.number:
            self.network.head.weight.copy_(aligned(self.network.head.weight, task.first))


def aligned(weight: Tensor, first: int) -> Tensor:
    """Return weights (C, D) with those from `first` on times mean ||w_old|| / mean ||w_new||."""
    norms = weight.norm(dim=1)
    return torch.cat([weight[:first], weight[first:] * norms[:first].mean() / norms[first:].mean()])
