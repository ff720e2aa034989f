"""Exemplars as parameters: the gradient of a network's loss with respect to the samples that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["meta_gradient"]

Weights = Mapping[str, Tensor]


def meta_gradient(
    network: nn.Module, exemplars: Tensor, labels: Tensor, x: Tensor, y: Tensor, *, steps: int, rate: float
) -> tuple[Tensor, float]:
    """Train a copy of a network on exemplars, and return how its loss on samples depends on them.

    Mnemonics training (Liu et al., CVPR 2020): Theta' starts as the network and takes `steps` of gradient descent on
    the exemplars' cross-entropy (Eq. 8); the loss of Theta' on the samples is differentiated through all of them
    (Eq. 9).
    The network itself is left as it is; buffers, of norms in eval mode for example, are constants.

    Args:
        network: maps samples (B, *shape) to scores (B, C).
        exemplars, labels: (M, *shape) and (M,).
        x, y: samples (B, *shape) and their labels (B,).
        steps, rate: of the descent; alpha_2 is the rate.

    Returns:
        the gradient (M, *shape), and the loss.
    """
    exemplars = exemplars.detach().requires_grad_(True)
    buffers = dict(network.named_buffers())
    weights = {name: value.detach().requires_grad_(True) for name, value in network.named_parameters()}

    def loss(own: Weights, samples: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, (dict(own), buffers), (samples,)), wanted)

    with torch.enable_grad():
        for _ in range(steps):
            slopes = torch.autograd.grad(loss(weights, exemplars, labels), list(weights.values()), create_graph=True)
            weights = {name: value - rate * slope for (name, value), slope in zip(weights.items(), slopes, strict=True)}
        final = loss(weights, x, y)
        (gradient,) = torch.autograd.grad(final, exemplars)
    return gradient, float(final.detach())
