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
from torch import Tensor, nn

from krstore.codec import FitContext
from krstore.entropy import entropy_bytes
from krstore.errors import TargetUnreachableError, UsageError
from krstore.source import Source
from krstore.store.rate import DEFAULT_RATIO
from krstore_codecs._latents import LARGEST, spread_classes
from krstore_codecs._normalise import Normaliser
from krstore_codecs._transform import Analysis, Layout, Tiles, kernel_size

__all__ = ["FIXED_BYTES", "Plan", "Units", "plan"]

SAMPLES, BYTES = 4096, 128 << 20
PROBE = 512  # samples whose integers are counted
FINEST = 8000.0  # steps from zero to the largest coefficient that is looked at
STEPS = 11  # of a bisection: to about a percent
PART = 32  # samples that go through the nets at once
BASIS_BITS = 7.0
FIXED_BYTES = 1500  # sizes, headers of members, tables of coefficients
TABLE_BYTES = 500  # of the weights
WIDTH_STEP, MOST_WIDTH = 8, 72
MOST_LENGTH = 1024  # numbers of a tile
LEAST = 0.05  # bytes a sample
GAIN = 2.0  # about how much a trained net lowers the error


@dataclass(frozen=True)
class Units:
    """The units that networks work in: grids laid out, about their channels' means, in multiples of a common spread.

    Attributes:
        layout: of the grids.
        factor: what a grid scaled to [0, 1] is multiplied by (C,); 0 for a dead channel.
        centre: the means then, of the layout's channels (C',).
    """

    layout: Layout
    factor: Tensor
    centre: Tensor

    def enter(self, grids: Tensor) -> Tensor:
        """Bring grids (n, C, H, W) in [0, 1] into these units."""
        factor, centre = (v.to(grids.device).view(1, -1, 1, 1) for v in (self.factor, self.centre))
        return self.layout.enter(grids * factor) - centre


@dataclass(frozen=True)
class _Sample:
    """Some samples of the source, in units of their own.

    Attributes:
        spread: the standard deviation about the channels' means, raw units.
        probe, others: grids (n, C, H, W); bases come from the others, errors from the probe.
    """

    units: Units
    spread: float
    probe: Tensor
    others: Tensor


@dataclass(frozen=True)
class _Linear:
    """A KLT of tiles that keeps all it can, and what it makes of the probe.

    Attributes:
        basis: (D, C h w) by falling variance.
        rows: coefficients (n, D, H', W') of the probe.
    """

    sample: _Sample
    tiles: Tiles
    basis: Tensor
    rows: Tensor

    @classmethod
    def of(cls, sample: _Sample, side: int) -> _Linear:
        """Return the KLT of tiles of this side, about each position's mean."""
        channels, *grid = sample.units.layout.shape
        tiles = Tiles((grid[0], grid[1]), side)
        length = channels * math.prod(tiles.shape)
        covariance, mean = torch.zeros(length, length), sample.others.mean(0)
        for part in torch.split(sample.others, 256):
            vectors = tiles.cut(part - mean).movedim(1, -1).reshape(-1, length)
            covariance += vectors.T @ vectors
        basis = torch.linalg.eigh(covariance.double()).eigenvectors.flip(1).T.float()
        with torch.no_grad():
            return cls(sample, tiles, basis, Analysis(basis, 0, tiles)(sample.probe))

    def kept(self, channels: int | None) -> list[int]:
        """Return numbers of channels to try, ascending: the given one, or all and fewer by factors of about 1.4."""
        most = len(self.basis)
        if channels is not None:
            return [min(channels, most)]
        return sorted({max(1, round(most * 2 ** (-i / 2))) for i in range(14)})

    def basis_bytes(self, kept: int) -> float:
        """Return about what the basis takes, with all that does not depend on the net."""
        length = self.basis.shape[1]
        return kept * length * BASIS_BITS / 8 + 2 * self.sample.units.layout.shape[0] + TABLE_BYTES + FIXED_BYTES

    def net_bytes(self, weight_bits: float) -> float:
        """Return about what a net takes for each channel of its width."""
        return 2 * self.sample.units.layout.shape[0] * kernel_size(self.tiles.grid) * weight_bits / 8


