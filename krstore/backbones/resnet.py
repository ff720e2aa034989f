"""ResNet-32 for CIFAR and ResNet-18 (He et al., 2016), with the parameter names of torchvision.

The papers split them into a fixed extractor F1 and a learner F2 at a basic block: ResNet-32 after block 11, which is
the layer ``layer3.0`` with features of 64x8x8; ResNet-18 after block 6, ``layer3.1``, with 256x14x14.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BasicBlock", "ResNet", "ResNetTail", "resnet8", "resnet18", "resnet18_tail", "resnet32", "resnet32_tail"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut.

    Args:
        shortcut: how a block that halves the grid passes its input on. ``"A"`` (the CIFAR networks of the paper):
            every second position, the missing channels zero, half of them on either side. ``"B"``: a 1x1 convolution.
        rectified: end with a ReLU.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str, rectified: bool = True) -> None:
        super().__init__()
        self.rectified = rectified
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs
        self.downsample: nn.Module | None = None
        if shortcut == "B" and (stride != 1 or self.added):
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.downsample is not None:
            x = self.downsample(x)
        elif self.stride != 1 or self.added:
            x = F.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added // 2, self.added - self.added // 2)
            )
        return F.relu(out + x) if self.rectified else out + x


class ResNet(nn.Module):
    """A residual network of basic blocks: stem, stages, global average pooling, linear classifier.

    Args:
        blocks: how many blocks each stage has.
        widths: the channels of each stage.
        classes: outputs of the classifier.
        shortcut: see `BasicBlock`.
        imagenet_stem: a 7x7 stem of stride 2 with max pooling, for 224x224 images, instead of a 3x3 one.
        last_relu: end the last block with a ReLU; LUCIR and iCaRL do without, so that cosines may be negative.
    """

    def __init__(
        self, blocks: Sequence[int], widths: Sequence[int], classes: int, shortcut: str, imagenet_stem: bool = False,
        last_relu: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        width = widths[0]
        self.imagenet_stem = imagenet_stem
        self.conv1 = (
            nn.Conv2d(3, width, 7, 2, 3, bias=False) if imagenet_stem else nn.Conv2d(3, width, 3, 1, 1, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(width)
        self.stages = [f"layer{i}" for i in range(1, len(blocks) + 1)]
        for name, count, outputs in zip(self.stages, blocks, widths, strict=True):
            stride = 1 if name == "layer1" else 2
            stage = [
                BasicBlock(
                    width if i == 0 else outputs,
                    outputs,
                    stride if i == 0 else 1,
                    shortcut,
                    last_relu or name != self.stages[-1] or i < count - 1,
                )
                for i in range(count)
            ]
            self.add_module(name, nn.Sequential(*stage))
            width = outputs
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        if self.imagenet_stem:
            x = F.max_pool2d(x, 3, 2, 1)
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return torch.as_tensor(self.fc(x.mean((2, 3))))

    def split(self, layer: str) -> tuple[nn.Module, ResNetTail]:
        """Return what makes a layer's output of images, and what makes embeddings of that; both keep the weights."""
        stem = nn.Sequential(OrderedDict(conv1=self.conv1, bn1=self.bn1, relu=nn.ReLU()))
        if self.imagenet_stem:
            stem.add_module("pool", nn.MaxPool2d(3, 2, 1))
        return nn.Sequential(stem, *_until(self, layer)), ResNetTail(self, layer)


def resnet32(classes: int = 50, last_relu: bool = True) -> ResNet:
    """Return the ResNet-32 of the CIFAR class-incremental papers: 463,504 parameters without the classifier."""
    return ResNet((5, 5, 5), (16, 32, 64), classes, shortcut="A", last_relu=last_relu)


def resnet8(classes: int = 10, last_relu: bool = True) -> ResNet:
    """Return the same with a block a stage: 74,640 parameters without the classifier."""
    return ResNet((1, 1, 1), (16, 32, 64), classes, shortcut="A", last_relu=last_relu)


def resnet18(classes: int = 100, imagenet_stem: bool = True) -> ResNet:
    """Return the standard ResNet-18, for images of 224x224; or without its stem, for those of 32x32."""
    return ResNet((2, 2, 2, 2), (64, 128, 256, 512), classes, shortcut="B", imagenet_stem=imagenet_stem)


class ResNetTail(nn.Module):
    """What follows a block of a `ResNet`, up to the embedding: the task learner F2 without its classifier.

    Its parameters have their names in the whole network, so that its weights load by name.

    Args:
        network: the whole network, or another tail, whose modules it takes.
        layer: the block before it, for example ``"layer3.0"``, or a stage, ``"layer2"``, for its last block.
    """

    def __init__(self, network: ResNet | ResNetTail, layer: str) -> None:
        super().__init__()
        stage, _, block = layer.partition(".")
        blocks = dict(network.get_submodule(stage).named_children())
        rest = {name: module for name, module in blocks.items() if block and int(name) > int(block)}
        self.add_module(stage, nn.Sequential(OrderedDict(rest)))  # empty after the last block of a stage
        self.stages: list[str] = network.stages[network.stages.index(stage) :]
        for name in self.stages[1:]:
            self.add_module(name, network.get_submodule(name))

    def forward(self, features: Tensor) -> Tensor:
        """Map features of the layer (N, C, H, W) to pooled embeddings (N, D)."""
        for name in self.stages:
            features = self.get_submodule(name)(features)
        return features.mean((2, 3))

    def split(self, layer: str) -> tuple[nn.Module, ResNetTail]:
        """Return what makes a later layer's output, and what makes embeddings of that; both keep the weights."""
        return nn.Sequential(*_until(self, layer)), ResNetTail(self, layer)


def _until(network: ResNet | ResNetTail, layer: str) -> list[nn.Module]:
    """Return the blocks up to a layer."""
    stage, _, last = layer.partition(".")
    found = [network.get_submodule(name) for name in network.stages[: network.stages.index(stage)]]
    blocks = network.get_submodule(stage).named_children()
    return [*found, *(module for name, module in blocks if not last or int(name) <= int(last))]


def resnet32_tail(layer: str = "layer3.0") -> ResNetTail:
    """Return `resnet32` after a layer, by default features (N, 64, 8, 8) to embeddings (N, 64)."""
    return ResNetTail(resnet32(), layer)


def resnet18_tail(layer: str = "layer3.1") -> ResNetTail:
    """Return `resnet18` after a layer, by default features (N, 256, 14, 14) to embeddings (N, 512)."""
    return ResNetTail(resnet18(), layer)
