"""Masks on the channels of a residual network, learnt with it, and their removal (DER, Sec. 3.4).

m_l = sigmoid(s e_l) multiplies the feature map of each convolution: the inner one of a block, and the block's output,
which its shortcut is a part of. What follows a channel that is masked loses its weights for it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from krstore.backbones.resnet import BasicBlock, ResNet, ResNetTail
from krstore.errors import UsageError

__all__ = ["SHARPEST", "ChannelMasks", "ChannelShortcut", "compensated", "reshaped", "widened"]

SHARPEST = 100.0
BOUND = 6.0  # of scores: beyond it a sigmoid has no gradient left


@dataclass(frozen=True)
class _Convolution:
    """A convolution with its norm, between masks: by number, `None` for the samples themselves."""

    conv: str
    norm: str
    source: int | None
    target: int


class ChannelShortcut(nn.Module):
    """A shortcut from the channels that are left of a block's input to those of its output.

    Args:
        sources: (outputs,) int32, the input channel of each output channel; as many as there are inputs for none.
        stride: of positions.
    """

    sources: Tensor

    def __init__(self, sources: Tensor, stride: int) -> None:
        super().__init__()
        self.register_buffer("sources", sources.to(torch.int32))
        self._stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        x = x[:, :, :: self._stride, :: self._stride]
        return torch.cat([x, torch.zeros_like(x[:, :1])], 1).index_select(1, self.sources)


class ChannelMasks(nn.Module):
    """The masks of an extractor.

    Args:
        extractor: a `krstore.backbones.ResNet` or `ResNetTail`.

    Attributes:
        scores: e_l, one for each channel of each mask; 1 at first, where all are open.

    Raises:
        UsageError: it is something else.
    """

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self._extractor = [extractor]  # not a part of this module
        self._masked, self._convolutions = _layers(extractor)
        device = next(extractor.parameters()).device
        self.scores = nn.ParameterList(
            nn.Parameter(torch.ones(channels, device=device)) for channels in self._masked.values()
        )
        self.sharpness = 1.0
        self._hooks = [
            extractor.get_submodule(name).register_forward_hook(self._masking(number))
            for number, name in enumerate(self._masked)
        ]

    def sharpen(self, passed: float) -> None:
        """Set s for a share of an epoch that has passed: 1 / s_max at first, s_max at last."""
        self.sharpness = 1 / SHARPEST + (SHARPEST - 1 / SHARPEST) * passed

    def masks(self) -> list[Tensor]:
        """Return m_l of each."""
        return [torch.sigmoid(self.sharpness * scores) for scores in self.scores]

    def share(self) -> Tensor:
        """Return L_S: how much of the convolutions' weights the masks leave, between 0 and 1."""
        sizes, left, all_weights = [mask.sum() for mask in self.masks()], torch.zeros(()), 0
        extractor = self._extractor[0]
        for layer in self._convolutions:
            conv = _conv(extractor, layer.conv)
            kernel = conv.kernel_size[0] * conv.kernel_size[1]
            inputs = conv.in_channels if layer.source is None else sizes[layer.source]
            left = left.to(sizes[0].device) + kernel * inputs * sizes[layer.target]
            all_weights += kernel * conv.in_channels * conv.out_channels
        return left / all_weights

    @torch.no_grad()
    def compensate(self) -> None:
        """Give the scores the gradients that they would have at s = 1 (Eq. 12)."""
        for scores in self.scores:
            if scores.grad is not None:
                scores.grad.copy_(compensated(scores.grad, scores, self.sharpness))

    @torch.no_grad()
    def limit(self) -> None:
        """Keep the scores where they can still be moved."""
        for scores in self.scores:
            scores.clamp_(-BOUND, BOUND)

    def detach(self) -> None:
        """Let the extractor go on without masks."""
        for hook in self._hooks:
            hook.remove()

    def kept(self) -> list[Tensor]:
        """Return the channels of each mask that stay: those of positive scores, and the best in any case."""
        found = []
        for scores in self.scores:
            stays = scores > 0
            stays[scores.argmax()] = True
            found.append(torch.nonzero(stays)[:, 0])
        return found

    @torch.no_grad()
    def remove(self) -> Tensor:
        """Take the masked channels out of the extractor; return which of its embeddings are left."""
        self.detach()
        kept, extractor = self.kept(), self._extractor[0]
        for layer in self._convolutions:
            conv, norm = _conv(extractor, layer.conv), _norm(extractor, layer.norm)
            weight = conv.weight[kept[layer.target]]
            if layer.source is not None:
                weight = weight[:, kept[layer.source]]
            extractor.set_submodule(layer.conv, _like(conv, weight))
            extractor.set_submodule(layer.norm, _part(norm, kept[layer.target]))
        self._shorten(kept)
        return kept[-1]

    def _shorten(self, kept: list[Tensor]) -> None:
        """Connect what is left of blocks' inputs and outputs."""
        extractor = self._extractor[0]
        numbers = {name: number for number, name in enumerate(self._masked)}
        source: int | None = numbers.get("bn1")
        for name, block in _blocks(extractor):
            target = numbers[name]
            if not isinstance(block.downsample, nn.Sequential):
                before = block.added // 2
                wanted = [int(channel) - before for channel in kept[target]]
                inputs = self.scores[target].numel() - block.added
                left = list(range(inputs)) if source is None else kept[source].tolist()
                at = {channel: number for number, channel in enumerate(left)}
                sources = torch.tensor([at.get(channel, len(left)) for channel in wanted])
                block.downsample = ChannelShortcut(sources, block.stride).to(self.scores[0].device)
            source = target

    def _masking(self, number: int) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def masked(module: nn.Module, given: object, output: Tensor) -> Tensor:
            mask = torch.sigmoid(self.sharpness * self.scores[number])
            return output * mask[:, None, None].to(output.dtype)

        return masked


