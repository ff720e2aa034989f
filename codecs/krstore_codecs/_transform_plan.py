"""Where a fit of the transform codec begins: the source's KLT, and how a byte budget is best spent.

What is decided here is decided by estimates on some samples, without training: the tiles of the KLT, how many of its
channels are worth their basis, how wide the nets are, and the quantiser's step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from krstore.codec import FitContext
from krstore.entropy import entropy_bytes
from krstore.errors import TargetUnreachableError
from krstore.source import Source
from krstore.store.rate import DEFAULT_RATIO
from krstore_codecs._latents import spread_classes
from krstore_codecs._normalise import Normaliser
from krstore_codecs._transform import Analysis, Tiles, kernel_size

__all__ = ["Plan", "Units", "plan"]

SAMPLES, BYTES = 4096, 128 << 20
PROBE = 512  # samples whose integers are counted
BASIS_BITS = 7.0
FIXED_BYTES = 1500  # sizes, headers of members, tables of coefficients
TABLE_BYTES = 500  # of the weights
WIDTH_STEP, MOST_WIDTH = 8, 72
MOST_LENGTH = 1024  # numbers of a tile
LEAST = 0.05  # bytes a sample
GAIN = 2.0  # about how much a trained net lowers the error


@dataclass(frozen=True)
class Units:
    """The units that networks work in: grids about the channels' means, in multiples of their common spread.

    Attributes:
        factor: what a grid scaled to [0, 1] is multiplied by (C,); 0 for a dead channel.
        centre: the channels' means then (C,).
    """

    factor: Tensor
    centre: Tensor

    @classmethod
    def of(cls, normaliser: Normaliser, mean: NDArray[np.float64], spread: float) -> Units:
        """Return the units for a source of these channel means and this standard deviation about them."""
        low, span = normaliser.low.astype(np.float64), normaliser.span.astype(np.float64)
        return cls(torch.from_numpy(span / spread).float(), torch.from_numpy((mean - low) / spread).float())

    def enter(self, grids: Tensor) -> Tensor:
        """Bring grids (n, C, H, W) in [0, 1] into these units."""
        factor, centre = (v.to(grids.device).view(1, -1, 1, 1) for v in (self.factor, self.centre))
        return grids * factor - centre


@dataclass(frozen=True)
class _Linear:
    """A KLT of tiles that keeps all it can, and what it makes of the probe.

    Attributes:
        basis: (D, C h w) by falling variance.
        rows: coefficients (n, D, H', W') of the probe.
    """

    tiles: Tiles
    basis: Tensor
    rows: Tensor

    @classmethod
    def of(cls, tiles: Tiles, grids: Tensor, probe: Tensor) -> _Linear:
        """Return the KLT of these grids (n, C, H, W)."""
        length = grids.shape[1] * math.prod(tiles.shape)
        covariance = torch.zeros(length, length)
        for part in torch.split(grids, 256):
            vectors = tiles.cut(part).movedim(1, -1).reshape(-1, length)
            covariance += vectors.T @ vectors
        basis = torch.linalg.eigh(covariance.double()).eigenvectors.flip(1).T.float()
        with torch.no_grad():
            return cls(tiles, basis, Analysis(basis, 0, tiles)(probe))

    def kept(self, channels: int | None) -> list[int]:
        """Return numbers of channels to try, ascending: the given one, or all and fewer by factors of about 1.4."""
        most = len(self.basis)
        if channels is not None:
            return [min(channels, most)]
        return sorted({max(1, round(most * 2 ** (-i / 2))) for i in range(14)})

    def network_bytes(self, kept: int) -> float:
        """Return about what the basis takes, with all that does not depend on the net."""
        channels = self.basis.shape[1] // math.prod(self.tiles.shape)
        return kept * self.basis.shape[1] * BASIS_BITS / 8 + 2 * channels + TABLE_BYTES + FIXED_BYTES


@dataclass(frozen=True)
class _Choice:
    """A KLT, how many of its channels are kept, the step, what the network takes, and the probe's squared error."""

    linear: _Linear
    kept: int
    step: float
    network: float
    error: float


