"""The network that learns: a body that makes embeddings, and a linear classifier that grows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from krstore.errors import UnknownNameError, UsageError
from krstore.modules import load_module

__all__ = [
    "CLASSIFIERS",
    "CosineHead",
    "Network",
    "build_network",
    "carry_over",
    "leading_modules",
    "left_classifier",
    "stored_bytes",
]

CLASSIFIERS = ("fc", "head", "classifier")  # what libraries of networks call it


class CosineHead(nn.Module):
    """A classifier of cosines: logits eta cos(embedding, weight), eta learnt (Hou et al., CVPR 2019, Eq. 3).

    Args:
        width, classes: of embeddings (B, width) and logits (B, classes).
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, width))
        self.scale = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def cosines(self, embedded: Tensor) -> Tensor:
        """Return the cosines (B, classes), float32 under autocast too: margins of some hundredths matter."""
        with torch.autocast(embedded.device.type, enabled=False):
            return F.linear(F.normalize(embedded.float()), F.normalize(self.weight))

    def reset_parameters(self) -> None:
        """Begin anew."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.ones_(self.scale)

    def forward(self, embedded: Tensor) -> Tensor:
        """Return the logits."""
        return self.scale * self.cosines(embedded)


class Network(nn.Module):
    """A body and its classifier.

    Args:
        body: maps samples (B, *shape) to embeddings (B, D).
        width: D.
        cosine: give it a classifier of cosines, not a linear one.

    Attributes:
        classes: of the classifier; 0 until it grows.
    """

    head: nn.Linear | CosineHead

    def __init__(self, body: nn.Module, width: int, cosine: bool = False) -> None:
        super().__init__()
        self.body, self.width = body, width
        self._classifier = CosineHead if cosine else nn.Linear
        self.head = self._classifier(width, 1)
        self.classes = 0

    def grow(self, classes: int, width: int | None = None) -> None:
        """Give the classifier more classes, or embeddings of another width; what it has keeps its weights."""
        before, self.width = self.head, width or self.width
        with torch.device(before.weight.device):
            self.head = self._classifier(self.width, classes)
        carry_over(before, self.head, self.classes)
        self.classes = classes

    @torch.no_grad()
    def keep_inputs(self, embeddings: Tensor) -> None:
        """Let the classifier go on with some of the embeddings' elements, by their numbers."""
        weight = self.head.weight[:, embeddings].clone()
        self.grow(self.classes, len(embeddings))
        self.head.weight.copy_(weight)

    def forget_classifier(self) -> None:
        """Go back to before the first class."""
        with torch.device(self.head.weight.device):
            self.head = self._classifier(self.width, 1)
        self.classes = 0

    def go_back(self, state: Mapping[str, Tensor]) -> None:
        """Take up an earlier state; classes that it had not yet begin anew."""
        classes, earlier = self.classes, len(state["head.weight"])
        with torch.device(self.head.weight.device):
            self.head = self._classifier(self.width, earlier)
        self.load_state_dict(state)
        self.classes = earlier
        self.grow(classes)

    def transfer(self) -> None:
        """Leave the body's convolutions as they are, but for a factor for each of their kernels.

        The weight transfer of the mnemonics paper (from Sun et al., "Meta-transfer learning", CVPR 2019): learnt are
        the scales S in W * S, one for each pair of output and input channels.
        """
        for layer in self._unscaled():
            layer.weight.requires_grad_(False)
            parametrize.register_parametrization(layer, "weight", _Scaled(layer.weight))

    @property
    def scale_bytes(self) -> int:
        """The bytes of the scales that `transfer` will add: 0 once it has."""
        return sum(4 * layer.weight.shape[0] * layer.weight.shape[1] for layer in self._unscaled())

    def _unscaled(self) -> list[nn.Conv2d]:
        layers = [module for module in self.body.modules() if isinstance(module, nn.Conv2d)]
        return [layer for layer in layers if not parametrize.is_parametrized(layer)]

    def forward(self, x: Tensor) -> Tensor:
        """Map samples (B, *shape) to logits (B, classes)."""
        return torch.as_tensor(self.head(self.body(x)))


