"""Codes of samples: what an encoder makes of them, standardised, rounded to a step, and entropy-coded.

While a network trains, uniform noise stands for the rounding, and at the end the rounding itself, through which
gradients pass as if it were not there (Balle et al., "End-to-end optimized image compression", ICLR 2017).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from krstore.codec import PayloadSink
from krstore.source import Array, Ids, Source, chunks
from krstore.store.container import MemberReader
from krstore_codecs._latents import IntegerBlocks, SpilledRows, write_integer_blocks
from krstore_codecs._normalise import Normaliser

__all__ = ["LATENTS", "CodeReader", "encode_all", "noisy", "rounded", "step_for", "write_codes"]

LATENTS, STEP = "latent/codes", "network/step"
GAUSSIAN_BITS = 2.05  # entropy, in bits, of a standard Gaussian rounded to a step of 1: log2(2 pi e) / 2
LEAST_BITS, MOST_BITS = 0.5, 10.0


def step_for(bits: float) -> float:
    """Return the step at which a latent of unit variance takes about so many bits, within limits."""
    return float(2 ** (GAUSSIAN_BITS - min(MOST_BITS, max(LEAST_BITS, bits))))


def noisy(latents: Tensor, step: float, seed: int, iteration: int) -> Tensor:
    """Return latents with the noise of an iteration, uniform in a step."""
    generator = torch.Generator(latents.device).manual_seed(seed << 32 | iteration)
    return latents + step * (torch.rand(latents.shape, device=latents.device, generator=generator) - 0.5)


def rounded(latents: Tensor, step: float) -> Tensor:
    """Return latents rounded to multiples of a step, with the gradients of the latents."""
    return latents + (torch.round(latents / step) * step - latents).detach()


def encode_all(
    source: Source, normaliser: Normaliser, encoder: Callable[[Tensor], Tensor], device: str, length: int
) -> SpilledRows:
    """Return what an encoder makes of grids (n, C, H, W) in [0, 1], (N, length) for all samples."""
    latents = SpilledRows(length)
    with torch.inference_mode():
        for _, features in chunks(source, 1 << 22):
            grids = normaliser.scale(normaliser.to_grid(features).to(device))
            latents.append(encoder(grids).float().cpu().numpy())
    return latents


def write_codes(sink: PayloadSink, latents: SpilledRows, step: float) -> None:
    """Write latents, rounded to multiples of a step, or of the finest there is."""
    stored = np.float32(max(step, latents.finest))
    sink.write(STEP, stored.astype("<f4").tobytes())
    write_integer_blocks(sink, LATENTS, latents, float(stored))


class CodeReader:
    """Reads what `write_codes` wrote.

    Args:
        samples, length: N and L.

    Raises:
        CorruptStoreError: the tables are malformed.
    """

    def __init__(self, payload: MemberReader, samples: int, length: int) -> None:
        self._step = np.frombuffer(payload.read(STEP), "<f4", 1)[0]
        self._integers = IntegerBlocks(payload, LATENTS, samples, length)

    def read(self, rows: Ids) -> Array:
        """Return the latents (len(rows), L) of these rows, float32."""
        return np.asarray(self._integers.read(rows).astype(np.float32) * self._step)

    def cache(self, limit: int) -> None:
        """See `krstore.store.blocks.BlockReader.cache`."""
        self._integers.cache(limit)
