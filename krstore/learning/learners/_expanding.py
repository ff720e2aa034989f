"""What DER and MEMO share: an extractor a task beside those of earlier ones, which stay as they are."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krstore.learning.expansion import Extractors
from krstore.learning.learners.base import Learner, LearnerConfig, Rehearsal
from krstore.learning.network import Network, stored_bytes
from krstore.learning.scenario import Task
from krstore.learning.streams import Batch

__all__ = ["AUXILIARY", "ExpandingConfig", "ExpandingLearner", "auxiliary_labels"]

AUXILIARY = (
    "lambda_a, the weight of the cross-entropy of an auxiliary classifier of the new extractor, which tells the new "
    "classes apart and from all old ones together"
)


class ExpandingConfig(LearnerConfig, frozen=True, kw_only=True):
    """Options of learners whose body grows."""

    auxiliary: Annotated[float, msgspec.Meta(ge=0, description=AUXILIARY)] = 1.0


class ExpandingLearner(Learner):
    """A learner whose network's body is `krstore.learning.expansion.Extractors`."""

    rehearsal: ClassVar = Rehearsal.OPTIONAL
    transferable = False
    rebuilds: ClassVar = True
    Config: ClassVar = ExpandingConfig

    def __init__(self, options: Mapping[str, Any], network: Network, seed: int) -> None:
        super().__init__(options, network, seed)
        self.network.body = self.body = self._expandable(network.body)
        self._full_width, self._extractor_bytes = network.width, stored_bytes(self.body.last)
        self._task = Task(0, 0, 0, ())
        self._auxiliary: nn.Linear | None = None

    @abstractmethod
    def _expandable(self, body: nn.Module) -> Extractors:
        """Return the body with what is to be repeated for each task as its first extractor."""

    def _extractor(self) -> nn.Module:
        """Return an extractor for a new task: the last one's weights to begin with."""
        return copy.deepcopy(self.body.last)

    def begin_step(self, task: Task) -> None:
        """Give the body an extractor, and the classifier its inputs."""
        self._task = task
        if self._expands and task.number == len(self.body.extractors):
            self._expand()
        self.body.fix()
        self._auxiliary = None
        if task.number and self.config.auxiliary:
            self._auxiliary = nn.Linear(self._full_width, task.stop - task.first + 1, device=self._device())

    def _expand(self) -> None:
        self.body.extractors.append(self._extractor())
        self.network.grow(self.network.classes, self.network.width + self._full_width)

    def parameter_groups(self, task: Task) -> list[dict[str, Any]]:
        """Return the network and the auxiliary classifier."""
        auxiliary = [] if self._auxiliary is None else list(self._auxiliary.parameters())
        return [{"params": [*self.network.parameters(), *auxiliary]}]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of all embeddings together, and lambda_a times that of the new ones."""
        embedded = self.body.embeddings(batch.x)
        terms = {"ce": F.cross_entropy(self.network.head(torch.cat(embedded, 1)), batch.y)}
        if self._auxiliary is not None:
            labels = auxiliary_labels(batch.y, self._task.first)
            terms["aux"] = self.config.auxiliary * F.cross_entropy(self._auxiliary(embedded[-1]), labels)
        return terms

    def final_bytes(self, stops: Sequence[int]) -> int:
        """Return the bytes of what there is, and of an extractor as large as the first for each task to come."""
        return self._final_bytes(stops, self._extractor_bytes, self._full_width)

    def _final_bytes(self, stops: Sequence[int], each: int, width: int) -> int:
        """Return the bytes with an extractor of `each` bytes and of `width` embeddings for each task to come."""
        later = len(stops) - len(self.body.extractors) if self._expands else 0
        return stored_bytes(self.body) + later * each + 4 * stops[-1] * (self.network.width + later * width + 1)

    def reshape(self, state: Mapping[str, Tensor]) -> None:
        """Give the body as many extractors as were saved."""
        saved = {name.split(".")[2] for name in state if name.startswith("body.extractors.")}
        while len(self.body.extractors) < len(saved):
            self._expand()

    @property
    def _expands(self) -> bool:
        return True

    def _device(self) -> torch.device:
        return self.network.head.weight.device


def auxiliary_labels(y: Tensor, first: int) -> Tensor:
    """Return 0 for all classes before `first`, and 1, 2, ... for those from it on."""
    return (y - first + 1).clamp(min=0)
