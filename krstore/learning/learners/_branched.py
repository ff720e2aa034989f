"""An auxiliary classifier of what a layer within a network gives (M2KD, Sec. 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from krstore.errors import UsageError
from krstore.learning.network import Network, carry_over

__all__ = ["Branched", "grown", "intermediate", "linear"]


class Branched:
    """A network with a linear classifier of one of its layers' outputs, averaged over positions."""

    def __init__(self, network: Network, branch: nn.Linear | None, layer: str) -> None:
        self.network, self._branch, self._layer = network, branch, layer

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the logits (B, C) of both; `None` without a branch."""
        if self._branch is None:
            return self.network(x), None
        logits, pooled = intermediate(self.network, self._layer, x)
        return logits, self._branch(pooled)


def intermediate(network: Network, layer: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits, and a layer's output averaged over positions (B, channels)."""
    seen: list[Tensor] = []
    hook = network.body.get_submodule(layer).register_forward_hook(lambda module, given, output: seen.append(output))
    try:
        logits = network(x)
    finally:
        hook.remove()
    if not seen or not isinstance(seen[0], Tensor) or not 2 <= seen[0].ndim <= 4:
        raise UsageError(f"options.layer of m2kd: {layer!r} gives no feature maps, tokens or embeddings")
    positions = {2: (), 3: (1,), 4: (2, 3)}[seen[0].ndim]
    return logits, seen[0].mean(positions) if positions else seen[0]


def grown(branch: nn.Linear | None, width: int, classes: int, device: torch.device) -> nn.Linear:
    """Return a classifier of more classes, in which those of the earlier one have their weights."""
    grown = nn.Linear(width, classes, device=device)
    if branch is not None:
        carry_over(branch, grown, branch.out_features)
    return grown


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return a classifier with these weights."""
    made = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
    made.load_state_dict({"weight": weight, "bias": bias})
    return made
