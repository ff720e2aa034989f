"""The papers' backbones, for `krstore extract` and as the frozen and trained halves of learners."""

from krstore.backbones.resnet import ResNet, ResNetTail, resnet8, resnet18, resnet18_tail, resnet32, resnet32_tail

__all__ = ["ResNet", "ResNetTail", "resnet8", "resnet18", "resnet18_tail", "resnet32", "resnet32_tail"]
