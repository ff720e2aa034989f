"""The feature decoder of budgeted stores: the paper's stages around a linear path.

    e (n, width) [-> FC d0 + leaky ReLU, but the last entries around it] -> FC c0 x h0 x w0 -> 4 residual blocks
      -> deconvolution c0 -> c1, stride s -> 2 residual blocks -> x + convolution(leaky ReLU(x))
      -> features (n, C, H, W) in [0, 1]

The stages, kernels and depthwise blocks are those of `krstore_codecs._decoder`; what differs is how they are joined.
There are no norms, nothing on the trunk is rectified, and every residual branch starts at zero, so the decoder is
linear in the input of its last FC layer at first, and that layer begins at the features' principal components. It
learns in the few hundred iterations that a CPU affords; the paper gives its own network 40,000 on a GPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krstore_codecs._decoder import DecoderSizes, Geometry, Standardise
from krstore_codecs._pca import Components

__all__ = ["ResidualDecoder", "ResidualEncoder"]

SLOPE = 0.1


class _Residual(nn.Module):
    """x + second(leaky ReLU(first(x))), zero at the start; `first` may be nothing."""

    def __init__(self, first: nn.Module, second: nn.Conv2d) -> None:
        super().__init__()
        self.first, self.second = first, second
        nn.init.zeros_(second.weight)
        if second.bias is not None:
            nn.init.zeros_(second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.as_tensor(self.second(F.leaky_relu(self.first(x), SLOPE)))


def _block(channels: int, geometry: Geometry) -> _Residual:
    convolutions = [
        nn.Conv2d(channels, channels, geometry.small, padding=geometry.small_padding, groups=channels) for _ in range(2)
    ]
    return _Residual(convolutions[0], convolutions[1])


def _dense(channels: int, geometry: Geometry) -> _Residual:
    return _Residual(nn.Identity(), nn.Conv2d(channels, channels, geometry.small, padding=geometry.small_padding))


def _at_centre(kernel: Tensor, matrix: Tensor) -> None:
    """Make a kernel (a, b, h, w) the matrix (a, b) at its middle, and zero elsewhere."""
    kernel.zero_()
    kernel[:, :, kernel.shape[2] // 2, kernel.shape[3] // 2] = matrix


class ResidualDecoder(nn.Module):
    """Embeddings (n, width) to features (n, C, H, W); `d0` of 0 leaves out the first FC layer."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        geometry = Geometry.of(sizes)
        self.start = (sizes.c0, *geometry.start)
        self.direct = sizes.direct if sizes.d0 else 0
        wide = [nn.Linear(sizes.width, sizes.d0), nn.LeakyReLU(SLOPE)] if sizes.d0 else []
        inputs = sizes.d0 + self.direct or sizes.width
        self.fc = nn.Sequential(*wide, nn.Linear(inputs, sizes.c0 * geometry.start_positions))
        self.before = nn.Sequential(*(_block(sizes.c0, geometry) for _ in range(4)))
        self.deconvolution = geometry.deconvolution(sizes.c0, sizes.c1)
        if sizes.stride == 1:
            nn.init.dirac_(self.deconvolution.weight)
        self.after = nn.Sequential(*(_block(sizes.c1, geometry) for _ in range(2)))
        self.head = (
            _dense(sizes.c1, geometry)
            if sizes.c1 == sizes.channels
            else nn.Conv2d(sizes.c1, sizes.channels, geometry.small, padding=geometry.small_padding)
        )

    def begin_at(self, components: Components, share: float) -> None:
        """Let the last FC layer's inputs stand for principal components, each scaled to `share` of its spread.

        Direct entries stand for the first of them, unscaled, the others for the rest. What the layer has inputs for
        beyond the components begins at zero. A decoder that changes the grid or the channels is left as it is.
        """
        last, kernel, bias = self.fc[-1], self.deconvolution.weight, self.deconvolution.bias
        assert isinstance(last, nn.Linear)
        assert bias is not None
        if self.deconvolution.stride != (1, 1) or kernel.shape[1] != len(components.mean):
            return
        expand = (components.directions.T * components.spread)[:, : last.in_features]
        hidden = last.in_features - self.direct
        with torch.no_grad():
            _at_centre(kernel, components.channels)
            bias.copy_(components.mean)
            last.weight.zero_()
            last.weight[:, hidden : hidden + expand.shape[1]] = expand[:, : self.direct]
            rest = expand[:, self.direct :]
            last.weight[:, : rest.shape[1]] = share * rest
            last.bias.copy_(components.centre)

    def forward(self, e: Tensor) -> Tensor:
        """Decode embeddings."""
        hidden = self.fc[:-1](e)
        x = self.fc[-1](torch.cat([hidden, e[:, e.shape[1] - self.direct :]], 1)).unflatten(1, self.start)
        return torch.as_tensor(self.head(self.after(self.deconvolution(self.before(x)))))


class ResidualEncoder(nn.Module):
    """The decoder's mirror: features (n, C, H, W) to latents (n, width), standardised over the batch."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        geometry = Geometry.of(sizes)
        convolution = geometry.convolution(sizes.channels, sizes.c0)
        if sizes.stride == 1:
            nn.init.dirac_(convolution.weight)
        inputs = sizes.c0 * geometry.start_positions
        wide = [nn.Linear(inputs, sizes.d0), nn.LeakyReLU(SLOPE)] if sizes.d0 else []
        self.before = nn.Sequential(
            _dense(sizes.channels, geometry), *(_block(sizes.channels, geometry) for _ in range(2))
        )
        self.convolution = convolution
        self.after = nn.Sequential(*(_block(sizes.c0, geometry) for _ in range(4)))
        self.fc = nn.Sequential(*wide, nn.Linear(sizes.d0 or inputs, sizes.width))
        self.standardise = Standardise(sizes.width)

    def begin_at(self, components: Components) -> None:
        """Let the first latents be principal components, scaled to unit variance."""
        last, kernel, bias = self.fc[-1], self.convolution.weight, self.convolution.bias
        assert isinstance(last, nn.Linear)
        assert bias is not None
        if len(self.fc) > 1 or self.convolution.stride != (1, 1):
            return
        project = (components.directions / components.spread[:, None])[: last.out_features]
        with torch.no_grad():
            _at_centre(kernel, components.channels)
            bias.copy_(-components.channels @ components.mean)
            last.weight[: len(project)] = project
            last.bias[: len(project)] = -project @ components.centre

    def forward(self, features: Tensor) -> Tensor:
        """Encode features."""
        x = self.after(self.convolution(self.before(features)))
        return torch.as_tensor(self.standardise(self.fc(x.flatten(1))))
