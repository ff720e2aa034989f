"""EWC: elastic weight consolidation (Kirkpatrick et al., PNAS 2017).

L = L_ce + (lambda / 2) sum F (theta - theta*)^2. F is the diagonal of the Fisher information, the mean over samples of
the squared gradient of *each sample's* log-likelihood; the usual implementations square the gradient of a batch's mean,
in train mode, which is neither. One F is kept for all tasks, a mean weighted by their classes, its elements at most
`clamp`, as in PyCIL.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import torch.nn.functional as F
from torch import Tensor

from krstore.learning.learners._importance import STRENGTH, ImportanceConfig, ImportanceLearner, mean_over_samples
from krstore.learning.learners.base import SampleBatches
from krstore.learning.scenario import Task

__all__ = ["EWC", "EWCConfig"]


class EWCConfig(ImportanceConfig, frozen=True, kw_only=True):
    """Options of EWC, beside those of `ImportanceConfig`."""

    strength: Annotated[float, msgspec.Meta(ge=0, description=STRENGTH)] = 1000.0
    clamp: Annotated[
        Annotated[float, msgspec.Meta(gt=0)] | None,
        msgspec.Meta(description="the largest element of the Fisher information; null: any (PyCIL: 1e-4)"),
    ] = 1e-4


class EWC(ImportanceLearner):
    """Elastic weight consolidation."""

    name = "ewc"
    summary = "elastic weight consolidation: weights are held by their Fisher information"
    Config = EWCConfig

    def importance(self, task: Task, samples: SampleBatches) -> dict[str, Tensor]:
        """Return the mean of the Fisher information so far and that of the task, weighted by their classes."""
        fisher = mean_over_samples(
            self.network, samples, lambda logits, y: F.cross_entropy(logits, y[None]), lambda g: g.square(),
            self.config.samples,
        )  # fmt: skip
        if self.config.clamp is not None:
            fisher = {name: value.clamp(max=self.config.clamp) for name, value in fisher.items()}
        old = task.first / task.stop
        return {name: old * self.before(name, value) + (1 - old) * value for name, value in fisher.items()}

    def pull(self, distance: Tensor) -> Tensor:
        """Return lambda / 2 times the distance."""
        return distance * float(self.config.strength / 2)
