"""KRIL: the recited features of all old tasks, and a term that keeps their embeddings where they were.

KRNet paper, Sec. III-B, Eq. 2. F1 is whatever has made the features that are learnt from, and stays; the network here
is F2, its body F2 without the classifier. Any dense codec may stand in for KRNet; with codec raw it is the oracle of
the paper's Fig. 6.
"""

from __future__ import annotations

import copy
from typing import Annotated, Any

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krstore.learning.learners.base import Learner, LearnerConfig, Rehearsal, frozen
from krstore.learning.scenario import Task
from krstore.learning.streams import Batch

__all__ = ["KRIL", "KRILConfig"]


class KRILConfig(LearnerConfig, frozen=True, kw_only=True):
    """Options of KRIL."""

    auxiliary: Annotated[
        float, msgspec.Meta(ge=0, description="lambda of Eq. 2, the weight of L_aux; 0 leaves it out")
    ] = 2.0
    body_rate: Annotated[
        float, msgspec.Meta(ge=0, description="factor of the body's learning rate from the second task on")
    ] = 0.05


class KRIL(Learner):
    """Knowledge-recitation-based incremental learning."""

    name = "kril"
    summary = "KRNet paper: recited features, and L_aux on their embeddings (Eq. 2)"
    rehearsal = Rehearsal.MEMORY
    needs_front = True
    Config = KRILConfig

    _teacher: nn.Module | None = None

    def begin_step(self, task: Task) -> None:
        """Keep the body as the last task left it."""
        self._teacher = frozen(copy.deepcopy(self.network.body)) if task.number else None

    def parameter_groups(self, task: Task) -> list[dict[str, Any]]:
        """Return the body, slowed down after the first task, and the classifier."""
        rate = self.config.body_rate if task.number else 1.0
        return [
            {"params": list(self.network.body.parameters()), "rate": rate},
            {"params": list(self.network.head.parameters())},
        ]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return L_ce over new and recited features, and lambda L_aux over the recited ones."""
        embedded = self.network.body(batch.x)
        terms = {"ce": F.cross_entropy(self.network.head(embedded), batch.y)}
        if self._teacher is not None and self.config.auxiliary and batch.replayed.any():
            with torch.no_grad():
                wanted = self._teacher(batch.x[batch.replayed])
            terms["aux"] = self.config.auxiliary * auxiliary_loss(embedded[batch.replayed], wanted)
        return terms


def auxiliary_loss(embedded: Tensor, wanted: Tensor) -> Tensor:
    """Return L_aux of Eq. 2: the mean over samples of the squared distance of embeddings (B, D).

    B is read as the number of recited samples in a batch, which it is of alone.
    """
    return (embedded.float() - wanted.float()).square().sum(1).mean()
