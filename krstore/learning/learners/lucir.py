"""LUCIR: learning a unified classifier incrementally via rebalancing (Hou et al., CVPR 2019).

Logits are eta cos(f, w), eta learnt (Eq. 3). L = L_ce + lambda L_dis^G + L_mr: the less-forget constraint on directions
of embeddings (Eq. 6), lambda = 5 sqrt(C_old / C_new) as in the authors' code, and a margin of 0.5 between an exemplar's
own class and the two new classes nearest to it (Eq. 8). Old classes' weights are fixed; new ones are imprinted.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from krstore.learning.learners._distillation import DistillingLearner
from krstore.learning.learners.base import LearnerConfig, SampleBatches
from krstore.learning.network import CosineHead
from krstore.learning.scenario import Task
from krstore.learning.streams import Batch

__all__ = ["LUCIR", "LUCIRConfig", "less_forget", "margin_ranking"]


class LUCIRConfig(LearnerConfig, frozen=True, kw_only=True):
    """Options of LUCIR."""

    less_forget: Annotated[
        float,
        msgspec.Meta(
            ge=0, description="lambda at as many new classes as old ones (paper: 5 on CIFAR-100, 10 on ImageNet)"
        ),
    ] = 5.0
    margin: Annotated[float, msgspec.Meta(description="m, of cosines, between an exemplar's class and new ones")] = 0.5
    nearest: Annotated[int, msgspec.Meta(ge=1, description="K, the new classes that are kept off")] = 2
    ranking: Annotated[float, msgspec.Meta(ge=0, description="weight of L_mr")] = 1.0


class LUCIR(DistillingLearner):
    """A unified classifier."""

    name = "lucir"
    summary = "LUCIR: cosine classifier, directions of embeddings kept, a margin for exemplars"
    cosine: ClassVar = True
    Config: ClassVar = LUCIRConfig

    @torch.no_grad()
    def imprint(self, task: Task, samples: SampleBatches) -> None:
        """Point new classes' weights at the mean of their embeddings, as long as old ones' are on average."""
        if not task.number:
            return
        self.network.eval()
        sums = torch.zeros_like(self.network.head.weight)
        for x, y in samples():
            sums.index_add_(0, y, F.normalize(self.network.body(x).float()))
        length = self.network.head.weight[: task.first].norm(dim=1).mean()
        self.network.head.weight[task.first :] = F.normalize(sums[task.first :]) * length

    def parameter_groups(self, task: Task) -> list[dict[str, Any]]:
        """Return all but the classifier's weights, and these without decay, which does not change a direction."""
        head = self.network.head.weight
        return [
            {"params": [p for p in self.network.parameters() if p is not head]},
            {"params": [head], "weight_decay": 0.0},
        ]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the three terms."""
        head = self.network.head
        assert isinstance(head, CosineHead)
        embedded = self.network.body(batch.x).float()
        cosines = head.cosines(embedded)
        terms = {"ce": F.cross_entropy(head.scale * cosines, batch.y)}
        if self._teacher is None:
            return terms
        with torch.no_grad():
            wanted = self._teacher.body(batch.x).float()
        strength = self.config.less_forget * math.sqrt(self._first / (self._stop - self._first))
        terms["lf"] = strength * less_forget(embedded, wanted)
        old = batch.y < self._first
        if old.any() and self.config.ranking:
            apart = margin_ranking(
                cosines[old], batch.y[old], self._first, margin=self.config.margin, nearest=self.config.nearest
            )
            terms["mr"] = self.config.ranking * apart
        return terms

    def after_backward(self) -> None:
        """Leave old classes' weights as they are."""
        gradient = self.network.head.weight.grad
        if gradient is not None:
            gradient[: self._first] = 0


def less_forget(embedded: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean over samples of 1 - cos of embeddings (B, D) and what they were (Eq. 6)."""
    return (1 - F.cosine_similarity(embedded, wanted)).mean()


def margin_ranking(cosines: Tensor, y: Tensor, first: int, *, margin: float, nearest: int) -> Tensor:
    """Return the mean over exemplars and their nearest new classes of max(0, margin - cos_own + cos_new) (Eq. 8).

    Args:
        cosines: of exemplars of old classes (B, C).
        y: their labels (B,).
        first: the first new class.
    """
    others = cosines[:, first:].topk(min(nearest, cosines.shape[1] - first), 1).values
    own = cosines.gather(1, y[:, None])
    return F.relu(margin - own + others).mean()
