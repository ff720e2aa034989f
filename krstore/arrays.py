"""Samples that are in memory, as a source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from krstore.archives._common import json_attributes
from krstore.dtypes import dtype_name, numpy_dtype
from krstore.errors import ArchiveError
from krstore.source import Array, Ids, SourceSpec, default_channel_axis

__all__ = ["ArraySource", "array_of", "integers"]


class ArraySource:
    """Arrays or tensors in memory as a source: for `krstore.encode` and `krstore.extract`, beside archives.

    Args:
        features: samples (N, *shape), floating or uint8: an array, or a tensor on any device.
        labels, task: integers (N,); `None` where there are none.
        channel_axis: within a sample; default by its rank, as for archives: first of (C, H, W), last of (T, D).
        attributes: where the samples come from, as JSON values; a store keeps them.

    Attributes:
        spec: what the arrays hold.
        features, labels, task: the arrays.

    Raises:
        ArchiveError: an element type or a shape that no archive has.
    """

    def __init__(
        self,
        features: Any,
        labels: Any = None,
        task: Any = None,
        *,
        channel_axis: int | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        given = array_of(features)
        dtype = dtype_name(given.dtype)
        self.features = np.asarray(given, numpy_dtype(dtype))
        if not given.ndim:
            raise ArchiveError("features are a single number; expected samples (N, *shape)")
        shape = given.shape[1:]
        if channel_axis is not None and not 0 <= channel_axis < len(shape):
            raise ArchiveError(f"channel_axis={channel_axis}: a sample of shape {shape} has axes 0 to {len(shape) - 1}")
        self.spec = SourceSpec(
            samples=len(given), shape=shape, dtype=dtype, attributes=json_attributes(attributes or {}),
            channel_axis=default_channel_axis(len(shape)) if channel_axis is None else channel_axis,
        )  # fmt: skip
        samples = self.spec.samples
        self.labels = None if labels is None else integers("labels", labels, samples)
        self.task = None if task is None else integers("task", task, samples)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec.samples} samples of {self.spec.shape} {self.spec.dtype})"

    def read(self, ids: Ids) -> Array:
        """Return the samples (len(ids), *shape) of these IDs."""
        return np.asarray(self.features[ids])


def integers(name: str, values: Any, samples: int) -> Ids:
    """Return a column of integers (samples,).

    Raises:
        ArchiveError: the values are none.
    """
    column = array_of(values)
    if column.shape != (samples,) or column.dtype.kind not in "iu":
        raise ArchiveError(f"{name} have shape {column.shape} and type {column.dtype}; expected ({samples},) integers")
    if samples and column.max() > np.iinfo(np.int64).max:
        raise ArchiveError(f"{name} hold {column.max()}, above the 64-bit signed range")
    return column.astype(np.int64)


def array_of(values: Any) -> Array:
    """Return an array of what may be a tensor; torch is not imported for what is none."""
    if not hasattr(values, "detach"):
        return np.asarray(values)
    from krstore.tensors import as_array

    return as_array(values)
