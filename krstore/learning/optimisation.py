"""The optimiser and its schedule, from what a run's config says of training."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import torch

from krstore.learning.config import Training

__all__ = ["optimiser_of", "schedule_of", "shortened"]


def optimiser_of(groups: list[dict[str, Any]], training: Training) -> torch.optim.Optimizer:
    """Return the optimiser of a learner's groups of parameters."""
    if training.optimiser == "adam":
        return torch.optim.Adam(groups, weight_decay=training.weight_decay, fused=True)
    return torch.optim.SGD(
        groups, momentum=training.momentum, nesterov=training.nesterov, weight_decay=training.weight_decay, fused=True
    )


def schedule_of(
    optimiser: torch.optim.Optimizer, training: Training, batches: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the schedule of the rate, a step a batch, where an epoch has so many batches."""
    total = max(1, training.epochs * batches)
    if training.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, total)
    places = [epoch * batches for epoch in training.milestones]
    return torch.optim.lr_scheduler.MultiStepLR(optimiser, places, training.gamma)


def shortened(training: Training, share: float) -> Training:
    """Return the same schedule in a share of the epochs, or in more of them."""
    milestones = tuple(round(share * epoch) for epoch in training.milestones)
    return msgspec.structs.replace(training, epochs=math.ceil(share * training.epochs), milestones=milestones)
