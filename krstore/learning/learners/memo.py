"""MEMO: a model or 603 exemplars (Zhou et al., ICLR 2023).

The network is cut into generalised blocks, which all tasks share, and specialised ones, of which each task has its own
copy: f(x) = W^T [phi_s1(phi_g(x)), ..., phi_sb(phi_g(x))], by cross-entropy (Eq. 3). A new copy begins as the last one.
The authors' code adds DER's auxiliary loss and aligns the classifier as WA does; both are options here.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
import torch
from torch import nn

from krstore.errors import ConfigError, UsageError
from krstore.learning.expansion import Extractors
from krstore.learning.learners._expanding import AUXILIARY, ExpandingConfig, ExpandingLearner
from krstore.learning.learners.base import SampleBatches
from krstore.learning.learners.wa import aligned
from krstore.learning.scenario import Task

__all__ = ["MEMO", "MEMOConfig"]


class MEMOConfig(ExpandingConfig, frozen=True, kw_only=True):
    """Options of MEMO."""

    auxiliary: Annotated[
        float, msgspec.Meta(ge=0, description=f"{AUXILIARY} (the authors' code: 1; the paper's Eq. 3 has none)")
    ] = 0.0
    specialised: Annotated[
        int, msgspec.Meta(ge=1, description="last stages that each task has of its own; 2 for MEMO-2")
    ] = 1
    train_shared: Annotated[
        bool | None,
        msgspec.Meta(
            description="train the generalised blocks with every task, not with the first alone; null: where the first "
            "task is no larger than the others (B0), as the authors do"
        ),
    ] = None
    align: Annotated[
        bool,
        msgspec.Meta(description="after training, scale new classes' weights to the norms of old ones' (WA, Eqs. 6-9)"),
    ] = False


class MEMO(ExpandingLearner):
    """Memory-efficient expandable model."""

    name = "memo"
    summary = "MEMO: the first stages shared, the last one anew for each task"
    Config: ClassVar = MEMOConfig

    def _expandable(self, body: nn.Module) -> Extractors:
        stages = getattr(body, "stages", None)
        split = getattr(body, "split", None)
        if not isinstance(stages, list) or not callable(split):
            raise UsageError("memo needs a body with stages that can be cut, as those of krstore.backbones")
        if self.config.specialised >= len(stages):
            raise ConfigError(
                f"options.specialised of memo: {self.config.specialised} of {len(stages)} stages leave none to share"
            )
        shared, specialised = split(stages[-1 - self.config.specialised])
        if not any(True for _ in shared.parameters()):
            raise ConfigError(f"options.specialised of memo: {self.config.specialised} leaves no weights to share")
        return Extractors(specialised, shared)

    def begin_step(self, task: Task) -> None:
        """Keep the generalised blocks as the first task left them."""
        trained = self.config.train_shared
        if trained is None:
            each = task.stop - task.first
            trained = task.first - (task.number - 1) * each <= each
        self.body.shared_fixed = task.number > 0 and not trained
        super().begin_step(task)

    @torch.no_grad()
    def end_step(self, task: Task, samples: SampleBatches) -> None:
        """Align the weights, where that is asked for."""
        if self.config.align and task.number:
            weight = self.network.head.weight
            weight.copy_(aligned(weight, task.first))
