"""Where a fit of the transform codec begins: the source's KLT, and how a byte budget is best spent.

What is decided here is decided by estimates on some samples, without training: how many channels of the KLT are worth
their basis, how wide the nets are, and the quantiser's step.
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
from krstore_codecs._transform import Analysis, kernel_size

__all__ = ["Plan", "Units", "plan"]

SAMPLES, BYTES = 4096, 128 << 20
PROBE = 512  # samples whose integers are counted
BASIS_BITS = 7.0
FIXED_BYTES = 1500  # sizes, headers of members, tables of coefficients
TABLE_BYTES = 500  # of the weights
WIDTH_STEP, MOST_WIDTH = 8, 72
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
class Plan:
    """How a fit begins.

    Attributes:
        units: of the grids.
        spread: the source's standard deviation about its channels' means, raw units.
        basis: the KLT (K, C).
        width: of the nets; 0 for none.
        step: of the quantiser.
        magnitude: mean magnitude of each coefficient (K, H', W'), in steps.
        network_bytes: what basis and net may take.
        sample_bits: what the coefficients of a sample may take.
        net_bytes: about what the net alone takes, of each sample's share.
        probe: some samples (n, C, H, W), in the units.
    """

    units: Units
    spread: float
    basis: Tensor
    width: int
    step: float
    magnitude: Tensor
    network_bytes: int
    sample_bits: float
    net_bytes: float
    probe: Tensor

    def linear_is_better(self, analysis: nn.Module, synthesis: nn.Module, step: float) -> bool:
        """Whether the KLT and DCT alone, given the net's bytes too, have less error than these trained networks."""
        with torch.no_grad():
            centre = self.units.centre.to(self.probe.device).view(1, -1, 1, 1)
            coded = torch.round(analysis(self.probe) / step)
            error = float((synthesis(coded * step) - centre - self.probe).square().sum())
            rows = Analysis(self.basis, 0, (self.probe.shape[2], self.probe.shape[3]))(self.probe)
        room = _coded(coded, 1.0) + self.net_bytes
        left = float(self.probe.square().sum() - rows.square().sum())
        return left + _error(rows, rows.shape[1], _step_for_bytes(rows, room)) < error


def plan(
    source: Source, normaliser: Normaliser, context: FitContext, *, share: float, weight_bits: float,
    width: int | None, channels: int | None,
) -> Plan:  # fmt: skip
    """Spend the budget of a fit as well as can be; one whose target is an error gets what that should take.

    Args:
        share: of the budget that the net may take.
        weight_bits: bits of a weight of the net.
        width, channels: as given by the user; `None` for the best.

    Raises:
        TargetUnreachableError: nothing fits the budget, or so few channels have more than the error asked for.
    """
    spec, (most, *grid) = source.spec, normaliser.grid
    units, spread, grids = _sampled(source, normaliser, context)
    vectors = grids.movedim(1, -1).reshape(-1, most).double()
    basis = torch.linalg.eigh(vectors.T @ vectors / len(vectors)).eigenvectors.flip(1).T.float()
    with torch.no_grad():
        analysis = Analysis(basis, 0, (grid[0], grid[1]))
        rows = torch.cat([analysis(part) for part in torch.split(grids, 256)])
    probe, candidates = rows[:PROBE], [channels] if channels else _candidates(most)

    def basis_bytes(kept: int) -> float:
        return kept * most * BASIS_BITS / 8 + 2 * most + TABLE_BYTES + FIXED_BYTES

    def budget_for(error: float) -> float:
        steps = {kept: _step_for_error(probe, kept, error * len(probe)) for kept in candidates}
        sizes = [
            basis_bytes(kept) + spec.samples * (LEAST + _coded(probe[:, :kept], step))
            for kept, step in steps.items()
            if step is not None
        ]
        if not sizes:
            raise TargetUnreachableError(
                f"transform: channels={channels} of {most} leave out more than an mse of {context.max_mse:.6g}; "
                "keep more of them, or none given"
            )
        return min(sizes)

    budget = float(context.budget or spec.bytes / DEFAULT_RATIO)
    if context.max_mse is not None:
        gain = 1.0 if width == 0 else GAIN
        budget = budget_for(gain * context.max_mse * spec.elements / spread**2)
    net_bytes = 2 * most * kernel_size((grid[0], grid[1])) * weight_bits / 8  # for each channel of its width
    if width is None:
        width = min(MOST_WIDTH, int(share * budget / net_bytes) // WIDTH_STEP * WIDTH_STEP)
    best: tuple[float, int, float, float] | None = None
    for kept in candidates:
        network = basis_bytes(kept) + width * net_bytes
        if network < budget:
            step = _step_for_bytes(probe[:, :kept], (budget - network) / spec.samples)
            best = min(best or (math.inf, 0, 0.0, 0.0), (_error(probe, kept, step), kept, step, network))
    if best is None:
        smallest = int(basis_bytes(min(candidates)) + width * net_bytes)
        raise TargetUnreachableError(
            f"transform: its smallest network here takes about {smallest:,} bytes; the target leaves {int(budget):,}. "
            "Ask for a larger file"
        )
    _, kept, step, network = best
    magnitude = (rows[:, :kept] / step).round().abs().mean(0)
    sample_bits = 8 * (budget - network) / spec.samples
    return Plan(
        units, spread, basis[:kept], width, step, magnitude, int(network - FIXED_BYTES), sample_bits,
        width * net_bytes / spec.samples, grids[:PROBE],
    )  # fmt: skip


def _sampled(source: Source, normaliser: Normaliser, context: FitContext) -> tuple[Units, float, Tensor]:
    """Return units, their size in the source's own, and random samples (n, C, H, W) in them."""
    size = min(source.spec.samples, SAMPLES, max(1, BYTES // (4 * source.spec.elements)))
    picked = np.sort(np.random.default_rng(context.seed).permutation(source.spec.samples)[:size])
    scaled = normaliser.scale(normaliser.to_grid(source.read(picked)))
    centred = Units.of(normaliser, context.stats.mean, 1.0).enter(scaled)
    spread = float(centred.double().square().mean().sqrt()) or 1.0
    units = Units.of(normaliser, context.stats.mean, spread)
    return units, spread, units.enter(scaled)


def _candidates(channels: int) -> list[int]:
    """Return numbers of channels to try: all, and fewer by factors of about 1.4."""
    return sorted({max(1, round(channels * 2 ** (-i / 2))) for i in range(12)}, reverse=True)


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
