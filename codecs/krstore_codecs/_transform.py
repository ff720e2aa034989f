"""The networks of the transform codec: a linear transform, and on either side of it a small residual network.

    analysis    z (n, C, H, W) -> z + net(z) -> KLT of tiles -> DCT over the tiles' grid -> y (n, K, H', W')
    synthesis   y -> inverse DCT -> inverse KLT -> x -> x + net(x) + centre

Here (C, H, W) is the source's grid, or for a sequence of tokens that make a square, with or without a class token
before them, that square (`Layout`). A tile is a few neighbouring positions with all their channels, down to one and up
to the whole grid. The nets end in zeros at first, so that both are plain KLT and DCT before training; the KLT is
trained with them. Only the synthesis is stored. The DCT runs over whole axes of up to 32 tiles, over blocks of 8 along
longer ones, where the last block is filled by repeating the border.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Analysis", "Layout", "RateModel", "Synthesis", "Tiles", "kernel_size"]

WHOLE, BLOCK = 32, 8
SLOPE = 0.1
ENTRY = 1 / 8  # about the size of a basis's entries as they are trained, whatever its length
SPEED = 5.0  # spreads learn so many times as fast as the networks' weights
SMALLEST = 1e-9  # probability


@dataclass(frozen=True)
class Layout:
    """How a source's grid (C, H, W) is laid out for the transform; squared errors are the same on either side.

    Attributes:
        grid: (C, T, 1) for a sequence of T tokens.
        square: lay T = s s tokens out as (C, s, s), and T = s s + 1 as (2 C, s, s), the first of them over s in the
            other C channels at every position.
    """

    grid: tuple[int, int, int]
    square: bool = False

    @classmethod
    def choices(cls, grid: tuple[int, int, int]) -> list[Layout]:
        """Return the layouts that a grid can have."""
        side = math.isqrt(grid[1])
        square = grid[2] == 1 and side > 1 and grid[1] - side * side in (0, 1)
        return [cls(grid), *([cls(grid, square=True)] if square else [])]

    @property
    def side(self) -> int:
        """Return s of a square."""
        return math.isqrt(self.grid[1])

    @property
    def first(self) -> bool:
        """Return whether there is a token before a square."""
        return self.square and self.grid[1] > self.side**2

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the shape of what `enter` returns, by sample."""
        if not self.square:
            return self.grid
        return self.grid[0] * (2 if self.first else 1), self.side, self.side

    def enter(self, grids: Tensor) -> Tensor:
        """Lay grids (n, C, H, W) out."""
        if not self.square:
            return grids
        first, patches = grids[:, :, : int(self.first)], grids[:, :, int(self.first) :]
        square = patches.reshape(*grids.shape[:2], self.side, self.side)
        return torch.cat([square, (first / self.side).expand(square.shape)], 1) if self.first else square

    def leave(self, laid: Tensor) -> Tensor:
        """Undo `enter`."""
        if not self.square:
            return laid
        patches = laid[:, : self.grid[0]].flatten(2)
        first = laid[:, self.grid[0] :].mean((2, 3)) * self.side
        return torch.cat([first[..., None], patches] if self.first else [patches], 2)[..., None]


@dataclass(frozen=True)
class Tiles:
    """A grid of (H, W) positions cut into tiles.

    Attributes:
        side: positions of a tile along each axis; 1 along one that it does not divide, all along a shorter one.
    """

    grid: tuple[int, int]
    side: int

    @property
    def shape(self) -> tuple[int, int]:
        """Return the positions (h, w) of a tile."""
        high, wide = (min(self.side, n) for n in self.grid)
        return (high if self.grid[0] % high == 0 else 1, wide if self.grid[1] % wide == 0 else 1)

    @property
    def count(self) -> tuple[int, int]:
        """Return how many tiles there are along each axis: (H / h, W / w)."""
        return self.grid[0] // self.shape[0], self.grid[1] // self.shape[1]

    @property
    def coefficients(self) -> tuple[int, int]:
        """Return (H', W'), the coefficients that the DCT has along each axis."""
        return _coefficients(self.count[0]), _coefficients(self.count[1])

    def cut(self, grids: Tensor) -> Tensor:
        """Bring a tile's positions to the channels: (n, C, H, W) to (n, C h w, H / h, W / w)."""
        (high, wide), (down, across), (count, channels) = self.shape, self.count, grids.shape[:2]
        parts = grids.reshape(count, channels, down, high, across, wide).permute(0, 1, 3, 5, 2, 4)
        return parts.reshape(count, channels * high * wide, down, across)

    def join(self, tiles: Tensor) -> Tensor:
        """Undo `cut`."""
        (high, wide), (down, across), (count, length) = self.shape, self.count, tiles.shape[:2]
        channels = length // (high * wide)
        parts = tiles.reshape(count, channels, high, wide, down, across).permute(0, 1, 4, 2, 5, 3)
        return parts.reshape(count, channels, down * high, across * wide)


