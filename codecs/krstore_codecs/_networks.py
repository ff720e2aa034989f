"""Which decoder and encoder a style has, and the sizes that spend a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Literal

import msgspec
import numpy as np
from torch import nn

from krstore.errors import UsageError
from krstore.source import SourceSpec
from krstore_codecs._decoder import DecoderSizes, FeatureDecoder, FeatureEncoder
from krstore_codecs._normalise import grid_shape
from krstore_codecs._residual import ResidualDecoder, ResidualEncoder
from krstore_codecs._training import NeuralConfig, Positive

__all__ = ["DecoderConfig", "build_decoder", "build_encoder", "coded_bytes", "describe_network", "largest"]


class DecoderConfig(NeuralConfig, frozen=True, kw_only=True):
    """Options of codecs with a feature decoder; sizes that are none are chosen for the byte target."""

    style: Annotated[
        Literal["residual", "paper"],
        msgspec.Meta(description="how the decoder's stages are joined: residual starts linear; paper is the paper's"),
    ] = "residual"
    d0: Annotated[Positive | None, msgspec.Meta(description="outputs of the decoder's first FC layer")] = None
    c0: Annotated[Positive | None, msgspec.Meta(description="channels before the deconvolution")] = None
    c1: Annotated[Positive | None, msgspec.Meta(description="channels after it; none: as many as the features")] = None
    stride: Annotated[int, msgspec.Meta(ge=1, le=4, description="of the deconvolution")] = 1
    weight_bits: Annotated[
        float, msgspec.Meta(ge=1, le=16, description="bits a quantised weight, when the network is sized to the target")
    ] = 4.0

    def check(self, spec: SourceSpec) -> None:
        """Refuse a c1 that contradicts the style.

        Raises:
            UsageError: says what c1 must be.
        """
        if self.style == "paper" and self.c1 not in (None, spec.channels):
            raise UsageError(
                f"c1={self.c1}: in style paper it is the number of the features' channels, {spec.channels}"
            )

    def decoder_sizes(
        self, spec: SourceSpec, *, width: int, d0: int, network_bytes: float, most_c0: int = 512
    ) -> DecoderSizes:
        """Return a decoder's sizes for a source, with c0 to suit a network of so many bytes.

        c0 grows slowly with the budget, because the deconvolution is where the operations are, up to the
        features' channels in style residual, which begins with their principal components.
        """
        channels, height, columns = grid_shape(spec)
        most = channels if self.style == "residual" else 512
        positions = -(-height // self.stride) * -(-columns // self.stride)
        affordable = network_bytes * 8 / self.weight_bits / positions
        return DecoderSizes(
            style=self.style, width=width, d0=self.d0 or d0,
            c0=self.c0 or int(min(most, max(8, 8 * round(np.sqrt(affordable) / 32)))),
            c1=self.c1 or channels, stride=self.stride, channels=channels, height=height, columns=columns,
        )  # fmt: skip


def build_decoder(sizes: DecoderSizes) -> nn.Module:
    """Return the decoder of these sizes, in its style."""
    return FeatureDecoder(sizes) if sizes.style == "paper" else ResidualDecoder(sizes)


def build_encoder(sizes: DecoderSizes) -> nn.Module:
    """Return the decoder's mirror."""
    return FeatureEncoder(sizes) if sizes.style == "paper" else ResidualEncoder(sizes)


def describe_network(network: nn.Module, sizes: DecoderSizes) -> str:
    """Say a network's sizes in a line."""
    weights = sum(p.numel() for p in network.parameters())
    return f"d0 {sizes.d0}, c0 {sizes.c0}, c1 {sizes.c1}, {weights:,} weights, style {sizes.style}"


def coded_bytes(parameters: Iterable[nn.Parameter], config: DecoderConfig) -> float:
    """Return the bytes that a network's parameters will take as the config stores them."""
    if config.weights == "float32":
        return 4.0 * sum(p.numel() for p in parameters)
    return 1000 + sum(p.numel() * config.weight_bits / 8 if p.dim() > 1 else 2 * p.numel() for p in parameters)


def largest(fits: Callable[[int], bool], low: int, high: int) -> int:
    """Return the largest number from `low`, which is taken to fit, up to `high` that fits."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
