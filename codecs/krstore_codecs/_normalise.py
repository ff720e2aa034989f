"""Features to what networks see: (n, C, H, W) grids scaled to [0, 1] by channel, and back to the source's dtype."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from krstore.dtypes import numpy_dtype
from krstore.errors import ArchiveError
from krstore.source import Array, SourceSpec, SourceStats, to_channels_first
from krstore.tensors import as_array

__all__ = ["Normaliser", "grid_shape"]


def grid_shape(spec: SourceSpec) -> tuple[int, int, int]:
    """Return (C, H, W) of a source's samples as a grid; vectors are 1x1 grids, token sequences Tx1 grids."""
    rest = [n for axis, n in enumerate(spec.shape) if axis != spec.channel_axis]
    if spec.channel_axis is None:
        return 1, 1, 1
    if len(rest) < 2:
        return spec.channels, math.prod(rest), 1
    return spec.channels, math.prod(rest[:-1]), rest[-1]


class Normaliser:
    """Scales each channel linearly so that the source's minimum is 0 and its maximum 1; dead channels become 0.

    Args:
        low, span: (C,) float32, what is subtracted and what is divided by; 0 for a dead channel, which so decodes
            exactly whatever a network says.
    """

    def __init__(self, spec: SourceSpec, low: NDArray[np.float32], span: NDArray[np.float32]) -> None:
        self.spec, self.low, self.span = spec, low, span
        self.grid = grid_shape(spec)

    @classmethod
    def of(cls, spec: SourceSpec, stats: SourceStats) -> Normaliser:
        """Return the normaliser of a source.

        Raises:
            ArchiveError: a channel's values or their range are beyond float32.
        """
        largest = max(-stats.minimum.min(), stats.maximum.max(), stats.range.max())
        if largest > np.finfo(np.float32).max:
            raise ArchiveError(f"values or their range reach {largest:.3g}, beyond float32; scale the features first")
        return cls(spec, stats.minimum.astype(np.float32), stats.range.astype(np.float32))

    def to_bytes(self) -> bytes:
        """Return the two vectors as bytes, 8 a channel."""
        return np.concatenate([self.low, self.span]).astype("<f4").tobytes()

    @classmethod
    def from_bytes(cls, spec: SourceSpec, data: bytes) -> Normaliser:
        """Undo `to_bytes`.

        Raises:
            ValueError: not 8 bytes a channel.
        """
        low, span = np.frombuffer(data, "<f4").reshape(2, spec.channels)
        return cls(spec, low.astype(np.float32), span.astype(np.float32))

    def to_grid(self, features: Array) -> Tensor:
        """Bring features (n, *shape) to an unscaled CPU tensor (n, C, H, W), float32."""
        moved = to_channels_first(features, self.spec.channel_axis).reshape(len(features), *self.grid)
        return torch.from_numpy(np.array(moved, np.float32, order="C"))

    def scale(self, grids: Tensor) -> Tensor:
        """Scale grids (n, C, H, W) to [0, 1], on their device."""
        low, span = self._vectors(grids)
        return (grids - low) / torch.where(span > 0, span, 1)

    def unscale(self, grids: Tensor) -> Tensor:
        """Undo `scale`."""
        low, span = self._vectors(grids)
        return grids * span + low

    def to_features(self, grids: Tensor) -> Tensor:
        """Bring unscaled grids (n, C, H, W) to features (n, *shape), float32."""
        if self.spec.channel_axis is None:
            return grids.reshape(len(grids), *self.spec.shape)
        rest = [n for axis, n in enumerate(self.spec.shape) if axis != self.spec.channel_axis]
        return grids.reshape(len(grids), self.grid[0], *rest).movedim(1, self.spec.channel_axis + 1)

    def decode(self, grids: Tensor) -> Tensor:
        """Turn a network's output (n, C, H, W) into features (n, *shape) in the source's dtype, inside its range."""
        low, span = self._vectors(grids)
        features = self.to_features(grids.clamp(0, 1) * span + low)
        name = self.spec.dtype
        if name == "uint8":
            return features.round().clamp(0, 255).to(torch.uint8)
        if name == "float64" and features.device.type == "mps":  # which has none
            features = features.cpu()
        return features.to(getattr(torch, name))

    def array(self, features: Tensor) -> Array:
        """Return decoded features as a NumPy array in the source's dtype."""
        return np.ascontiguousarray(as_array(features), dtype=numpy_dtype(self.spec.dtype))

    def _vectors(self, grids: Tensor) -> tuple[Tensor, Tensor]:
        low, span = (torch.from_numpy(v).to(grids.device).view(1, -1, 1, 1) for v in (self.low, self.span))
        return low, span