def compensated(gradient: Tensor, scores: Tensor, sharpness: float) -> Tensor:
    """Return sigma(e)(1 - sigma(e)) / (s sigma(se)(1 - sigma(se))) times a gradient, by cosh so as not to overflow."""
    sharp = torch.cosh((sharpness * scores / 2).clamp(-40, 40)) / torch.cosh(scores / 2)
    return gradient * sharp.square() / sharpness


@torch.no_grad()
def widened(blank: nn.Module, pruned: nn.Module, kept: list[Tensor]) -> nn.Module:
    """Return a network like `blank`, of fresh weights, with those of one that was made of it by `ChannelMasks.remove`.

    Args:
        kept: the channels of each mask that stayed.
    """
    network = copy.deepcopy(blank)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.reset_parameters()
    for layer in _layers(network)[1]:
        target = kept[layer.target]
        weight = _conv(network, layer.conv).weight
        inputs = torch.arange(weight.shape[1]) if layer.source is None else kept[layer.source]
        weight[target[:, None], inputs[None, :].to(target.device)] = _conv(pruned, layer.conv).weight
        norm, before = _norm(network, layer.norm), _norm(pruned, layer.norm)
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name)[target] = getattr(before, name)
    return network


@torch.no_grad()
def reshaped(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a network the channels that its saved state has."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d):
            network.set_submodule(name, _like(module, state[f"{name}.weight"]))
        elif isinstance(module, nn.BatchNorm2d):
            saved = state[f"{name}.weight"]
            network.set_submodule(name, nn.BatchNorm2d(len(saved), device=saved.device))
    for name, block in _blocks(network):
        sources = state.get(f"{name}.downsample.sources")
        if sources is not None:
            block.downsample = ChannelShortcut(sources, block.stride)


def _layers(extractor: nn.Module) -> tuple[dict[str, int], list[_Convolution]]:
    """Return the modules whose output is masked, with their channels, and the convolutions."""
    if not isinstance(extractor, ResNet | ResNetTail):
        raise UsageError("channels can be masked in networks of krstore.backbones alone; say options.pruning=false")
    masked: dict[str, int] = {}
    convolutions = []
    source: int | None = None

    def add(name: str, channels: int) -> int:
        masked[name] = channels
        return len(masked) - 1

    if isinstance(extractor, ResNet):
        source = add("bn1", extractor.conv1.out_channels)
        convolutions.append(_Convolution("conv1", "bn1", None, source))
    for name, block in _blocks(extractor):
        inner = add(f"{name}.bn1", block.conv1.out_channels)
        outer = add(name, block.conv2.out_channels)
        convolutions.append(_Convolution(f"{name}.conv1", f"{name}.bn1", source, inner))
        convolutions.append(_Convolution(f"{name}.conv2", f"{name}.bn2", inner, outer))
        if isinstance(block.downsample, nn.Sequential):
            convolutions.append(_Convolution(f"{name}.downsample.0", f"{name}.downsample.1", source, outer))
        source = outer
    return masked, convolutions


def _blocks(extractor: nn.Module) -> list[tuple[str, BasicBlock]]:
    """Return the residual blocks in order, with their names."""
    return [(name, module) for name, module in extractor.named_modules() if isinstance(module, BasicBlock)]


def _conv(network: nn.Module, name: str) -> nn.Conv2d:
    module = network.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    return module


def _norm(network: nn.Module, name: str) -> nn.BatchNorm2d:
    module = network.get_submodule(name)
    assert isinstance(module, nn.BatchNorm2d)
    return module


def _like(old: nn.Conv2d, weight: Tensor) -> nn.Conv2d:
    """Return a convolution like another, of these weights."""
    made = copy.deepcopy(old)
    made.out_channels, made.in_channels = weight.shape[:2]
    made.weight = nn.Parameter(weight.clone(memory_format=torch.channels_last))
    return made


def _part(old: nn.BatchNorm2d, kept: Tensor) -> nn.BatchNorm2d:
    """Return a norm of some of another's channels."""
    made = nn.BatchNorm2d(len(kept), device=kept.device).train(old.training)
    made.load_state_dict({n: v[kept] if v.ndim else v for n, v in old.state_dict().items()})
    return made
