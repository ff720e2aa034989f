"""BiC: large scale incremental learning (Wu et al., CVPR 2019).

Stage 1 (Eqs. 1 to 3): lambda L_kd + (1 - lambda) L_ce, lambda = C_old / C, T = 2, against the last network's
*corrected* outputs, the pairs of old tasks applied on both sides. Stage 2 (Eqs. 4 and 5): all else fixed, the new
classes' outputs become alpha q + beta, fitted to a balanced set that stage 1 of the task has not seen; the pair of a
task stays as it is from then on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from krstore.learning.learners._distillation import DistillingLearner, distillation
from krstore.learning.learners.base import LearnerConfig, SampleBatches
from krstore.learning.scenario import Task
from krstore.learning.streams import Batch

__all__ = ["BiC", "BiCConfig", "corrected", "fit_bias"]

STEPS, RATE = 200, 0.01


class BiCConfig(LearnerConfig, frozen=True, kw_only=True):
    """Options of BiC."""

    temperature: Annotated[float, msgspec.Meta(gt=0, description="T, of the distillation")] = 2.0
    held_out: Annotated[
        float,
        msgspec.Meta(
            gt=0, lt=1, description="share of each class's exemplars, and as many samples of each new one, for stage 2"
        ),
    ] = 0.1


class BiC(DistillingLearner):
    """Bias correction."""

    name = "bic"
    summary = "BiC: distillation, then a scale and an offset for the new classes' outputs"
    Config: ClassVar = BiCConfig

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self._pairs = torch.zeros(0, 2)  # alpha and beta of each class
        self.held_out = self.config.held_out

    def begin_step(self, task: Task) -> None:
        """Leave the new classes' outputs as they are, for now."""
        super().begin_step(task)
        neutral = torch.tensor([1.0, 0.0]).repeat(task.stop - len(self._pairs), 1)
        self._pairs = torch.cat([self._pairs, neutral])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the two terms of stage 1."""
        logits = corrected(self.network(batch.x), self._pairs)  # the new classes' pairs are neutral until stage 2
        ce = F.cross_entropy(logits, batch.y)
        if self._teacher is None:
            return {"ce": ce}
        share = self._first / self._stop
        taught = corrected(self.taught(batch.x), self._pairs[: self._first])
        kd = distillation(logits[:, : self._first], taught, self.config.temperature)
        return {"ce": (1 - share) * ce, "kd": share * kd}

    @torch.no_grad()
    def calibrate(self, samples: SampleBatches) -> None:
        """Fit the pair of the new classes."""
        found = [(self.network(x).float(), y) for x, y in samples()]
        logits, y = torch.cat([part for part, _ in found]), torch.cat([part for _, part in found])
        logits = corrected(logits, self._pairs)
        self._pairs[self._first :] = fit_bias(logits, y, self._first).cpu()

    def predict(self, x: Tensor) -> Tensor:
        """Return corrected logits."""
        return corrected(self.network(x), self._pairs)

    def exemplar_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of corrected logits."""
        return {"ce": F.cross_entropy(self.predict(batch.x), batch.y)}

    def final_bytes(self, stops: Sequence[int]) -> int:
        """Return the bytes of the network and of the pairs of all classes."""
        return super().final_bytes(stops) + 8 * (stops[-1] - len(self._pairs))

    def state(self) -> dict[str, Tensor]:
        """Return the pairs, one a class."""
        return {"pairs": self._pairs}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up pairs."""
        self._pairs = state["pairs"].cpu()


def corrected(logits: Tensor, pairs: Tensor) -> Tensor:
    """Return alpha q + beta of logits (B, C), with the pairs (C, 2) of their classes."""
    alpha, beta = pairs.to(logits.device).unbind(1)
    return logits * alpha + beta


def fit_bias(logits: Tensor, y: Tensor, first: int) -> Tensor:
    """Return the (alpha, beta) for the classes from `first` on that 200 steps of Adam on the cross-entropy find.

    From (1, 0), of all samples at once: where a few samples are told apart the optimum is at infinity, and the authors
    too train for 200 epochs and no further.

    Args:
        logits, y: of the samples (B, C) and (B,).
    """
    pair = torch.tensor([1.0, 0.0], device=logits.device, requires_grad=True)
    optimiser = torch.optim.Adam([pair], RATE)
    with torch.enable_grad():
        for _ in range(STEPS):
            scaled = torch.cat([logits[:, :first], logits[:, first:] * pair[0] + pair[1]], 1)
            optimiser.zero_grad()
            F.cross_entropy(scaled, y).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return pair.detach()
