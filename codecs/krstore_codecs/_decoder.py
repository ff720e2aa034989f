"""The feature decoder that KRNet and the autoencoder share (KRNet paper, Sec. III-A2 and Fig. 3, Table I).

    e (n, width) -> FC d0 -> FC d1 = c0 x h0 x w0 -> 4 basic blocks -> deconvolution c0 -> c1, stride s
      -> 2 basic blocks -> convolution c1 -> C -> features (n, C, H, W) in [0, 1]

FC, deconvolution and convolution are each followed by group norm and leaky ReLU ("modules" in the paper).

What the paper leaves to its figure is the basic block. Its published sizes (of 2^20 bytes: 327.9 MB for the ImageNet
KRNet, 325.8 MB for the autoencoder's decoder) leave about 0.1 M weights beside the FC layers and the 5x5
deconvolution, so all 3x3 kernels must be depthwise. Our reading, two depthwise convolutions a block, each with group
norm, around a shortcut, a depthwise last convolution, FC layers without bias, comes to 327.8 and 325.8 MB.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DecoderSizes", "FeatureDecoder", "FeatureEncoder", "FullyConnected", "default_c1"]

SLOPE = 1e-4
GROUPS = 2


class DecoderSizes(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of a decoder, by the paper's names.

    Attributes:
        width: length of the embedding e.
        d0: outputs of the first FC layer; the second has c0 x h0 x w0.
        c0, c1: channels before and after the deconvolution.
        stride: of the deconvolution; h0 = ceil(height / stride).
        channels, height, columns: of the features (C, H, W).
        head: ``"module"``, the paper's last convolution, depthwise with group norm and leaky ReLU (c1 = C), or
            ``"plain"``, a dense convolution and nothing after it.
    """

    width: int
    d0: int
    c0: int
    c1: int
    stride: int
    channels: int
    height: int
    columns: int
    head: Literal["module", "plain"] = "module"

    @property
    def grid(self) -> tuple[int, int]:
        """(h0, w0): positions before the deconvolution."""
        return tuple(-(-n // self.stride) if n > 1 else 1 for n in (self.height, self.columns))  # type: ignore[return-value]


def _kernel(sizes: DecoderSizes, kernel: int) -> tuple[int, int]:
    """A kernel does not extend along an axis of one position."""
    return (kernel if sizes.height > 1 else 1, kernel if sizes.columns > 1 else 1)


def _groups(channels: int) -> int:
    """Two groups, but never one of a single channel: on a grid of one position its norm would be constant."""
    return GROUPS if channels % GROUPS == 0 and channels > GROUPS else 1


def default_c1(channels: int, head: str) -> int:
    """Return c1 when none is given: the features' channels, and with a plain head at least 8."""
    return channels if head == "module" else max(8, channels)


class FullyConnected(nn.Sequential):
    """An FC module: linear, group norm, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Linear(inputs, outputs, bias=False), nn.GroupNorm(_groups(outputs), outputs), nn.LeakyReLU(SLOPE))


class _BasicBlock(nn.Module):
    def __init__(self, channels: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.conv1 = nn.Conv2d(channels, channels, kernel, padding=padding, groups=channels)
        self.norm1 = nn.GroupNorm(_groups(channels), channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel, padding=padding, groups=channels)
        self.norm2 = nn.GroupNorm(_groups(channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.leaky_relu(self.norm1(self.conv1(x)), SLOPE)
        return F.leaky_relu(self.norm2(self.conv2(out)) + x, SLOPE)


class FeatureDecoder(nn.Module):
    """Embeddings (n, width) to features (n, C, H, W)."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.sizes = sizes
        h0, w0 = sizes.grid
        small, large = _kernel(sizes, 3), _kernel(sizes, 5)
        stride = (sizes.stride if sizes.height > 1 else 1, sizes.stride if sizes.columns > 1 else 1)
        output_padding = tuple(
            full - ((start - 1) * step + 1) for full, start, step in zip((sizes.height, sizes.columns), (h0, w0), stride, strict=True)
        )
        self.fc = nn.Sequential(FullyConnected(sizes.width, sizes.d0), FullyConnected(sizes.d0, sizes.c0 * h0 * w0))
        self.before = nn.Sequential(*(_BasicBlock(sizes.c0, small) for _ in range(4)))
        self.deconvolution = nn.Sequential(
            nn.ConvTranspose2d(sizes.c0, sizes.c1, large, stride, (large[0] // 2, large[1] // 2), output_padding),
            nn.GroupNorm(_groups(sizes.c1), sizes.c1),
            nn.LeakyReLU(SLOPE),
        )
        self.after = nn.Sequential(*(_BasicBlock(sizes.c1, small) for _ in range(2)))
        self.head = _head(sizes)

    def forward(self, e: Tensor) -> Tensor:
        """Decode embeddings."""
        h0, w0 = self.sizes.grid
        x = self.fc(e).unflatten(1, (self.sizes.c0, h0, w0))
        return torch.as_tensor(self.head(self.after(self.deconvolution(self.before(x)))))


def _head(sizes: DecoderSizes) -> nn.Sequential:
    kernel = _kernel(sizes, 3)
    padding = (kernel[0] // 2, kernel[1] // 2)
    if sizes.head == "plain":
        return nn.Sequential(nn.Conv2d(sizes.c1, sizes.channels, kernel, padding=padding))
    convolution = nn.Conv2d(sizes.c1, sizes.channels, kernel, padding=padding, groups=sizes.c1)
    return nn.Sequential(convolution, nn.GroupNorm(_groups(sizes.channels), sizes.channels), nn.LeakyReLU(SLOPE))


class FeatureEncoder(nn.Module):
    """The decoder's mirror: features (n, C, H, W) to latents (n, width), standardised over the batch."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        h0, w0 = sizes.grid
        small, large = _kernel(sizes, 3), _kernel(sizes, 5)
        stride = (sizes.stride if sizes.height > 1 else 1, sizes.stride if sizes.columns > 1 else 1)
        self.layers = nn.Sequential(
            nn.Conv2d(
                sizes.channels, sizes.c1, small, padding=(small[0] // 2, small[1] // 2),
                groups=sizes.c1 if sizes.head == "module" else 1,
            ),
            nn.GroupNorm(_groups(sizes.c1), sizes.c1),
            nn.LeakyReLU(SLOPE),
            *(_BasicBlock(sizes.c1, small) for _ in range(2)),
            nn.Conv2d(sizes.c1, sizes.c0, large, stride, (large[0] // 2, large[1] // 2)),
            nn.GroupNorm(_groups(sizes.c0), sizes.c0),
            nn.LeakyReLU(SLOPE),
            *(_BasicBlock(sizes.c0, small) for _ in range(4)),
            nn.Flatten(),
            FullyConnected(sizes.c0 * h0 * w0, sizes.d0),
            nn.Linear(sizes.d0, sizes.width),
            nn.BatchNorm1d(sizes.width, affine=False),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Encode features."""
        return torch.as_tensor(self.layers(features))
