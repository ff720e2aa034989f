"""iCaRL: incremental classifier and representation learning (Rebuffi et al., CVPR 2017).

One sigmoid a class: binary cross-entropy, with the last network's outputs as the old classes' targets, for every
sample (Eq. 1 of Sec. 2.2). Samples are classified by the nearest mean of exemplars (Alg. 1), embeddings of length 1,
those of mirrored exemplars in the mean too, as in the authors' code.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from krstore.learning.learners._distillation import DistillingLearner, distillation
from krstore.learning.learners._nearest import NearestMeanLearner
from krstore.learning.learners.base import LearnerConfig
from krstore.learning.streams import Batch

__all__ = ["ICaRL", "ICaRLConfig", "binary_loss"]


class ICaRLConfig(LearnerConfig, frozen=True, kw_only=True):
    """Options of iCaRL."""

    loss: Annotated[
        Literal["bce", "ce"],
        msgspec.Meta(
            description="the paper's binary cross-entropy; or what others run under this name, cross-entropy over all "
            "classes and distillation of the old ones"
        ),
    ] = "bce"
    temperature: Annotated[float, msgspec.Meta(gt=0, description="of that distillation")] = 2.0
    prediction: Annotated[
        Literal["nme", "cnn"],
        msgspec.Meta(
            description="by the nearest mean of exemplars, or by the classifier; the other one is told beside it"
        ),
    ] = "nme"


class ICaRL(NearestMeanLearner, DistillingLearner):
    """iCaRL."""

    name = "icarl"
    summary = "iCaRL: sigmoid outputs distilled, and the nearest mean of exemplars"
    Config: ClassVar = ICaRLConfig

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.own_classifier = self.config.loss == "bce"

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss, in the form asked for."""
        logits = self.network(batch.x)
        taught = None if self._teacher is None else self.taught(batch.x)
        if self.config.loss == "bce":
            return {"bce": binary_loss(logits, batch.y, taught)}
        terms = {"ce": F.cross_entropy(logits, batch.y)}
        if taught is not None:
            terms["kd"] = distillation(logits[:, : self._first], taught, self.config.temperature)
        return terms

    def exemplar_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of the kind asked for, without a teacher."""
        if self.config.loss == "bce":
            return {"bce": binary_loss(self.network(batch.x), batch.y, None)}
        return super().exemplar_losses(batch)


def binary_loss(logits: Tensor, y: Tensor, taught: Tensor | None) -> Tensor:
    """Return the binary cross-entropy of logits (B, C), summed over classes, the mean over samples.

    The authors' code divides by all classes that will ever come, a hundred, and has a hundred times the rate.

    Args:
        y: labels (B,); of samples of old classes, only what the teacher says of them counts.
        taught: the teacher's logits of the old classes (B, C_old), the first ones; `None` at the first task.
    """
    targets = F.one_hot(y, logits.shape[1]).float()
    if taught is not None:
        targets[:, : taught.shape[1]] = torch.sigmoid(taught.float())
    return F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum") / len(logits)
