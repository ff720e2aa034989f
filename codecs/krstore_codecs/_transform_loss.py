"""What the transform codec's networks are trained for."""

from __future__ import annotations

import torch
from torch import Tensor

from krstore_codecs._codes import noisy, rounded
from krstore_codecs._transform import Analysis, RateModel, Synthesis
from krstore_codecs._transform_plan import Units

__all__ = ["RateDistortion"]

NOISE_UNTIL, ANALYSIS_UNTIL = 0.3, 0.85  # shares of the iterations


class RateDistortion:
    """Squared error plus lambda times bits, by iteration: lambda is `trade` squares of the step.

    Attributes:
        iterations: of the whole schedule.
    """

    iterations = 1

    def __init__(
        self, units: Units, analysis: Analysis, synthesis: Synthesis, rate: RateModel, trade: float, seed: int
    ) -> None:
        self._units, self._trade, self._seed = units, trade, seed
        self._analysis, self._synthesis, self._rate = analysis, synthesis, rate
        frozen = not any(parameter.requires_grad for parameter in synthesis.parameters())
        self._until = 1.0 if frozen else ANALYSIS_UNTIL

    def __call__(self, ids: Tensor, grids: Tensor, iteration: int) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch (n, C, H, W) in [0, 1], and the mean squared error to show."""
        share, centred = iteration / self.iterations, self._units.enter(grids)
        step = self._rate.step.clone()
        with torch.set_grad_enabled(share < self._until):
            y = self._analysis(centred).float() / step
        whole, disturbed = rounded(y, 1.0), noisy(y, 1.0, self._seed, iteration)
        coded = disturbed if share < NOISE_UNTIL else whole
        decoded = self._synthesis(coded * step).float() - self._units.centre.to(y.device).view(1, -1, 1, 1)
        error = (decoded - centred).square()
        bits = self._rate(whole.detach(), learn=True) / len(ids)
        loss = error.sum() / len(ids) + self._trade * step.square() * bits
        if share < self._until:
            loss = loss + self._trade * step.square() * self._rate(disturbed, learn=False) / len(ids)
            self._rate.follow(bits.detach())
        return loss, error.mean()