class _Scaled(nn.Module):
    """Weights times a factor a kernel."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((*weight.shape[:2], 1, 1), device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scale


@torch.no_grad()
def carry_over(before: nn.Module, after: nn.Module, classes: int) -> None:
    """Give a classifier the weights that another one has for its first classes, as far as both have the inputs."""
    for name, value in after.named_parameters():
        old = before.get_parameter(name)
        if value.ndim == 2:
            inputs = min(old.shape[1], value.shape[1])
            value[:classes, :inputs] = old[:classes, :inputs]
        elif value.ndim:
            value[:classes] = old[:classes]
        else:
            value.copy_(old)


def stored_bytes(module: nn.Module) -> int:
    """Return the bytes of a module as it is stored: its weights and norm statistics."""
    return sum(value.nbytes for name, value in module.state_dict().items() if not name.endswith("num_batches_tracked"))


def leading_modules(body: nn.Module, until: str) -> list[nn.Module]:
    """Return the innermost modules of a body in the order of registration, up to the last one in `until`.

    Raises:
        UnknownNameError: the body has no such module.
    """
    known = [name for name, _ in body.named_modules() if name]
    if until not in known:
        raise UnknownNameError("module to freeze", until, known)
    leaves = [(name, module) for name, module in body.named_modules() if not list(module.children())]
    last = max(number for number, (name, _) in enumerate(leaves) if name == until or name.startswith(f"{until}."))
    return [module for _, module in leaves[: last + 1]]


def build_network(
    factory: str,
    weights: str | Path | None,
    example: Tensor,
    arguments: Mapping[str, Any] | None = None,
    *,
    cosine: bool = False,
) -> Network:
    """Build a network.

    Args:
        factory: of the body (see `krstore.modules.load_module`). A linear layer named ``fc``, or one named ``head`` or
            ``classifier`` that is the last module, is taken off it.
        weights: a safetensors file with the body's weights, and, where it has those of the layer that is taken off
            (or ``fc.weight`` and ``fc.bias``, where none is), those of the classifier of as many classes, in the order
            of learning.
        example: samples (B, *shape) as the network will get them.
        arguments: of the factory.
        cosine: give it a classifier of cosines, which learns anew: weights of a linear one are left aside.

    Raises:
        UsageError: the body does not map the samples to embeddings (B, D), or the weights do not fit.
    """
    body = load_module(factory, weights, arguments)
    classifier = _classifier(body)
    if classifier is not None:
        setattr(body, classifier, nn.Identity())
    try:
        with torch.inference_mode():
            embedded = body(example)
    except Exception as error:  # another's code runs here, and may raise anything
        raise UsageError(
            f"{factory} fails on samples of shape {tuple(example.shape[1:])}: {error}. Name a network for such samples "
            "(--model), as krstore.backbones:resnet32_tail is for what the first layers of resnet32 make of images"
        ) from error
    if not isinstance(embedded, Tensor) or embedded.ndim != 2:
        shape = tuple(embedded.shape) if isinstance(embedded, Tensor) else type(embedded).__name__
        raise UsageError(f"{factory} maps samples to {shape}; expected embeddings (B, D)")
    body.requires_grad_(True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = Network(body, embedded.shape[1], cosine)
    if weights is not None and not cosine:
        _load_head(network, Path(weights), classifier or CLASSIFIERS[0])
    return network


def left_classifier(body: nn.Module) -> str | None:
    """Return the name of a linear layer that a body ends in: of a classifier that was not known for one, perhaps."""
    leaves = [(name, module) for name, module in body.named_modules() if name and not list(module.children())]
    return leaves[-1][0] if leaves and isinstance(leaves[-1][1], nn.Linear) else None


def _classifier(body: nn.Module) -> str | None:
    """Return the name of the classifier to be taken off."""
    if isinstance(getattr(body, CLASSIFIERS[0], None), nn.Linear):
        return CLASSIFIERS[0]
    last = left_classifier(body)
    return last if last in CLASSIFIERS else None


def _load_head(network: Network, path: Path, name: str) -> None:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        if not {f"{name}.weight", f"{name}.bias"} <= set(file.keys()):
            return
        weight, bias = file.get_tensor(f"{name}.weight"), file.get_tensor(f"{name}.bias")
    if weight.ndim != 2 or weight.shape[1] != network.width or bias.shape != weight.shape[:1]:
        raise UsageError(f"{path}: a classifier of {tuple(weight.shape)} for embeddings of {network.width}")
    network.grow(len(weight))
    network.head.load_state_dict({"weight": weight, "bias": bias})
