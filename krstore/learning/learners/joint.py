"""joint: trained on the samples of all tasks, as if none had gone; the upper bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import msgspec
from torch import Tensor

from krstore.learning.learners.base import Rehearsal, SampleBatches
from krstore.learning.learners.finetune import Finetune, FinetuneConfig
from krstore.learning.network import Network
from krstore.learning.scenario import Task

__all__ = ["Joint", "JointConfig"]


class JointConfig(FinetuneConfig, frozen=True, kw_only=True):
    """Options of joint."""

    anew: Annotated[
        bool,
        msgspec.Meta(
            description="train each step from what the first task left, not from the step before: where samples are "
            "few, training on the same ones step after step overfits, and what should bound the others does not"
        ),
    ] = False


class Joint(Finetune):
    """Sees everything again at each step."""

    name = "joint"
    summary = "cross-entropy on the samples of all tasks: the upper bound"
    rehearsal = Rehearsal.EVERYTHING
    Config: ClassVar = JointConfig

    def __init__(self, options: Mapping[str, Any], network: Network, seed: int) -> None:
        super().__init__(options, network, seed)
        self.transferable = not self.config.anew
        self._left: dict[str, Tensor] = {}

    def begin_step(self, task: Task) -> None:
        """Go back to what the first task left, where each step is to begin there."""
        super().begin_step(task)
        if self._left:
            self.network.go_back(self._left)

    def end_step(self, task: Task, samples: SampleBatches) -> None:
        """Keep what the first task leaves."""
        if self.config.anew and task.number == 0:
            self._left = {name: value.detach().clone() for name, value in self.network.state_dict().items()}

    def state(self) -> dict[str, Tensor]:
        """Return what the first task has left."""
        return dict(self._left)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take it up."""
        self._left = dict(state)
