"""What of a transform goes into a store, and comes out of it: sizes, synthesis, and on request the analysis."""

from __future__ import annotations

import copy
import math
from typing import Literal

import msgspec
import numpy as np
import torch
from torch import nn

from krstore.errors import CorruptStoreError
from krstore.source import SourceSpec
from krstore.store.container import MemberReader
from krstore_codecs._neural import NORMALISER, SIZES, WEIGHTS, unpack_network
from krstore_codecs._normalise import Normaliser, grid_shape
from krstore_codecs._transform import Analysis, Layout, Synthesis, Tiles
from krstore_codecs._weights import WeightQuantiser, matrices, pack_weights, plain_state, unpack_weights

__all__ = [
    "COEFFICIENTS",
    "ENCODER",
    "RESTORE",
    "SHARED",
    "STEP",
    "StoredSynthesis",
    "TransformSizes",
    "as_stored",
    "pack_encoder",
    "read_encoder",
]

COEFFICIENTS, STEP = "latent/coefficients", "network/step"
RESTORE, ENCODER = "network/restore", "network/encoder"
SHARED = (SIZES, NORMALISER, WEIGHTS, RESTORE, ENCODER)


class TransformSizes(msgspec.Struct, frozen=True):
    """What rebuilds the synthesis: layout, tile and channels of the KLT, width of the net, unit of output, storage."""

    square: bool
    tile: int
    channels: int
    width: int
    unit: float
    weights: Literal["quantised", "float32"]


class StoredSynthesis:
    """A stored synthesis, and what it takes to use it."""

    def __init__(self, payload: MemberReader, spec: SourceSpec, device: str) -> None:
        self.sizes = _read_sizes(payload, spec)
        self.normaliser = Normaliser.from_bytes(spec, payload.read(NORMALISER))
        self.layout = Layout(grid_shape(spec), self.sizes.square)
        channels, *grid = self.layout.shape
        self.tiles = Tiles((grid[0], grid[1]), self.sizes.tile)
        self.step = float(np.frombuffer(payload.read(STEP), "<f4", 1)[0])
        network = unpack_network(
            lambda: Synthesis(channels, self.sizes.channels, self.sizes.width, self.tiles),
            {"": WEIGHTS}, payload, quantised=self.sizes.weights == "quantised", device=device,
        )  # fmt: skip
        assert isinstance(network, Synthesis)
        self.network = network


def as_stored(synthesis: Synthesis, quantiser: WeightQuantiser | None) -> Synthesis:
    """Return a copy on the CPU whose weights are rounded as the file will have them."""
    kept, length = synthesis.basis.vectors.shape
    channels = length // math.prod(synthesis.tiles.shape)
    width = 0 if isinstance(synthesis.net, nn.Identity) else synthesis.net.first.out_channels
    copy = Synthesis(channels, kept, int(width), synthesis.tiles)
    state = {name: value.detach().cpu().clone() for name, value in plain_state(synthesis).items()}
    for name, step in ({} if quantiser is None else quantiser.steps()).items():
        state[name] = torch.round(state[name] / step) * step
    copy.load_state_dict(state)
    return copy


def pack_encoder(analysis: Analysis) -> bytes:
    """Return an analysis as bytes, about one a weight."""
    plain = copy.deepcopy(analysis)
    quantiser = WeightQuantiser(plain, fine="basis")
    quantiser.set_factor(1 / 64)
    return pack_weights({n: v.numpy() for n, v in plain_state(plain).items()}, quantiser.steps())


def read_encoder(data: bytes, like: Analysis) -> Analysis:
    """Return the stored analysis, of the sizes of another."""
    shapes = {name: tuple(value.shape) for name, value in plain_state(like).items()}
    arrays = unpack_weights(data, shapes, matrices(shapes))
    stored = copy.deepcopy(like).cpu()
    stored.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})
    return stored.eval()


def _read_sizes(payload: MemberReader, spec: SourceSpec) -> TransformSizes:
    try:
        sizes = msgspec.json.decode(payload.read(SIZES), type=TransformSizes)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise CorruptStoreError(f"the transform's sizes are malformed: {error}") from error
    layout = Layout(grid_shape(spec), sizes.square)
    channels, *grid = layout.shape
    if not (
        layout in Layout.choices(layout.grid)
        and 1 <= sizes.tile <= max(grid)
        and 1 <= sizes.channels <= channels * math.prod(Tiles((grid[0], grid[1]), sizes.tile).shape)
        and 0 <= sizes.width <= 1 << 16
        and 0 < sizes.unit < math.inf
    ):
        raise CorruptStoreError(f"a transform of sizes {sizes} does not make samples of shape {spec.shape}")
    return sizes
