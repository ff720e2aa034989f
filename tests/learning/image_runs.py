"""Small runs of images: their samples, a residual network, and options."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from krstore.backbones import ResNet
from krstore.learning.building import build_run_config
from krstore.learning.config import RunConfig
from krstore.learning.data import Dataset
from krstore.testing import ArraySource


def tiny(shortcut: str = "A") -> ResNet:
    network = ResNet((1, 1), (4, 8), 2, shortcut)
    network.fc = nn.Identity()  # type: ignore[assignment]
    for module in network.modules():  # norms that are not neutral
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    return network.eval()


def images(each: int = 20, classes: int = 4) -> Dataset:
    def source(count: int, seed: int) -> ArraySource:
        rng = np.random.default_rng(seed)
        labels = np.repeat(np.arange(classes), count)
        centres = np.random.default_rng(7).integers(40, 216, (classes, 1, 1, 3))
        pixels = np.clip(centres[labels] + rng.normal(0, 25, (len(labels), 8, 8, 3)), 0, 255)
        return ArraySource(pixels.astype(np.uint8), labels)

    return Dataset.of(source(each, 0), source(10, 1))


def config(method: str, **settings: Any) -> RunConfig:
    quick = {"epochs": 2, "milestones": (), "learning_rate": 0.05, "batch_size": 16}
    given = {
        "data": "given", "model": "image_runs:tiny", "base": 0, "steps": 2, "crop": 0, "base_training": quick,
        "training": quick, "device": "cpu", **settings,
    }  # fmt: skip
    return build_run_config(method, given)
