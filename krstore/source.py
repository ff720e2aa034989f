"""What can be encoded: a streamed sequence of samples of one shape, and what one pass over it tells.

Archives (`krstore.archives`) and stores (`krstore.store.Store`) are both sources, so that merging stores is
encoding them again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from krstore.dtypes import numpy_dtype
from krstore.errors import ArchiveError
from krstore.progress import SILENT, Progress

__all__ = [
    "CHUNK_BYTES",
    "MAX_SAMPLES_PER_BYTE",
    "Array",
    "Held",
    "Ids",
    "Source",
    "SourceSpec",
    "SourceStats",
    "Subset",
    "chunks",
    "class_indices",
    "default_channel_axis",
    "from_channels_first",
    "scan",
    "to_channels_first",
]

Array = NDArray[Any]
Ids = NDArray[np.int64]

CHUNK_BYTES = 16 << 20
MAX_SAMPLES_PER_BYTE = 1024  # of a file; more are a claim that nothing in it stands for
LARGEST = 1e150  # beyond it, squared errors overflow


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """What a source holds, known before any sample is read.

    Attributes:
        samples: N, how many samples.
        shape: the shape of one sample, for example ``(C, H, W)``.
        dtype: the element type's name, one of `krstore.dtypes.DTYPES`.
        channel_axis: the axis *within a sample* that holds the channels; `None` for scalars.
        features_key, labels_key: the names the arrays had, kept so that a decoded archive has them again.
        attributes: where the samples came from (network, layer, normalisation), as JSON values.
    """

    samples: int
    shape: tuple[int, ...]
    dtype: str
    channel_axis: int | None
    features_key: str = "features"
    labels_key: str = "labels"
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def elements(self) -> int:
        """Elements of one sample."""
        return math.prod(self.shape)

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""
        return self.elements * numpy_dtype(self.dtype).itemsize

    @property
    def bytes(self) -> int:
        """Bytes of all samples, without labels: what a compression ratio is measured against."""
        return self.samples * self.sample_bytes

    @property
    def channels(self) -> int:
        """C, the length of the channel axis (1 for scalars)."""
        return 1 if self.channel_axis is None else self.shape[self.channel_axis]


class Source(Protocol):
    """A streamed sequence of N samples with IDs 0..N-1."""

    @property
    def spec(self) -> SourceSpec:
        """What the source holds."""

    @property
    def labels(self) -> Ids | None:
        """Class labels (N,), any integers; `None` without labels."""

    @property
    def task(self) -> Ids | None:
        """The task of each sample (N,); `None` where the archive has none."""

    def read(self, ids: Ids) -> Array:
        """Return the samples (len(ids), *shape) of these IDs, in this order, in the source's dtype."""


class Subset:
    """Some samples of a source, in an order of their own; a source itself.

    Args:
        source: whose samples.
        ids: which (n,).
        labels: of them (n,); default their own.
    """

    def __init__(self, source: Source, ids: Ids, labels: Ids | None = None) -> None:
        self._source, self._ids = source, ids
        self.labels = source.labels[ids] if labels is None and source.labels is not None else labels
        self.task = None if source.task is None else source.task[ids]
        self.spec = replace(source.spec, samples=len(ids))

    def read(self, ids: Ids) -> Array:
        """Return samples by their place in the subset."""
        return self._source.read(self._ids[ids])


@dataclass(frozen=True)
class Held:
    """Samples that are in memory, as a source."""

    spec: SourceSpec
    values: Array
    labels: Ids | None
    task: Ids | None

    def read(self, ids: Ids) -> Array:
        """Return samples by their place."""
        return self.values[ids]


@dataclass(frozen=True)
class SourceStats:
    """What one pass over a source tells.

    Attributes:
        sha256: of the features' bytes, C order, little endian.
        minimum, maximum, mean: per channel (C,), float64.
        variance: of all elements about their common mean; the denominator of NMSE.
    """

    sha256: str
    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]
    mean: NDArray[np.float64]
    variance: float

    @property
    def range(self) -> NDArray[np.float64]:
        """Maximum minus minimum of each channel (C,); 0 for a dead one."""
        return np.asarray(self.maximum - self.minimum)


