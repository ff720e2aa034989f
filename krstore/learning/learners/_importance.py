"""How much each weight matters to old tasks, and the penalty on changing those that do: what EWC and MAS share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import msgspec
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from krstore.learning.learners.base import Learner, LearnerConfig, SampleBatches, cross_entropy
from krstore.learning.scenario import Task
from krstore.learning.streams import Batch

__all__ = ["STRENGTH", "ImportanceConfig", "ImportanceLearner", "mean_over_samples", "penalty"]

STRENGTH = "lambda, the weight of the pull towards the weights after the last task"
CHUNK = 16  # samples whose gradients are held at once

Weights = dict[str, Tensor]


class ImportanceConfig(LearnerConfig, frozen=True, kw_only=True):
    """Options that EWC and MAS share."""

    strength: Annotated[float, msgspec.Meta(ge=0, description=STRENGTH)] = 1.0
    samples: Annotated[
        Annotated[int, msgspec.Meta(ge=1)] | None,
        msgspec.Meta(description="of a task that importances are measured on; null: all"),
    ] = None
    logits: Annotated[
        Literal["new", "all"],
        msgspec.Meta(
            description="that the cross-entropy is over: of the new classes alone, which leaves the old classifier to "
            "the pull, or of all seen"
        ),
    ] = "new"


class ImportanceLearner(Learner):
    """Cross-entropy, and a quadratic pull towards the weights after the last task, by their importance."""

    transferable = False

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self._importance: Weights = {}
        self._anchor: Weights = {}
        self._first = 0

    @abstractmethod
    def importance(self, task: Task, samples: SampleBatches) -> Weights:
        """Return what the importances of all weights are after a task."""

    @abstractmethod
    def pull(self, distance: Tensor) -> Tensor:
        """Return the term of the loss for the sum of importance times squared change."""

    def begin_step(self, task: Task) -> None:
        """Keep the weights that the last task ended with."""
        self._first = task.first
        self._anchor = {name: value.detach().clone() for name, value in self.network.named_parameters()}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy and the pull."""
        terms = {"ce": cross_entropy(self.network(batch.x), batch.y, self._first, self.config.logits)}
        if self._importance:
            terms["pull"] = self.pull(penalty(dict(self.network.named_parameters()), self._anchor, self._importance))
        return terms

    def end_step(self, task: Task, samples: SampleBatches) -> None:
        """Measure importances on the task's samples, in eval mode."""
        self.network.eval()
        self._importance = self.importance(task, samples)

    def state(self) -> dict[str, Tensor]:
        """Return the importances; the weights that they hold to are the network's own between steps."""
        return self._importance

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up importances."""
        self._importance = dict(state)

    def before(self, name: str, like: Tensor) -> Tensor:
        """Return a weight's importance so far; a classifier's new classes have none."""
        found = torch.zeros_like(like)
        if name in self._importance:
            old = self._importance[name].to(like.device)
            found[: len(old)] = old
        return found


def mean_over_samples(
    network: torch.nn.Module,
    samples: SampleBatches,
    score: Callable[[Tensor, Tensor], Tensor],
    reduce: Callable[[Tensor], Tensor],
    limit: int | None,
) -> Weights:
    """Return the mean over samples of `reduce` of each sample's own gradient of `score(logits (1, C), label ())`.

    Args:
        limit: use so many random samples; `None` for all.
    """
    parameters = {name: value.detach() for name, value in network.named_parameters()}
    buffers = dict(network.named_buffers())

    def loss(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
        return score(functional_call(network, (weights, buffers), (x[None],)), y)

    each = vmap(grad(loss), in_dims=(None, 0, 0))
    total, count = {name: torch.zeros_like(value) for name, value in parameters.items()}, 0
    for x, y in samples(limit):
        for part, labels in zip(torch.split(x, CHUNK), torch.split(y, CHUNK), strict=True):
            for name, gradients in each(parameters, part, labels).items():
                total[name] += reduce(gradients).sum(0)
            count += len(part)
    return {name: value / max(1, count) for name, value in total.items()}


def penalty(weights: Mapping[str, Tensor], anchor: Mapping[str, Tensor], importance: Mapping[str, Tensor]) -> Tensor:
    """Return the sum over weights of importance times squared change; rows that the anchor lacks are free."""
    terms = [
        (own * (weights[name][: len(own)] - anchor[name][: len(own)]).square()).sum()
        for name, own in importance.items()
    ]
    return torch.stack(terms).sum()