@dataclass(frozen=True)
class Plan:
    """How a fit begins.

    Attributes:
        units: of the grids.
        spread: the source's standard deviation about its channels' means, raw units.
        tiles: of the KLT.
        basis: the KLT (K, C h w).
        width: of the nets; 0 for none.
        step: of the quantiser.
        magnitude: mean magnitude of each coefficient (K, H', W'), in steps.
        network_bytes: what basis and net may take.
        sample_bits: what the coefficients of a sample may take.
        saved: bytes a sample that the network takes beyond what the best one without a net would.
        linear: that one.
        probe: some samples (n, C, H, W), in the units.
    """

    units: Units
    spread: float
    tiles: Tiles
    basis: Tensor
    width: int
    step: float
    magnitude: Tensor
    network_bytes: int
    sample_bits: float
    saved: float
    linear: _Choice
    probe: Tensor

    def linear_is_better(self, analysis: nn.Module, synthesis: nn.Module, step: float) -> bool:
        """Whether the best KLT and DCT alone, in the same bytes, have less error than these trained networks."""
        with torch.no_grad():
            centre = self.units.centre.to(self.probe.device).view(1, -1, 1, 1)
            coded = torch.round(analysis(self.probe) / step)
            error = float((synthesis(coded * step) - centre - self.probe).square().sum())
        rows, kept = self.linear.linear.rows, self.linear.kept
        step = _step_for_bytes(rows[:, :kept], _coded(coded, 1.0) + self.saved)
        return _error(rows, kept, step) < error