@dataclass(frozen=True)
class _Choice:
    """How a budget may be spent.

    Attributes:
        kept: channels of the KLT.
        step: of the quantiser.
        network: bytes of basis and net.
        error: squared, of the probe, raw units; without what a net would do.
    """

    linear: _Linear
    width: int
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
        coefficients: of some samples (n, K, H', W').
        network_bytes: what basis and net may take.
        sample_bits: what the coefficients of a sample may take.
    """

    units: Units
    spread: float
    tiles: Tiles
    basis: Tensor
    width: int
    step: float
    coefficients: Tensor
    network_bytes: int
    sample_bits: float
    _probe: Tensor
    _saved: float
    _linear: _Choice

    def errors(self, analysis: nn.Module, synthesis: nn.Module, step: float) -> tuple[float, float]:
        """Return the probe's error, of its variance, with these networks, and of the best KLT in as many bytes."""
        centre, coded, error = self.units.centre.view(1, -1, 1, 1), [], 0.0
        for part in torch.split(self._probe, PART):
            with torch.no_grad():
                coded.append(torch.round(analysis(part) / step).clamp(-LARGEST, LARGEST))
                error += float((synthesis(coded[-1] * step) - centre - part).square().sum()) * self.spread**2
        linear, kept = self._linear.linear, self._linear.kept
        step = _step_for_bytes(linear.rows[:, :kept], _coded(torch.cat(coded), 1.0) + self._saved)
        variance = float(self._probe.square().sum()) * self.spread**2 or 1.0
        return error / variance, _error(linear, kept, step) / variance


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
        UsageError: tiles so large have more numbers than a KLT can be found for.
    """
    spec = source.spec
    linears = [
        _Linear.of(sample, side)
        for sample in _samples(source, normaliser, context)
        for side in _sides(*sample.units.layout.shape, tile)
    ]
    budget = spec.bytes / DEFAULT_RATIO if context.budget is None else float(context.budget)
    if context.max_mse is not None:
        error = (1.0 if width == 0 else GAIN) * context.max_mse * spec.elements
        budget = min(_budget_for(linear, channels, error, spec.samples) for linear in linears)
        if budget == math.inf:
            raise TargetUnreachableError(
                f"transform: channels={channels} leave out more than an mse of {context.max_mse:.6g}; "
                "keep more of them, or give no number"
            )

    def best(linears: list[_Linear], width: int | None) -> _Choice | None:
        choices: list[_Choice] = []
        for linear in linears:
            each = linear.net_bytes(weight_bits)
            wide = min(MOST_WIDTH, int(share * budget / each) // WIDTH_STEP * WIDTH_STEP) if width is None else width
            choices += _choices(linear, channels, budget, spec.samples, wide, wide * each)
        return min(choices, key=lambda choice: choice.error, default=None)

    plain = best(linears, 0)
    chosen = plain if width == 0 else best([own for own in linears if tile or own.tiles.side == 1], width)
    if chosen is None or plain is None:
        smallest = min(
            own.basis_bytes(own.kept(channels)[0]) + (width or 0) * own.net_bytes(weight_bits) for own in linears
        )
        raise TargetUnreachableError(
            f"transform: its smallest network here takes about {int(smallest):,} bytes; the target leaves "
            f"{int(budget):,}. Ask for a larger file"
        )
    if chosen.width == 0:
        chosen = plain
    linear = chosen.linear
    return Plan(
        linear.sample.units, linear.sample.spread, linear.tiles, linear.basis[: chosen.kept], chosen.width, chosen.step,
        linear.rows[:, : chosen.kept], int(chosen.network - FIXED_BYTES),
        8 * (budget - chosen.network) / spec.samples, linear.sample.probe,
        (chosen.network - plain.network) / spec.samples, plain,
    )  # fmt: skip


def _sides(channels: int, height: int, columns: int, tile: int | None) -> list[int]:
    """Return the sides of tiles to try: the given one, or what divides the longer axis, up to `MOST_LENGTH` numbers."""
    longer = max(height, columns)

    def length(side: int) -> int:
        return channels * math.prod(Tiles((height, columns), side).shape)

    if tile is None:
        sides = [side for side in range(1, longer + 1) if longer % side == 0]
        return [side for side in sides if side == 1 or length(side) <= MOST_LENGTH]
    side = min(tile, longer)
    if side > 1 and length(side) > 4 * MOST_LENGTH:
        raise UsageError(f"tile={tile}: tiles of {length(side):,} numbers; the most is {4 * MOST_LENGTH:,}")
    return [side]


def _choices(
    linear: _Linear, channels: int | None, budget: float, samples: int, width: int, net_bytes: float
) -> list[_Choice]:
    """Return numbers of channels that fit a budget, as long as more of them lower the error."""
    choices: list[_Choice] = []
    for kept in linear.kept(channels):
        network = linear.basis_bytes(kept) + net_bytes
        if network >= budget:
            break
        step = _step_for_bytes(linear.rows[:, :kept], (budget - network) / samples)
        error = _error(linear, kept, step)
        if choices and error > choices[-1].error:
            break
        choices.append(_Choice(linear, width, kept, step, network, error))
    return choices


def _budget_for(linear: _Linear, channels: int | None, error: float, samples: int) -> float:
    """Return the fewest bytes at which the KLT has this squared error a sample; infinity where it cannot."""
    least = math.inf
    for kept in linear.kept(channels):
        step = _step_for_error(linear, kept, error * len(linear.rows))
        if step is not None:
            size = linear.basis_bytes(kept) + samples * (LEAST + _coded(linear.rows[:, :kept], step))
            if size > least:
                break
            least = size
    return least


def _samples(source: Source, normaliser: Normaliser, context: FitContext) -> list[_Sample]:
    """Return random samples in every layout that the source can have."""
    size = min(source.spec.samples, SAMPLES, max(1, BYTES // (4 * source.spec.elements)))
    rng = np.random.default_rng(context.seed)
    picked = np.sort(rng.permutation(source.spec.samples)[:size])
    scaled = normaliser.scale(normaliser.to_grid(source.read(picked)))[rng.permutation(size)]
    span = torch.from_numpy(normaliser.span)
    samples = []
    for layout in Layout.choices(normaliser.grid):
        raw = layout.enter(scaled * span.view(1, -1, 1, 1))
        mean = raw.mean((0, 2, 3))
        spread = float((raw - mean.view(1, -1, 1, 1)).double().square().mean().sqrt()) or 1.0
        units = Units(layout, span / spread, mean / spread)
        grids = units.enter(scaled)
        probe = min(PROBE, max(1, size // 4)) if size < source.spec.samples else PROBE
        others = grids[probe:] if 1 < size < source.spec.samples else grids
        samples.append(_Sample(units, spread, grids[:probe], others))
    return samples


def _bisect(rows: Tensor, too_fine: Callable[[float], bool]) -> float:
    """Return about the smallest step for these coefficients that is not too fine."""
    largest = float(rows.abs().max()) or 1.0
    low, high = largest / FINEST, 2.5 * largest
    for _ in range(STEPS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if too_fine(middle) else (low, middle)
    return high


def _step_for_bytes(rows: Tensor, sample_bytes: float) -> float:
    return _bisect(rows, lambda step: _coded(rows, step) > sample_bytes)


def _step_for_error(linear: _Linear, kept: int, error: float) -> float | None:
    """Return the step at which so many channels have this squared error; `None` when the others have more."""
    if _error(linear, kept, 1e-30) > error:
        return None
    return _bisect(linear.rows, lambda step: _error(linear, kept, step) < error)


def _error(linear: _Linear, kept: int, step: float) -> float:
    """Return the probe's squared error, raw units, of keeping so many channels, in steps."""
    own = linear.rows[:, :kept]
    error = linear.rows[:, kept:].square().sum() + (own - step * torch.round(own / step)).square().sum()
    return float(error) * linear.sample.spread**2


def _coded(rows: Tensor, step: float) -> float:
    """Return about how many bytes a sample of coefficients (n, ...) takes, in steps."""
    integers = torch.round(rows / step).clamp(-LARGEST, LARGEST).flatten(1).numpy()
    integers = integers - np.rint(integers.mean(axis=0))
    alive = integers[:, integers.any(axis=0)].astype(np.int32)
    classes = spread_classes(alive.std(axis=0, dtype=np.float64))
    total = 0.0
    for number in range(int(classes.max(initial=-1)) + 1):
        own = alive[:, classes == number]
        total += entropy_bytes(np.bincount((own - own.min()).reshape(-1)))
    return total / len(integers)
