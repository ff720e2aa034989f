"""Small runs: their samples, network and options, and a progress that interrupts them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from krstore.learning.building import build_run_config
from krstore.learning.config import RunConfig
from krstore.progress import SILENT, Task

CLASSES, TRAIN, TEST = 6, 30, 10
LABELS = np.array([3, 8, 20, 21, 40, 77])


def body() -> nn.Module:
    """A network without a classifier on samples of 4x6x6."""
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


class Named(nn.Module):
    """The same body with a last layer of some name.

    Args:
        name: of the layer.
        first: register it before the body.
    """

    def __init__(self, name: str, first: bool = False) -> None:
        super().__init__()
        parts = {name: nn.Linear(8, 2), "body": body()}
        for part in parts if first else reversed(parts):
            self.add_module(part, parts[part])
        self._name = name

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.get_submodule(self._name)(self.body(x)))


def samples(each: int, seed: int, dtype: str = "float32") -> tuple[Any, Any]:
    """Return samples (N, 4, 6, 6) whose channels tell the class, and labels with gaps, shuffled."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(CLASSES, 4, 1, 1))
    labels = rng.permutation(np.repeat(np.arange(CLASSES), each))
    x = np.maximum(2 * centres[labels] + 0.5 * rng.normal(size=(len(labels), 4, 6, 6)), 0)
    return x.astype(dtype), LABELS[labels]


def config(data: Path, method: str = "finetune", **settings: Any) -> RunConfig:
    quick = {"epochs": 2, "milestones": (), "learning_rate": 0.05, "batch_size": 16}
    given = {
        "data": str(data), "model": "learning_runs:body", "base": 2, "steps": 2, "crop": 0, "base_training": quick,
        "training": quick, "device": "cpu", "memory.codec": "raw", **settings,
    }  # fmt: skip
    return build_run_config(method, given)


class KilledAfter:
    """Interrupts a run as soon as a step of it is finished."""

    def __init__(self, step: int) -> None:
        self._step = step

    def task(self, description: str, total: int, unit: str = "samples") -> AbstractContextManager[Task]:
        """Take a piece of work."""
        return SILENT.task(description, total, unit)

    def note(self, message: str) -> None:
        """Take a message of the run."""
        if message.startswith(f"step {self._step}:"):
            raise KeyboardInterrupt
