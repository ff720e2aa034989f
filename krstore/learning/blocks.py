"""What the blocks of a network do while it learns: their gradients, how far they move, how alike they stay.

The analysis that MEMO begins with (Zhou et al., ICLR 2023, Fig. 3): by block, the norm of the gradients over the epochs
of a task; the mean squared difference of the weights between its first epoch and its last; and the similarity, by
centred kernel alignment, of the feature maps after one task and after another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from krstore.backbones.resnet import BasicBlock
from krstore.errors import UsageError
from krstore.learning.expansion import Extractors
from krstore.tensors import write_tensors

__all__ = ["ANALYSED", "ANALYSIS", "Blocks", "alignment", "centred_kernel", "read_analysis", "write_analysis"]

ANALYSIS = "blocks.safetensors"
ANALYSED = 256  # samples whose feature maps are compared


class Blocks:
    """Watches the blocks of a body during a task: residual blocks, or if there are none its direct children.

    Of a body of several extractors it is the last one, and what they share.

    Args:
        body: of the network.

    Raises:
        UsageError: it has no blocks with weights.
    """

    def __init__(self, body: nn.Module) -> None:
        parts = [body.shared, body.last] if isinstance(body, Extractors) else [body]
        modules = [(name, module) for part in parts for name, module in part.named_modules()]
        found = [module for _, module in modules if isinstance(module, BasicBlock)]
        children = [child for part in parts for child in part.children()]
        weighted = [module for module in found or children if any(True for _ in module.parameters())]
        if not weighted:
            raise UsageError("analyse=true needs a network with blocks that have weights")
        self._blocks = weighted
        self._norms: list[Tensor] = []
        self._epochs: list[Tensor] = []
        self._first: list[Tensor] = []

    def after_backward(self) -> None:
        """Take the norms of the blocks' gradients; 0 where a block is not trained."""
        norms = [
            sum(
                (p.grad.float().square().sum() for p in block.parameters() if p.requires_grad and p.grad is not None),
                torch.zeros(()),
            )
            for block in self._blocks
        ]
        self._norms.append(torch.stack([torch.as_tensor(norm).cpu() for norm in norms]).sqrt())

    def after_epoch(self) -> None:
        """Take the mean over its batches, and the weights if it was the first."""
        self._epochs.append(torch.stack(self._norms).mean(0))
        self._norms = []
        if not self._first:
            self._first = self._weights()

    def measured(self, body: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Return what was seen, and the feature maps' centred kernels of some samples, when a task has been learnt.

        Returns:
            ``gradients`` (epochs, blocks), ``moved`` (blocks,), ``kernels`` (blocks, n, n); the first two empty where
            nothing was trained.
        """
        moved = [(now - then).square().mean() for now, then in zip(self._weights(), self._first, strict=False)]
        return {
            "gradients": torch.stack(self._epochs) if self._epochs else torch.zeros(0, len(self._blocks)),
            "moved": torch.stack(moved) if moved else torch.zeros(0),
            "kernels": torch.stack(self._kernels(body, batches)),
        }

    def _weights(self) -> list[Tensor]:
        return [torch.cat([p.detach().flatten() for p in block.parameters()]).cpu().clone() for block in self._blocks]

    def _kernels(self, body: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
        x = torch.cat([x for x, _ in batches])
        seen: dict[int, Tensor] = {}
        hooks = [
            block.register_forward_hook(lambda _module, _given, output, n=n: seen.__setitem__(n, output.flatten(1)))
            for n, block in enumerate(self._blocks)
        ]
        try:
            with torch.inference_mode():
                body.eval()(x)
        finally:
            for hook in hooks:
                hook.remove()
        return [centred_kernel(seen[n].float().cpu()) for n in range(len(self._blocks))]


def centred_kernel(features: Tensor) -> Tensor:
    """Return X X^T (n, n) of features (n, D) less their mean."""
    centred = features - features.mean(0)
    return centred @ centred.T


def alignment(one: Tensor, other: Tensor) -> float:
    """Return the linear CKA of two centred kernels (n, n): 1 where they are alike but for rotation and scale.

    Kornblith et al., ICML 2019, Eq. 4.
    """
    return float((one * other).sum() / (one.norm() * other.norm()))


def write_analysis(folder: Path, steps: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Write what `Blocks.measured` returned after each step, replacing what is there."""
    named = {f"{step}/{name}": value for step, found in steps.items() for name, value in found.items()}
    write_tensors(folder / ANALYSIS, named)


def read_analysis(folder: str | Path) -> dict[int, dict[str, Tensor]]:
    """Read it again; empty where a run has none.

    Raises:
        UsageError: the file cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder) / ANALYSIS
    if not path.exists():
        return {}
    try:
        arrays = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} cannot be read ({error}); begin the run anew in another folder") from None
    steps: dict[int, dict[str, Tensor]] = {}
    for name, value in arrays.items():
        step, _, what = name.partition("/")
        steps.setdefault(int(step), {})[what] = value
    return dict(sorted(steps.items()))
