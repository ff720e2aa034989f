"""The feature decoder that KRNet and the autoencoder share (KRNet paper, Sec. III-A2 and Fig. 3, Table I).

    e (n, width) -> FC d0 -> FC d1 = c0 x h0 x w0 -> 4 basic blocks -> deconvolution c0 -> c1, stride s
      -> 2 basic blocks -> convolution -> features (n, C, H, W) in [0, 1],  c1 = C

FC, deconvolution and convolution are each followed by group norm and leaky ReLU ("modules" in the paper).

What the paper leaves to its figure is the basic block. Its published sizes (of 2^20 bytes: 327.9 MB for the ImageNet
KRNet, 325.8 MB for the autoencoder's decoder) leave about 0.1 M weights beside the FC layers and the 5x5
deconvolution, so all 3x3 kernels must be depthwise. Our reading, two depthwise convolutions a block, each with group
norm, around a shortcut, a depthwise last convolution, FC layers without bias, comes to 327.8 and 325.8 MB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DecoderSizes", "FeatureDecoder", "FeatureEncoder", "FullyConnected", "Geometry", "Standardise"]

SLOPE = 1e-4
GROUPS = 2


class DecoderSizes(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of a decoder, by the paper's names.

    Attributes:
        style: ``"paper"`` for this module's networks, ``"residual"`` for those of `krstore_codecs._residual`.
        width: length of the embedding e.
        d0: outputs of the decoder's first FC layer; the second has c0 x h0 x w0.
        c0, c1: channels before and after the deconvolution.
        stride: of the deconvolution; h0 = ceil(height / stride).
        channels, height, columns: of the features (C, H, W).
        direct: how many of the last entries of e go around the first FC layer, in style residual.
    """

    style: Literal["paper", "residual"]
    width: int
    d0: int
    c0: int
    c1: int
    stride: int
    channels: int
    height: int
    columns: int
    direct: int = 0


@dataclass(frozen=True)
class Geometry:
    """Kernels and strides on the features' grid; nothing extends along an axis of one position."""

    full: tuple[int, int]
    start: tuple[int, int]
    stride: tuple[int, int]

    @classmethod
    def of(cls, sizes: DecoderSizes) -> Geometry:
        """Return the geometry of a decoder."""
        full = (sizes.height, sizes.columns)
        strides = (sizes.stride if full[0] > 1 else 1, sizes.stride if full[1] > 1 else 1)
        return cls(full, (-(-full[0] // strides[0]), -(-full[1] // strides[1])), strides)

    @property
    def start_positions(self) -> int:
        """h0 w0: positions before the deconvolution."""
        return math.prod(self.start)

    @property
    def small(self) -> tuple[int, int]:
        """Kernel of the convolutions: 3x3."""
        return self._kernel(3)

    @property
    def small_padding(self) -> tuple[int, int]:
        """What keeps the grid under the small kernel."""
        return (self.small[0] // 2, self.small[1] // 2)

    def deconvolution(self, inputs: int, outputs: int) -> nn.ConvTranspose2d:
        """Return the 5x5 deconvolution from the start's grid to the full one."""
        kernel, (h, w) = self._kernel(5), self.start
        missing = (self.full[0] - (h - 1) * self.stride[0] - 1, self.full[1] - (w - 1) * self.stride[1] - 1)
        return nn.ConvTranspose2d(inputs, outputs, kernel, self.stride, (kernel[0] // 2, kernel[1] // 2), missing)

    def convolution(self, inputs: int, outputs: int) -> nn.Conv2d:
        """Return the deconvolution's mirror, from the full grid to the start's."""
        kernel = self._kernel(5)
        return nn.Conv2d(inputs, outputs, kernel, self.stride, (kernel[0] // 2, kernel[1] // 2))

    def _kernel(self, size: int) -> tuple[int, int]:
        return (size if self.full[0] > 1 else 1, size if self.full[1] > 1 else 1)


def _groups(channels: int) -> int:
    """Two groups, but never one of a single channel: on a grid of one position its norm would be constant."""
    return GROUPS if channels % GROUPS == 0 and channels > GROUPS else 1


class FullyConnected(nn.Sequential):
    """An FC module: linear, group norm, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Linear(inputs, outputs, bias=False), nn.GroupNorm(_groups(outputs), outputs), nn.LeakyReLU(SLOPE)
        )


def _module(layer: nn.Module, outputs: int) -> nn.Sequential:
    return nn.Sequential(layer, nn.GroupNorm(_groups(outputs), outputs), nn.LeakyReLU(SLOPE))


class _BasicBlock(nn.Module):
    def __init__(self, channels: int, geometry: Geometry) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, geometry.small, padding=geometry.small_padding, groups=channels)
        self.norm1 = nn.GroupNorm(_groups(channels), channels)
        self.conv2 = nn.Conv2d(channels, channels, geometry.small, padding=geometry.small_padding, groups=channels)
        self.norm2 = nn.GroupNorm(_groups(channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.leaky_relu(self.norm1(self.conv1(x)), SLOPE)
        return F.leaky_relu(self.norm2(self.conv2(out)) + x, SLOPE)


class FeatureDecoder(nn.Module):
    """Embeddings (n, width) to features (n, C, H, W)."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        geometry = Geometry.of(sizes)
        self.start = (sizes.c0, *geometry.start)
        self.fc = nn.Sequential(
            FullyConnected(sizes.width, sizes.d0), FullyConnected(sizes.d0, sizes.c0 * geometry.start_positions)
        )
        self.before = nn.Sequential(*(_BasicBlock(sizes.c0, geometry) for _ in range(4)))
        self.deconvolution = _module(geometry.deconvolution(sizes.c0, sizes.c1), sizes.c1)
        self.after = nn.Sequential(*(_BasicBlock(sizes.c1, geometry) for _ in range(2)))
        self.head = _module(_last(sizes, geometry), sizes.channels)

    def forward(self, e: Tensor) -> Tensor:
        """Decode embeddings."""
        x = self.fc(e).unflatten(1, self.start)
        return torch.as_tensor(self.head(self.after(self.deconvolution(self.before(x)))))


class Standardise(nn.BatchNorm1d):
    """Gives latents (n, width) zero mean and unit variance over the batch; one sample alone, over those before it."""

    def __init__(self, width: int) -> None:
        super().__init__(width, affine=False)

    def forward(self, latents: Tensor) -> Tensor:
        """Standardise latents."""
        if len(latents) == 1:
            return F.batch_norm(latents, self.running_mean, self.running_var, eps=self.eps)
        return super().forward(latents)


class FeatureEncoder(nn.Module):
    """The decoder's mirror: features (n, C, H, W) to latents (n, width), standardised over the batch."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        geometry = Geometry.of(sizes)
        self.layers = nn.Sequential(
            _module(_last(sizes, geometry), sizes.c1),
            *(_BasicBlock(sizes.c1, geometry) for _ in range(2)),
            _module(geometry.convolution(sizes.c1, sizes.c0), sizes.c0),
            *(_BasicBlock(sizes.c0, geometry) for _ in range(4)),
            nn.Flatten(),
            FullyConnected(sizes.c0 * geometry.start_positions, sizes.d0),
            nn.Linear(sizes.d0, sizes.width),
            Standardise(sizes.width),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Encode features."""
        return torch.as_tensor(self.layers(features))


def _last(sizes: DecoderSizes, geometry: Geometry) -> nn.Conv2d:
    """The depthwise convolution at the features' end."""
    return nn.Conv2d(
        sizes.channels, sizes.channels, geometry.small, padding=geometry.small_padding, groups=sizes.channels
    )
