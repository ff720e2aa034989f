"""Classification by the nearest mean of exemplars (iCaRL, Alg. 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krstore.learning.learners.base import Learner, SampleBatches

__all__ = ["NearestMeanLearner", "exemplar_means"]


class NearestMeanLearner(Learner):
    """A learner whose option ``prediction`` says how it predicts: ``"nme"``, or ``"cnn"``, by the classifier."""

    _means: Tensor | None = None

    def remember(self, samples: SampleBatches) -> None:
        """Take the means of the exemplars."""
        self._means = exemplar_means(self.network.body, samples, self.network.classes, mirrored=self.mirrored)

    def predict(self, x: Tensor) -> Tensor:
        """Return scores of the kind that was asked for."""
        return self._nearest(x) if self.config.prediction == "nme" else self.network(x)

    def also(self, x: Tensor) -> dict[str, Tensor]:
        """Return those of the other kind, where there are exemplars."""
        if self.config.prediction == "nme":
            return {"cnn": self.network(x)}
        return {} if self._means is None else {"nme": self._nearest(x)}

    def _nearest(self, x: Tensor) -> Tensor:
        assert self._means is not None
        return F.normalize(self.network.body(x)) @ self._means.T


@torch.no_grad()
def exemplar_means(body: nn.Module, exemplars: SampleBatches, classes: int, *, mirrored: bool = True) -> Tensor:
    """Return the means (classes, D), of length 1, of the embeddings of exemplars and of their mirror images.

    Embeddings are of length 1 before they are averaged; only samples (C, H, W) are mirrored.
    """
    sums: Tensor | None = None
    for x, y in exemplars():
        for shown in (x, x.flip(3)) if mirrored and x.ndim == 4 else (x,):
            embedded = F.normalize(body(shown).float())
            if sums is None:
                sums = embedded.new_zeros(classes, embedded.shape[1])
            sums.index_add_(0, y, embedded)
    assert sums is not None
    return F.normalize(sums)
