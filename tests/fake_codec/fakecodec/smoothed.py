"""smoothed: replay whose labels are smoothed, less so as more samples have been seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from krstore.learning import Batch, Learner, LearnerConfig, Rehearsal
from krstore.learning.network import Network

__all__ = ["Smoothed", "SmoothedConfig"]


class SmoothedConfig(LearnerConfig, frozen=True, kw_only=True):
    """Options of smoothed."""

    smoothing: Annotated[float, msgspec.Meta(ge=0, lt=1, description="of the labels, at first")] = 0.2


class Smoothed(Learner):
    """Replay with smoothed labels."""

    name = "smoothed"
    summary = "replay, its labels smoothed less and less"
    rehearsal = Rehearsal.MEMORY
    Config: ClassVar = SmoothedConfig

    def __init__(self, options: Mapping[str, Any], network: Network, seed: int) -> None:
        super().__init__(options, network, seed)
        self._seen = torch.zeros((), dtype=torch.int64)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy."""
        self._seen += len(batch.y)
        smoothing = self.config.smoothing / (1 + float(self._seen) / 100)
        return {"ce": F.cross_entropy(self.network(batch.x), batch.y, label_smoothing=smoothing)}

    def state(self) -> dict[str, Tensor]:
        """Return how many samples have been learnt from."""
        return {"seen": self._seen}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on counting."""
        self._seen = state["seen"].cpu()