def plan(
    source: Source, normaliser: Normaliser, context: FitContext, *, share: float, weight_bits: float,
    width: int | None, tile: int | None, channels: int | None,
) -> Plan:  # fmt: skip
    """Spend the budget of a fit as well as can be; one whose target is an error gets what that should take.

    Args:
        share: of the budget that the net may take.
        weight_bits: bits of a weight of the net.
        width, tile, channels: as given by the user; `None` for the best. A net sees more than a tile, so that under
            one the tiles are single positions.

    Raises:
        TargetUnreachableError: nothing fits the budget, or so few channels have more than the error asked for.
    """
    spec, (most, height, columns) = source.spec, normaliser.grid
    units, spread, grids = _sampled(source, normaliser, context)
    probe, others = grids[:PROBE], grids[PROBE:] if len(grids) < spec.samples else grids
    linears = [
        _Linear.of(Tiles((height, columns), side), others, probe)
        for side in ([tile] if tile else _sides(most, height, columns))
    ]
    budget = float(context.budget or spec.bytes / DEFAULT_RATIO)
    if context.max_mse is not None:
        gain = 1.0 if width == 0 else GAIN
        error = gain * context.max_mse * spec.elements / spread**2
        budget = min((_budget_for(linear, channels, error, spec.samples) for linear in linears), default=math.inf)
        if budget == math.inf:
            raise TargetUnreachableError(
                f"transform: channels={channels} leave out more than an mse of {context.max_mse:.6g}; "
                "keep more of them, or give no number"
            )
    net_bytes = 2 * most * kernel_size((height, columns)) * weight_bits / 8  # for each channel of its width
    if width is None:
        width = min(MOST_WIDTH, int(share * budget / net_bytes) // WIDTH_STEP * WIDTH_STEP)
    linear = _best(linears, channels, budget, spec.samples, 0.0)
    best = _best(linears[:1], channels, budget, spec.samples, width * net_bytes) if width else linear
    if best is None or linear is None:
        smallest = min(own.network_bytes(own.kept(channels)[0]) for own in linears) + width * net_bytes
        raise TargetUnreachableError(
            f"transform: its smallest network here takes about {int(smallest):,} bytes; the target leaves "
            f"{int(budget):,}. Ask for a larger file"
        )
    magnitude = (best.linear.rows[:, : best.kept] / best.step).round().abs().mean(0)
    return Plan(
        units, spread, best.linear.tiles, best.linear.basis[: best.kept], width, best.step, magnitude,
        int(best.network - FIXED_BYTES), 8 * (budget - best.network) / spec.samples,
        (best.network - linear.network) / spec.samples, linear, probe,
    )  # fmt: skip


def _sides(channels: int, height: int, columns: int) -> list[int]:
    """Return the sides of tiles to try: what divides the longer axis, up to `MOST_LENGTH` numbers a tile."""
    longer = max(height, columns)
    sides = [side for side in range(1, longer + 1) if longer % side == 0]
    return [s for s in sides if s == 1 or channels * math.prod(Tiles((height, columns), s).shape) <= MOST_LENGTH]


def _best(
    linears: list[_Linear], channels: int | None, budget: float, samples: int, net_bytes: float
) -> _Choice | None:
    """Return the KLT and the number of its channels with the least error in a budget; `None` where none fits."""
    choices: list[_Choice] = []
    for linear in linears:
        least = math.inf
        for kept in linear.kept(channels):
            network = linear.network_bytes(kept) + net_bytes
            if network >= budget:
                break
            step = _step_for_bytes(linear.rows[:, :kept], (budget - network) / samples)
            error = _error(linear.rows, kept, step)
            if error > least:
                break
            least = error
            choices.append(_Choice(linear, kept, step, network, error))
    return min(choices, key=lambda choice: choice.error, default=None)


def _budget_for(linear: _Linear, channels: int | None, error: float, samples: int) -> float:
    """Return the fewest bytes at which the KLT has this squared error a sample; infinity where it cannot."""
    least = math.inf
    for kept in linear.kept(channels):
        step = _step_for_error(linear.rows, kept, error * len(linear.rows))
        if step is not None:
            size = linear.network_bytes(kept) + samples * (LEAST + _coded(linear.rows[:, :kept], step))
            if size > least:
                break
            least = size
    return least


def _sampled(source: Source, normaliser: Normaliser, context: FitContext) -> tuple[Units, float, Tensor]:
    """Return units, their size in the source's own, and random samples (n, C, H, W) in them."""
    size = min(source.spec.samples, SAMPLES, max(1, BYTES // (4 * source.spec.elements)))
    rng = np.random.default_rng(context.seed)
    picked = np.sort(rng.permutation(source.spec.samples)[:size])
    scaled = normaliser.scale(normaliser.to_grid(source.read(picked)))[rng.permutation(size)]
    centred = Units.of(normaliser, context.stats.mean, 1.0).enter(scaled)
    spread = float(centred.double().square().mean().sqrt()) or 1.0
    units = Units.of(normaliser, context.stats.mean, spread)
    return units, spread, units.enter(scaled)


def _bisect(rows: Tensor, too_fine: Callable[[float], bool]) -> float:
    """Return about the smallest step for these coefficients that is not too fine."""
    largest = float(rows.abs().max()) or 1.0
    low, high = largest * 1e-5, 2.5 * largest
    for _ in range(14):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if too_fine(middle) else (low, middle)
    return high


def _step_for_bytes(rows: Tensor, sample_bytes: float) -> float:
    return _bisect(rows, lambda step: _coded(rows, step) > sample_bytes)


def _step_for_error(probe: Tensor, kept: int, error: float) -> float | None:
    """Return the step at which so many channels have this squared error; `None` when the others have more."""
    if _error(probe, kept, 1e-30) > error:
        return None
    return _bisect(probe, lambda step: _error(probe, kept, step) < error)


def _error(probe: Tensor, kept: int, step: float) -> float:
    """Return the squared error of keeping so many channels, in steps."""
    own = probe[:, :kept]
    return float(probe[:, kept:].square().sum() + (own - step * torch.round(own / step)).square().sum())


def _coded(rows: Tensor, step: float) -> float:
    """Return about how many bytes a sample of coefficients (n, ...) takes, in steps."""
    integers = torch.round(rows / step).flatten(1).numpy()
    alive = integers[:, integers.any(axis=0)].astype(np.int32)
    classes = spread_classes(alive.std(axis=0, dtype=np.float64))
    total = 0.0
    for number in range(int(classes.max(initial=-1)) + 1):
        own = alive[:, classes == number]
        total += entropy_bytes(np.bincount((own - own.min()).reshape(-1)))
    return total / len(integers)
