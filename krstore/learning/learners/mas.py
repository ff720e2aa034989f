"""MAS: memory aware synapses (Aljundi et al., ECCV 2018).

L = L_ce + lambda sum Omega (theta - theta*)^2. Omega is the mean over samples of the absolute gradient of *each
sample's* squared output norm, summed over tasks; the usual implementations take it of a batch, where signs cancel.
"""

from __future__ import annotations

from torch import Tensor

from krstore.learning.learners._importance import ImportanceConfig, ImportanceLearner, mean_over_samples
from krstore.learning.learners.base import SampleBatches
from krstore.learning.scenario import Task

__all__ = ["MAS"]


class MAS(ImportanceLearner):
    """Memory aware synapses."""

    name = "mas"
    summary = "memory aware synapses: weights are held by how they move the output"
    Config = ImportanceConfig

    def importance(self, task: Task, samples: SampleBatches) -> dict[str, Tensor]:
        """Return the sum of the importances so far and those of the task."""
        omega = mean_over_samples(
            self.network, samples, lambda logits, y: logits.square().sum(), lambda g: g.abs(), self.config.samples
        )
        return {name: self.before(name, value) + value for name, value in omega.items()}

    def pull(self, distance: Tensor) -> Tensor:
        """Return lambda times the distance."""
        return distance * float(self.config.strength)
