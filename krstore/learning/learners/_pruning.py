"""A network's weights, handed out step by step: pruned by magnitude, then frozen (PackNet, and Alg. 1 of M2KD)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["FREE", "Masks"]

FREE = 255


class Masks:
    """Which step has taken each weight of a network, and what is held where it is meanwhile.

    Biases and norms, of one axis, are no part of this: each step has its own.

    Args:
        module: whose weights of two or more axes are handed out.

    Attributes:
        index: by name, the step that has taken each weight, uint8; `FREE` for none.
        pruned: whether the step under way has taken its weights.
    """

    def __init__(self, module: nn.Module) -> None:
        self._weights = {name: weight for name, weight in module.named_parameters() if weight.ndim > 1}
        self.index = {name: torch.full_like(w, FREE, dtype=torch.uint8) for name, w in self._weights.items()}
        self.pruned = False
        self._held: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def begin(self) -> None:
        """Hold what earlier steps have taken; what is free may be trained."""
        self.pruned = False
        self._hold({name: index != FREE for name, index in self.index.items()})

    @torch.no_grad()
    def prune(self, step: int, ratio: float) -> None:
        """Take, of each layer's free weights, all but the `ratio` of the least magnitude; make those 0.

        What is taken now may still be trained (until `begin`); all else is held.
        """
        for name, weight in self._weights.items():
            free = self.index[name] == FREE
            magnitudes = weight[free].abs()
            cut = round(ratio * magnitudes.numel())
            kept = torch.ones_like(magnitudes, dtype=torch.bool)
            kept[magnitudes.argsort(stable=True)[:cut]] = False
            self.index[name][free] = torch.where(kept, step, FREE).to(torch.uint8)
            weight[self.index[name] == FREE] = 0.0
        self.pruned = True
        self._hold({name: index != step for name, index in self.index.items()})

    @torch.no_grad()
    def restore(self) -> None:
        """Put what is held back to where it was: momentum and decay have moved it."""
        for name, (held, values) in self._held.items():
            self._weights[name].copy_(torch.where(held, values, self._weights[name]))

    def of_step(self, step: int) -> dict[str, Tensor]:
        """Return the weights of the network of a step: those of later ones are 0 (Eq. 7)."""
        return {
            name: torch.where(self.index[name] <= step, weight.detach(), 0.0) for name, weight in self._weights.items()
        }

    def load(self, index: Mapping[str, Tensor], step: int, pruned: bool) -> None:
        """Take up an index during a step, after its pruning or before it."""
        self.index, self.pruned = {name: index[name].to(w.device) for name, w in self._weights.items()}, pruned
        self._hold({name: own != (step if pruned else FREE) for name, own in self.index.items()})

    def _hold(self, held: Mapping[str, Tensor]) -> None:
        self._held = {name: (held[name], weight.detach().clone()) for name, weight in self._weights.items()}
