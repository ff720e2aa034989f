"""Bodies that grow: an extractor a task, their embeddings side by side."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Extractors"]


class Extractors(nn.Module):
    """Extractors of the same samples; the last one learns, the others stay as they are.

    Its embeddings are the *super-feature* u = [Phi_{t-1}(x), F_t(x)] of DER (Yan et al., CVPR 2021, Eq. 1).

    Args:
        first: maps samples, or what `shared` makes of them, to embeddings (B, D).
        shared: what all extractors start from; default the samples themselves.

    Attributes:
        shared_fixed: whether `shared` stays as it is too.
    """

    def __init__(self, first: nn.Module, shared: nn.Module | None = None) -> None:
        super().__init__()
        self.shared = nn.Identity() if shared is None else shared
        self.extractors = nn.ModuleList([first])
        self.shared_fixed = shared is None

    @property
    def last(self) -> nn.Module:
        """The extractor that learns."""
        return self.extractors[-1]

    def fix(self) -> None:
        """Train nothing but the last extractor, and what is shared where that is not fixed."""
        for extractor in self.extractors[:-1]:
            extractor.requires_grad_(False)
        self.shared.requires_grad_(not self.shared_fixed)

    def train(self, mode: bool = True) -> Extractors:
        """Set the mode of what learns; what stays keeps its norm statistics."""
        super().train(mode)
        for extractor in self.extractors[:-1]:
            extractor.eval()
        if self.shared_fixed:
            self.shared.eval()
        return self

    def embeddings(self, x: Tensor) -> list[Tensor]:
        """Map samples (B, *shape) to the embeddings (B, D_i) of each extractor."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.shared_fixed):
            x = self.shared(x)
            earlier = [extractor(x) for extractor in self.extractors[:-1]]
        return [*earlier, self.last(x)]

    def forward(self, x: Tensor) -> Tensor:
        """Map samples (B, *shape) to embeddings (B, sum of D_i)."""
        return torch.cat(self.embeddings(x), 1)
