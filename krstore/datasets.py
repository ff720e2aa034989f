"""A PyTorch dataset as a source."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from krstore.arrays import ArraySource, array_of, integers
from krstore.dtypes import DTYPES, cast, numpy_dtype
from krstore.errors import ArchiveError, UsageError
from krstore.source import Array, Ids

__all__ = ["DatasetSource"]

AGAIN = 8  # samples that are read twice, to see whether they are the same


class DatasetSource:
    """A map-style dataset of samples, or of pairs (sample, label), as a source, read as it is needed.

    For `krstore.encode` and `krstore.extract`, beside archives. A sample is a tensor, an array, or an image of Pillow,
    which becomes (H, W, 1) where it is grey and (H, W, 3) elsewhere, uint8; all are of one shape and element type, and
    the same each time: random augmentation belongs behind `Replay`, not before it.

    Args:
        dataset: for example one of torchvision's.
        labels: integers (N,); default ``dataset.targets``, unless that is not what its first pair says, or it has a
            ``target_transform``; then what its pairs say, for which all of it is read once.
        threads: samples that are read at a time; 1 for a dataset that is not made for several.
        dtype: the element type to have floats in, one of `krstore.dtypes.DTYPES`; default the dataset's.
        channel_axis, attributes: see `krstore.ArraySource`.

    Raises:
        UsageError: it is no map-style dataset, a sample is another one when it is read again, or `dtype` would make
            floats of integers or the other way round.
        ArchiveError: it is empty, or its first sample is none.

    Attributes:
        spec: what the dataset holds.
    """

    task: Ids | None = None

    def __init__(
        self,
        dataset: Any,
        labels: Any = None,
        *,
        threads: int = 1,
        dtype: str | None = None,
        channel_axis: int | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            raise UsageError(
                f"a {type(dataset).__name__} is no map-style dataset: it needs a length and an item an index"
            )
        if threads < 1:
            raise UsageError(f"threads={threads} is not positive")
        if not len(dataset):
            raise ArchiveError("the dataset is empty")
        self._dataset, self._threads, self._dtype = dataset, threads, None
        sample, *label = _parts(dataset[0])
        self._given = _targets(dataset, label) if labels is None else labels
        if channel_axis is None and _is_picture(sample):
            channel_axis = 2
        first = _values(sample)
        if dtype is not None and dtype != first.dtype.name:
            if "uint8" in (dtype, first.dtype.name) or first.dtype.name not in DTYPES:
                raise UsageError(f"samples of {first.dtype} cannot be had as {dtype}")
            self._dtype = numpy_dtype(dtype)
            first = cast(first, self._dtype)
        one = ArraySource(first[None], channel_axis=channel_axis, attributes=attributes)
        for number in range(0, len(dataset), math.ceil(len(dataset) / AGAIN)):
            if self._sample(number).tobytes() != self._sample(number).tobytes():
                raise UsageError(
                    f"sample {number} of the dataset is another one when it is read again; leave out what is random"
                )
        self.spec = replace(one.spec, samples=len(dataset))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec.samples} samples of {self.spec.shape} {self.spec.dtype})"

    @functools.cached_property
    def labels(self) -> Ids | None:
        """Class labels (N,); `None` where the dataset has none.

        Raises:
            ArchiveError: they are no integers, or not as many.
        """
        values = self._given
        if values is None:
            found = [_parts(self._dataset[number])[1:2] for number in range(self.spec.samples)]
            if () in found:
                return None
            try:
                values = np.array([array_of(label) for (label,) in found])
            except ValueError as error:
                raise ArchiveError(f"the labels of the dataset are no integers: {error}") from error
        return integers("labels", values, self.spec.samples)

    def read(self, ids: Ids) -> Array:
        """Return the samples (len(ids), *shape) of these IDs.

        Raises:
            ArchiveError: one has another shape or element type than the first.
        """
        with ThreadPoolExecutor(self._threads) as pool:
            read = map if self._threads == 1 else pool.map
            found = list(read(self._sample, ids.tolist()))
        for number, sample in zip(ids, found, strict=True):
            if sample.shape != self.spec.shape or sample.dtype.name != self.spec.dtype:
                raise ArchiveError(
                    f"sample {number} of the dataset is {sample.shape} {sample.dtype}, sample 0 is {self.spec.shape} "
                    f"{self.spec.dtype}; bring all to one shape and type"
                )
        return np.stack(found) if found else np.empty((0, *self.spec.shape), numpy_dtype(self.spec.dtype))

    def _sample(self, number: int) -> Array:
        values = _values(_parts(self._dataset[number])[0])
        return values if self._dtype is None else cast(values, self._dtype)


def _targets(dataset: Any, label: list[Any]) -> Any:
    """Return what a dataset says that its labels are, if its first pair, whose second part is `label`, agrees."""
    targets = getattr(dataset, "targets", None)
    if targets is None or getattr(dataset, "target_transform", None) is not None:
        return None
    return targets if not label or np.array_equal(array_of(label[0]), array_of(targets[0])) else None


def _values(sample: Any) -> Array:
    if not _is_picture(sample):
        return array_of(sample)
    if sample.mode not in ("L", "RGB") and not sample.mode.startswith(("I", "F")):
        sample = sample.convert("RGB")
    return np.atleast_3d(np.asarray(sample))


def _parts(item: Any) -> tuple[Any, ...]:
    return tuple(item) if isinstance(item, tuple | list) else (item,)


def _is_picture(sample: Any) -> bool:
    return hasattr(sample, "convert") and hasattr(sample, "mode")
