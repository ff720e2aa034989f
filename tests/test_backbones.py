"""The papers' backbones: their sizes, their split points, and that the parts fit the whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from krstore.backbones import ResNet, resnet8, resnet18, resnet18_tail, resnet32, resnet32_tail
from krstore.modules import load_module


def outputs(network: ResNet, layer: str, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output of a layer and the pooled embedding, as they pass through the whole network."""
    seen: dict[str, torch.Tensor] = {}
    network.get_submodule(layer).register_forward_hook(lambda module, args, out: seen.update(layer=out))
    network.fc.register_forward_pre_hook(lambda module, args: seen.update(embedding=args[0]))
    with torch.inference_mode():
        network.eval()(images)
    return seen["layer"], seen["embedding"]


def randomise_norms(network: torch.nn.Module) -> None:
    """Give batch norms other statistics than their initial ones, so that a lost one would be noticed."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)


@pytest.mark.parametrize(("factory", "parameters"), [(resnet32, 463_504), (resnet8, 74_640)])
def test_networks_have_their_number_of_parameters(factory, parameters):
    without_classifier = [p.numel() for name, p in factory().named_parameters() if not name.startswith("fc.")]
    assert sum(without_classifier) == parameters


def test_embeddings_are_negative_too_without_the_last_relu():
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for last_relu in (True, False):
        network = resnet8(last_relu=last_relu).eval()
        network.fc = torch.nn.Identity()
        assert (network(x).min() >= 0) == last_relu


def test_resnet18_is_the_standard_one():
    # torchvision's resnet18 of 1000 classes
    assert sum(p.numel() for p in resnet18(classes=1000).parameters()) == 11_689_512
    assert len(resnet18().state_dict()) == 122


@pytest.mark.parametrize(
    ("whole", "tail", "layer", "size", "shape", "embedding"),
    [
        (resnet32, resnet32_tail, "layer3.0", 32, (64, 8, 8), 64),
        (resnet18, resnet18_tail, "layer3.1", 224, (256, 14, 14), 512),
    ],
)
def test_tail_continues_the_network_where_the_paper_splits_it(
    whole: Callable[[], ResNet],
    tail: Callable[[], torch.nn.Module],
    layer: str,
    size: int,
    shape: tuple[int, ...],
    embedding: int,
):
    torch.manual_seed(0)
    network, rest = whole(), tail().eval()
    randomise_norms(network)
    missing = rest.load_state_dict(network.state_dict(), strict=False).missing_keys
    assert missing == []
    features, expected = outputs(network, layer, torch.randn(2, 3, size, size))
    assert features.shape[1:] == shape
    assert expected.shape[1:] == (embedding,)
    with torch.inference_mode():
        torch.testing.assert_close(rest(features), expected)


def test_option_a_shortcut_has_no_parameters_and_pads_both_sides_with_zeros():
    block = resnet32().get_submodule("layer3.0").eval()
    assert not [name for name, _ in block.named_parameters() if "downsample" in name]
    for parameter in block.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.rand(1, 32, 16, 16)
    with torch.inference_mode():
        out = block(x)
    torch.testing.assert_close(out[:, 16:48], x[:, :, ::2, ::2])
    assert not out[:, :16].any()
    assert not out[:, 48:].any()


@pytest.mark.slow
@pytest.mark.skipif("KRSTORE_DATA" not in os.environ, reason="KRSTORE_DATA names no folder of real weights")
def test_real_weights_load_by_name():
    weights = Path(os.environ["KRSTORE_DATA"]) / "resnet32_cifar100_base50.safetensors"
    network = load_module("krstore.backbones:resnet32", weights)
    tail = load_module("krstore.backbones:resnet32_tail", weights)
    assert isinstance(network, ResNet)
    features, expected = outputs(network, "layer3.0", torch.rand(4, 3, 32, 32))
    with torch.inference_mode():
        torch.testing.assert_close(tail(features), expected)
