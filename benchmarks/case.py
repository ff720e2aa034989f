"""What every method that is measured takes and returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks._common import Run
from krstore.source import Array, Source

__all__ = ["Case", "Encoded", "nmse"]


@dataclass(frozen=True)
class Case:
    """An archive to compress.

    Attributes:
        run: the benchmark's; its tiny runs train for an iteration or two.
        source, features: the archive, streamed and whole.
    """

    run: Run
    source: Source
    features: Array

    def budget(self, ratio: float) -> int:
        """Return the bytes of a ratio."""
        return int(self.features.nbytes / ratio)


@dataclass(frozen=True)
class Encoded:
    """What a method made: its bytes, the parameter it chose, and how to decode it."""

    bytes: int
    setting: str
    decode: Callable[[], Array]


def nmse(features: Array, decoded: Array) -> float:
    """Return the mean squared error as a share of the features' variance."""
    squared = np.square(features.astype(np.float64) - decoded.astype(np.float64)).mean()
    return float(squared / features.var(dtype=np.float64))
