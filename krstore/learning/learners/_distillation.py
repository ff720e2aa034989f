"""What learners share that keep to what the network said before the task."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from krstore.learning.learners.base import Learner, Rehearsal, frozen
from krstore.learning.network import Network
from krstore.learning.scenario import Task

__all__ = ["DistillingLearner", "distillation"]


class DistillingLearner(Learner):
    """Keeps a frozen copy of the network as the last task left it."""

    rehearsal: ClassVar = Rehearsal.MEMORY

    _first, _stop = 0, 0
    _teacher: Network | None = None

    def begin_step(self, task: Task) -> None:
        """Keep the network, and note which classes are new."""
        self._first, self._stop = task.first, task.stop
        self._teacher = frozen(copy.deepcopy(self.network)) if task.number else None  # type: ignore[assignment]

    def taught(self, x: Tensor) -> Tensor:
        """Return what the teacher says of the old classes (B, C_old)."""
        assert self._teacher is not None
        with torch.no_grad():
            return torch.as_tensor(self._teacher(x))[:, : self._first]


def distillation(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Return the mean over samples of -sum softmax(taught / T) log softmax(logits / T), of logits (B, C).

    Without a factor of T^2, as LwF, BiC and WA have it.
    """
    wanted = F.softmax(taught.float() / temperature, 1)
    return -(wanted * F.log_softmax(logits.float() / temperature, 1)).sum(1).mean()