def default_channel_axis(rank: int) -> int | None:
    """Return the channel axis within a sample of this rank when an archive does not say.

    (N, C, H, W) and higher ranks have it first, (N, T, D) and (N, D) last.
    """
    return {0: None, 1: 0, 2: 1}.get(rank, 0)


def to_channels_first(features: Array, channel_axis: int | None) -> Array:
    """Bring features (n, *shape) to (n, C, positions)."""
    n = len(features)
    if channel_axis is None:
        return features.reshape(n, 1, 1)
    moved = np.moveaxis(features, channel_axis + 1, 1)
    return moved.reshape(n, moved.shape[1], -1)


def from_channels_first(values: Array, shape: tuple[int, ...], channel_axis: int | None) -> Array:
    """Undo `to_channels_first`: bring (n, C, positions) back to (n, *shape)."""
    if channel_axis is None:
        return values.reshape(len(values), *shape)
    rest = shape[:channel_axis] + shape[channel_axis + 1 :]
    return np.moveaxis(values.reshape(len(values), shape[channel_axis], *rest), 1, channel_axis + 1)


def chunks(source: Source, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[Ids, Array]]:
    """Yield all samples in order as (ids, features) pieces of about `chunk_bytes`."""
    spec = source.spec
    step = max(1, chunk_bytes // max(1, spec.sample_bytes))
    for start in range(0, spec.samples, step):
        ids = np.arange(start, min(start + step, spec.samples))
        yield ids, source.read(ids)


def class_indices(labels: Ids | None) -> dict[int, Ids]:
    """Return the IDs of each class, ascending, by label; empty without labels."""
    if labels is None or not len(labels):
        return {}
    order = np.argsort(labels, kind="stable")
    values, starts = np.unique(labels[order], return_index=True)
    return {int(v): ids for v, ids in zip(values, np.split(order, starts[1:]), strict=True)}


def scan(source: Source, progress: Progress = SILENT) -> SourceStats:
    """Read a source once: check that every value is finite and its square too, hash it, and measure its channels.

    Raises:
        ArchiveError: there are no samples or no elements, or a value is NaN, infinite or beyond 1e150 (the sample ID is
            named).
    """
    spec = source.spec
    if spec.samples == 0:
        raise ArchiveError("the archive holds no samples (N = 0); nothing to encode")
    if spec.elements == 0:
        raise ArchiveError(f"samples of shape {spec.shape} hold no elements; nothing to encode")
    digest = hashlib.sha256()
    low, high = np.full(spec.channels, np.inf), np.full(spec.channels, -np.inf)
    total, squares = np.zeros(spec.channels), np.zeros(spec.channels)
    centre: NDArray[np.float64] | None = None  # of the first piece: sums about it lose no digits to cancellation
    with progress.task("scan", spec.samples) as task:
        for ids, features in chunks(source):
            digest.update(np.ascontiguousarray(features).view(np.uint8).data)
            values = to_channels_first(features, spec.channel_axis).astype(np.float64)
            _check_finite(values, ids)
            low = np.minimum(low, values.min(axis=(0, 2)))
            high = np.maximum(high, values.max(axis=(0, 2)))
            if centre is None:
                centre = values.mean(axis=(0, 2))
            values -= centre[:, None]
            total += values.sum(axis=(0, 2))
            squares += np.square(values, out=values).sum(axis=(0, 2))
            task.advance(len(ids))
    assert centre is not None
    per_channel = spec.samples * spec.elements // spec.channels
    offset = total / per_channel
    within = np.maximum(0, squares / per_channel - np.square(offset))
    mean = centre + offset
    return SourceStats(digest.hexdigest(), low, high, mean, float(within.mean() + mean.var()))


def _check_finite(values: Array, ids: Ids) -> None:
    finite = (np.abs(values) < LARGEST).all(axis=(1, 2))
    if not finite.all():
        bad = ids[~finite]
        first = values[~finite][0]
        kind = "NaN" if np.isnan(first).any() else "infinite" if np.isinf(first).any() else "absurdly large"
        raise ArchiveError(
            f"sample {bad[0]} holds a {kind} value ({len(bad)} bad samples in this part of the archive); "
            "remove or repair it before encoding"
        )
