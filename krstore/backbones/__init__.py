"""The papers' backbones, for `krstore extract` and as the frozen and trained halves of learners."""

from krstore.backbones.resnet import (
    ResNet,
    resnet18,
    resnet32,
    resnet32_tail,
)

__all__ = ["ResNet", "resnet18", "resnet32", "resnet32_tail"]
