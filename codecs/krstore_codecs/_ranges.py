"""Whether samples fit a decoder that was made for others: what is beyond its channels' ranges is clipped to them."""

from __future__ import annotations

import numpy as np
import torch

from krstore.codec import FitContext
from krstore.errors import DecoderMismatchError
from krstore.source import Source
from krstore_codecs._normalise import Normaliser

__all__ = ["check_ranges"]

SLACK = 2.0  # of the widest channel's range, by which samples may leave that of a decoder
MOST_LOST = 0.01  # of their variance, that clipping may lose
SAMPLES, PIECE = 2048, 256  # that it is measured on


def check_ranges(source: Source, normaliser: Normaliser, context: FitContext) -> None:
    """Say what of these samples a decoder will clip.

    Raises:
        DecoderMismatchError: they leave its ranges so far, or lose so much, that they are of another kind.
    """
    minimum, maximum = context.stats.minimum, context.stats.maximum
    low, high = normaliser.low, normaliser.low + normaliser.span
    clipped = np.flatnonzero((minimum < low) | (maximum > high))
    if not len(clipped):
        return
    beyond = np.maximum(low - minimum, maximum - high) / np.maximum(normaliser.span, normaliser.span.max())
    worst, lost = int(beyond.argmax()), _lost(source, normaliser, context)
    said = (
        f"{len(clipped)} of {len(low)} channels leave the range of the decoder given; channel {worst} reaches "
        f"{minimum[worst]:.4g} to {maximum[worst]:.4g}, the decoder {low[worst]:.4g} to {high[worst]:.4g}"
    )
    if beyond[worst] > SLACK or lost > MOST_LOST:
        raise DecoderMismatchError(
            f"{said}, and clipping would lose {100 * lost:.3g} % of the variance. Encode without --decoder"
        )
    context.progress.note(f"transform: {said}; what is beyond is clipped, {100 * lost:.2g} % of the variance")


def _lost(source: Source, normaliser: Normaliser, context: FitContext) -> float:
    """Return how much of the variance clipping loses, as a share of it, on some random samples."""
    total = source.spec.samples
    picked = np.sort(np.random.default_rng(context.seed).permutation(total)[:SAMPLES])
    low, span = (torch.from_numpy(values).view(1, -1, 1, 1) for values in (normaliser.low, normaliser.span))
    error = 0.0
    for ids in np.array_split(picked, -(-len(picked) // PIECE)):
        grids = normaliser.to_grid(source.read(ids))
        error += float((grids - grids.clamp(low, low + span)).double().square().sum())
    return error / (len(picked) * source.spec.elements) / max(context.stats.variance, float(np.finfo(np.float64).tiny))