def _coefficients(positions: int) -> int:
    return positions if positions <= WHOLE else -(-positions // BLOCK) * BLOCK


@functools.lru_cache(maxsize=64)
def _dct(size: int, device: torch.device) -> Tensor:
    """Return the matrix (size, size) of the orthonormal DCT-II, one that training may use."""
    with torch.inference_mode(False):
        k, i = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
        basis = torch.cos(math.pi * (2 * i + 1) * k / (2 * size)) * math.sqrt(2 / size)
        basis[0] /= math.sqrt(2)
        return basis.float().to(device)


def _spectrum(x: Tensor, axis: int) -> Tensor:
    """Return the DCT of x along an axis."""
    size, moved = x.shape[axis], x.movedim(axis, -1)
    if size <= WHOLE:
        return (moved @ _dct(size, x.device).T).movedim(-1, axis)
    last = moved[..., -1:].expand(*moved.shape[:-1], _coefficients(size) - size)
    blocks = torch.cat([moved, last], -1).unflatten(-1, (-1, BLOCK))  # type: ignore[no-untyped-call]
    return torch.as_tensor((blocks @ _dct(BLOCK, x.device).T).flatten(-2).movedim(-1, axis))


def _positions(y: Tensor, axis: int, size: int) -> Tensor:
    """Undo `_spectrum`, for an axis of so many positions."""
    moved = y.movedim(axis, -1)
    if size <= WHOLE:
        return (moved @ _dct(size, y.device)).movedim(-1, axis)
    blocks = moved.unflatten(-1, (-1, BLOCK)) @ _dct(BLOCK, y.device)  # type: ignore[no-untyped-call]
    return torch.as_tensor(blocks.flatten(-2)[..., :size].movedim(-1, axis))


def _kernel(grid: tuple[int, int]) -> tuple[int, int]:
    return 3 if grid[0] > 1 else 1, 3 if grid[1] > 1 else 1


def kernel_size(grid: tuple[int, int]) -> int:
    """Return how many weights a kernel of the nets has on grids of (H, W) positions."""
    return math.prod(_kernel(grid))


class _Residual(nn.Module):
    """x + conv(leaky ReLU(conv(x))), which begins as x; 3x3, but 1 along an axis of one position."""

    def __init__(self, channels: int, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        kernel = _kernel(grid)
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.first = nn.Conv2d(channels, width, kernel, padding=padding)
        self.second = nn.Conv2d(width, channels, kernel, padding=padding)
        nn.init.zeros_(self.second.weight)
        assert self.second.bias is not None
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.as_tensor(self.second(F.leaky_relu(self.first(x), SLOPE)))


class _Basis(nn.Module):
    """K vectors over the D numbers of a tile, trained at one pace whatever D is."""

    def __init__(self, kept: int, length: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.zeros(kept, length))
        self.scale = 1 / (ENTRY * math.sqrt(length))

    def begin_at(self, basis: Tensor) -> None:
        with torch.no_grad():
            self.vectors.copy_(basis / self.scale)

    def forward(self) -> Tensor:
        return self.vectors * self.scale


class Analysis(nn.Module):
    """Centred grids (n, C, H, W) to coefficients (n, K, H', W').

    Args:
        basis: the KLT (K, C h w), where training begins.
        width: channels between the net's convolutions; 0 is no net.
    """

    def __init__(self, basis: Tensor, width: int, tiles: Tiles) -> None:
        super().__init__()
        self.basis = _Basis(*basis.shape)
        self.basis.begin_at(basis)
        self.net = _Residual(basis.shape[1] // math.prod(tiles.shape), width, tiles.grid) if width else nn.Identity()
        self.tiles = tiles

    def forward(self, grids: Tensor) -> Tensor:
        """Analyse."""
        y = torch.einsum("kd,ndhw->nkhw", self.basis(), self.tiles.cut(self.net(grids)))
        with torch.autocast(y.device.type, enabled=False):
            return _spectrum(_spectrum(y.float(), 2), 3)


class Synthesis(nn.Module):
    """Coefficients (n, K, H', W') to grids (n, C, H, W)."""

    def __init__(self, channels: int, kept: int, width: int, tiles: Tiles) -> None:
        super().__init__()
        self.basis = _Basis(kept, channels * math.prod(tiles.shape))
        self.centre = nn.Parameter(torch.zeros(channels))
        self.net = _Residual(channels, width, tiles.grid) if width else nn.Identity()
        self.tiles = tiles

    def begin_at(self, basis: Tensor, centre: Tensor) -> None:
        """Begin as the inverse of the KLT (K, C h w) of grids about `centre` (C,)."""
        self.basis.begin_at(basis)
        with torch.no_grad():
            self.centre.copy_(centre)

    def forward(self, y: Tensor) -> Tensor:
        """Synthesise."""
        down, across = self.tiles.count
        with torch.autocast(y.device.type, enabled=False):
            rows = _positions(_positions(y, 2, down), 3, across)
        x = self.tiles.join(torch.einsum("kd,nkhw->ndhw", self.basis(), rows))
        return torch.as_tensor(self.net(x)) + self.centre.view(1, -1, 1, 1)


class RateModel(nn.Module):
    """What coefficients cost while training: a Laplacian for each, and the step that holds the bits at a target.

    Attributes:
        step: of the quantiser.
        bits: running mean of the bits a sample.
    """

    step: Tensor
    bits: Tensor
    mean: Tensor

    def __init__(self, shape: tuple[int, ...], step: float, target_bits: float | None) -> None:
        super().__init__()
        self.spread = nn.Parameter(torch.zeros(shape))
        self.target_bits = target_bits
        self.register_buffer("step", torch.tensor(step))
        self.register_buffer("bits", torch.tensor(target_bits or 0.0))
        self.register_buffer("mean", torch.zeros(shape))

    def begin_at(self, coefficients: Tensor) -> None:
        """Begin at the means and the mean magnitudes about them of some coefficients (n, K, H', W')."""
        with torch.no_grad():
            self.mean.copy_(coefficients.mean(0))
            magnitude = ((coefficients - self.mean) / self.step).round().abs().mean(0)
            self.spread.copy_((magnitude + 1e-3).log() / SPEED)

    def forward(self, values: Tensor, *, learn: bool) -> Tensor:
        """Return the bits (scalar, of the batch) of coefficients in steps.

        Args:
            values: coefficients, whole numbers or nearly so.
            learn: let gradients reach the spreads; otherwise they reach the coefficients.
        """
        spread = (SPEED * self.spread).exp()
        if not learn:
            spread = spread.detach()
        size = (values - torch.round(self.mean / self.step)).abs()
        far = 0.5 * torch.exp(-(size + 0.5) / spread)
        near = 0.5 * torch.exp(-(size - 0.5).abs() / spread)
        probability = torch.where(size < 0.5, 1 - near, near) - far
        return -probability.clamp_min(SMALLEST).log2().sum()

    @torch.no_grad()
    def follow(self, bits: Tensor) -> None:
        """Take the step nearer to where the bits a sample meet the target, if there is one."""
        if self.target_bits is None:
            return
        self.bits.lerp_(bits, 0.1)
        self.step *= torch.exp(0.02 * torch.log(self.bits / self.target_bits).clamp(-1, 1))
