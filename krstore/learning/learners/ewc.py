"""EWC: elastic weight consolidation (Kirkpatrick et al., PNAS 2017).

L = L_ce + (lambda / 2) sum F (theta - theta*)^2. F is the diagonal of the Fisher information, the mean over samples of
the squared gradient of *each sample's* log-likelihood; the usual implementations square the gradient of a batch's mean,
in train mode, which is neither, and about as many times smaller as a batch has samples. So PyCIL's lambda of 1000 and
largest F of 1e-4 are not for this one, whose lambda is chosen on CIFAR-100. The penalties of all tasks add up, to one F
around the last weights.
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

    strength: Annotated[float, msgspec.Meta(ge=0, description=STRENGTH)] = 10.0
    clamp: Annotated[
        Annotated[float, msgspec.Meta(gt=0)] | None,
        msgspec.Meta(description="the largest element of a task's Fisher information; null: any"),
    ] = None
    average: Annotated[
        bool, msgspec.Meta(description="weigh tasks' Fisher information by their classes (PyCIL); false: add it up")
    ] = False


class EWC(ImportanceLearner):
    """Elastic weight consolidation."""

    name = "ewc"
    summary = "elastic weight consolidation: weights are held by their Fisher information"
    Config = EWCConfig

    def importance(self, task: Task, samples: SampleBatches) -> dict[str, Tensor]:
        """Return the Fisher information of all tasks so far: its sum, or its mean, weighted by their classes."""
        fisher = mean_over_samples(
            self.network, samples, lambda logits, y: F.cross_entropy(logits, y[None]), lambda g: g.square(),
            self.config.samples,
        )  # fmt: skip
        if self.config.clamp is not None:
            fisher = {name: value.clamp(max=self.config.clamp) for name, value in fisher.items()}
        old = task.first / task.stop
        before, own = (old, 1 - old) if self.config.average else (1.0, 1.0)
        return {name: before * self.before(name, value) + own * value for name, value in fisher.items()}

    def pull(self, distance: Tensor) -> Tensor:
        """Return lambda / 2 times the distance."""
        return distance * float(self.config.strength / 2)
