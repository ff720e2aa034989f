"""Exemplars as parameters: trained through the training of a network on them (mnemonics paper).

Liu et al., "Mnemonics training: multi-class incremental learning without forgetting", CVPR 2020, Sec. 4.3. What the
paper trains in normalised pixels is trained in units of each channel's standard deviation here, for images and feature
maps alike, and kept within the range of the samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from krstore.source import Array, SourceSpec

__all__ = ["Units", "as_stored", "meta_gradient", "train_exemplars"]

Weights = Mapping[str, Tensor]


def meta_gradient(
    network: nn.Module, exemplars: Tensor, labels: Tensor, x: Tensor, y: Tensor, *, steps: int, rate: float
) -> tuple[Tensor, float]:
    """Train a copy of a network on exemplars, and return how its loss on samples depends on them.

    Theta' starts as the network and takes `steps` of gradient descent on the exemplars' cross-entropy (Eq. 8); the loss
    of Theta' on the samples is differentiated through all of them (Eqs. 9 and 10). The network itself is left as it is.
    Buffers, of norms in eval mode for example, are constants, and so are weights that have been given a parametrisation
    to train in their place (weight transfer).

    Args:
        network: maps samples (B, *shape) to scores (B, C).
        exemplars, labels: (M, *shape) and (M,).
        x, y: samples (B, *shape) and their labels (B,).
        steps, rate: of the descent; alpha_2 is the rate.

    Returns:
        the gradient (M, *shape), and the loss.
    """
    exemplars = exemplars.detach().requires_grad_(True)
    parameters = {name: value.detach() for name, value in network.named_parameters()}
    replaced = _replaced(network)
    weights = {name: value.requires_grad_(True) for name, value in parameters.items() if name not in replaced}
    constants = {**parameters, **dict(network.named_buffers())}

    def loss(own: Weights, samples: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, {**constants, **own}, (samples,)), wanted)

    with torch.enable_grad():
        for _ in range(steps):
            slopes = torch.autograd.grad(loss(weights, exemplars, labels), list(weights.values()), create_graph=True)
            weights = {name: value - rate * slope for (name, value), slope in zip(weights.items(), slopes, strict=True)}
        final = loss(weights, x, y)
        (gradient,) = torch.autograd.grad(final, exemplars)
    return gradient, float(final.detach())


def train_exemplars(
    network: nn.Module, exemplars: Tensor, labels: Tensor, batches: Iterable[tuple[Tensor, Tensor, float]],
    units: Units, *, steps: int, inner_rate: float,
) -> Tensor:  # fmt: skip
    """Return exemplars (M, *shape) after a step against the meta-gradient for each batch.

    Args:
        network: maps samples as they are stored to scores, in eval mode.
        exemplars, labels: as they are stored, float, (M, *shape) and (M,).
        batches: samples as they are stored (B, *shape), their labels (B,), and the rate of the step, beta.
        units: of the channels.
        steps, inner_rate: see `meta_gradient`.
    """
    device = exemplars.device
    units = units.to(device)
    model = _Scaled(network, units)
    low, high, trained = units.scaled(units.low), units.scaled(units.high), units.scaled(exemplars)
    for x, y, rate in batches:
        gradient, _ = meta_gradient(
            model, trained, labels, units.scaled(x.to(device)), y.to(device), steps=steps, rate=inner_rate
        )
        trained = torch.clamp(trained - rate * gradient, low, high)
    return units.raw(trained)


def as_stored(exemplars: Tensor, dtype: np.dtype[Any]) -> Array:
    """Return trained exemplars in the dtype of the samples, rounded where that is of integers."""
    values = exemplars.cpu().numpy()
    return (np.rint(values) if dtype.kind in "ui" else values).astype(dtype)


@dataclass(frozen=True)
class Units:
    """Mean and deviation of each channel, and the range that it is kept in, shaped to be broadcast over a sample."""

    mean: Tensor
    spread: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, spec: SourceSpec, samples: Tensor) -> Units:
        """Measure samples (N, *shape), float; the range is theirs, and that of the dtype if it is uint8."""
        shape = [1] * len(spec.shape)
        if spec.channel_axis is not None:
            shape[spec.channel_axis] = spec.shape[spec.channel_axis]
        axes = [axis for axis in range(samples.ndim) if axis == 0 or axis - 1 != spec.channel_axis]
        spread = samples.std(axes, correction=0).reshape(shape)
        low, high = (of(axes).reshape(shape) for of in (samples.amin, samples.amax))
        if spec.dtype == "uint8":
            low, high = torch.zeros_like(low), torch.full_like(high, 255)
        return cls(samples.mean(axes).reshape(shape), torch.where(spread > 0, spread, 1.0), low, high)

    def to(self, device: torch.device) -> Units:
        """Return the same on a device."""
        return Units(*(value.to(device) for value in (self.mean, self.spread, self.low, self.high)))

    def scaled(self, values: Tensor) -> Tensor:
        """Return values (*shape) in these units."""
        return (values - self.mean) / self.spread

    def raw(self, scaled: Tensor) -> Tensor:
        """Undo `scaled`, within the range; at its ends gradients are whole, which clamp's are not in every torch."""
        values = scaled * self.spread + self.mean
        return torch.where(values < self.low, self.low, torch.where(values > self.high, self.high, values))


def _replaced(network: nn.Module) -> set[str]:
    """Return the names of weights whose parametrisation has parameters of its own."""
    return {
        f"{name}.original" for name, module in network.named_modules()
        if isinstance(module, parametrize.ParametrizationList) and any(True for own in module for _ in own.parameters())
    }  # fmt: skip


class _Scaled(nn.Module):
    """A network of samples in those units."""

    mean: Tensor
    spread: Tensor

    def __init__(self, network: nn.Module, units: Units) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", units.mean)
        self.register_buffer("spread", units.spread)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.network(x * self.spread + self.mean))
