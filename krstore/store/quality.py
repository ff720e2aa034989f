"""How far decoded samples are from their source, in one streamed pass."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from krstore.errors import KrstoreError
from krstore.progress import SILENT, Progress
from krstore.snapshots import SnapshotSource, SnapshotStats, State, check_state, is_float
from krstore.source import Array, Ids, Source, SourceStats, class_indices, to_channels_first
from krstore.store.header import Quality, SnapshotQuality
from krstore.store.shift import Shift

__all__ = ["measure", "measure_snapshots", "round_figure"]


def measure(
    source: Source, decode: Callable[[Ids], Array], stats: SourceStats, kept: Ids | None, progress: Progress = SILENT
) -> Quality:
    """Compare a source with its decoding.

    Args:
        source: the samples as they were.
        decode: returns the decoded samples (len(rows), *shape) of payload rows.
        stats: of the source.
        kept: the source IDs of the payload's rows, for an exemplar codec; `None` when rows are IDs.
    """
    spec = source.spec
    count = spec.samples if kept is None else len(kept)
    squared, cosine, max_abs = np.zeros(count), np.zeros(count), 0.0
    by_channel, shift = np.zeros(spec.channels), Shift(count, spec.channels)
    rows_per_chunk = max(1, (16 << 20) // max(1, spec.sample_bytes))
    with progress.task("measure", count) as task:
        for start in range(0, count, rows_per_chunk):
            rows = np.arange(start, min(start + rows_per_chunk, count))
            truth = _channels(source.read(rows if kept is None else kept[rows]), spec.channel_axis)
            decoded = _channels(decode(rows), spec.channel_axis)
            norms = np.sqrt(np.square(truth).sum(axis=(1, 2))) * np.sqrt(np.square(decoded).sum(axis=(1, 2)))
            dots = (truth * decoded).sum(axis=(1, 2))
            both_zero = ~(truth.any(axis=(1, 2)) | decoded.any(axis=(1, 2)))
            cosine[rows] = np.where(norms > 0, dots / np.where(norms > 0, norms, 1), both_zero)
            shift.add(rows, truth, decoded)
            truth -= decoded
            max_abs = max(max_abs, float(np.abs(truth).max(initial=0)))
            np.square(truth, out=truth)
            squared[rows] = truth.sum(axis=(1, 2))
            by_channel += truth.sum(axis=(0, 2))
            task.advance(len(rows))
    mse = float(squared.sum() / (count * spec.elements))
    square = np.square(stats.range)
    scaled = np.divide(by_channel, square, out=np.zeros_like(by_channel), where=square > 0)
    span = float(stats.maximum.max() - stats.minimum.min())
    labels = source.labels if kept is None or source.labels is None else source.labels[kept]
    return Quality(
        mse=mse,
        mse_normalised=float(scaled.sum() / (count * spec.elements)),
        nmse=mse / stats.variance if stats.variance > 0 else 0.0,
        psnr=10 * math.log10(span**2 / mse) if mse > 0 and span > 0 else None,
        max_abs=max_abs,
        cosine=float(cosine.mean()),
        per_class=tuple(round_figure(squared[ids].mean() / spec.elements) for ids in class_indices(labels).values()),
        variance_kept=shift.variance_kept(),
        discriminator=shift.discriminator() if mse > 0 else 0.5,
        coverage_mse=None if kept is None else _coverage(source, decode, kept),
    )


def measure_snapshots(
    source: SnapshotSource, network: Callable[[int], State], stats: SnapshotStats, progress: Progress = SILENT
) -> SnapshotQuality:
    """Compare a network's states with their decoding.

    Args:
        source: the states as they were.
        network: returns the decoded state of a step.
        stats: of the source.

    Raises:
        KrstoreError: the codec is at fault: an array is missing, of another shape, or not exact where it must be.
    """
    squared, counts, max_abs = [0.0] * len(source.spec.steps), [0] * len(source.spec.steps), 0.0
    with progress.task("measure", len(counts), "steps") as task:
        for step, arrays in enumerate(source.spec.steps):
            state = network(step)
            try:
                check_state(state, arrays)
            except ValueError as error:
                raise KrstoreError(f"step {step} decodes wrongly: {error}") from error
            for name, spec in arrays.items():
                truth = source.read(step, name)
                if not is_float(spec):
                    if not np.array_equal(truth, state[name]):
                        raise KrstoreError(f"step {step}: {name!r} of type {spec.dtype} does not decode exactly")
                    continue
                errors = truth.astype(np.float64) - state[name].astype(np.float64)
                squared[step] += float(np.square(errors).sum())
                counts[step] += errors.size
                max_abs = max(max_abs, float(np.abs(errors).max(initial=0)))
            task.advance(1)
    mse = sum(squared) / max(1, sum(counts))
    return SnapshotQuality(
        mse=mse,
        nmse=mse / stats.variance if stats.variance > 0 else 0.0,
        max_abs=max_abs,
        per_step=tuple(round_figure(total / max(1, count)) for total, count in zip(squared, counts, strict=True)),
    )


def round_figure(value: float) -> float:
    """Round to seven significant digits: with a figure a class, digits weigh in a file of many classes."""
    return float(f"{value:.6e}")


def _channels(values: Array, channel_axis: int | None) -> NDArray[np.float64]:
    return to_channels_first(values, channel_axis).astype(np.float64)


def _coverage(source: Source, decode: Callable[[Ids], Array], kept: Ids) -> float | None:
    """Mean over all samples of the squared distance per element to the nearest kept exemplar of their class;
    `None` when a class has no exemplar."""
    classes = class_indices(source.labels) or {0: np.arange(source.spec.samples)}
    row_of = {int(sample): row for row, sample in enumerate(kept)}
    nearest = np.full(source.spec.samples, np.inf)
    for members in classes.values():
        rows = np.array([row_of[int(i)] for i in members if int(i) in row_of], np.int64)
        if not len(rows):
            return None
        step = max(1, (64 << 20) // max(1, 8 * source.spec.elements))
        for first, start in itertools.product(range(0, len(rows), step), range(0, len(members), step)):
            if start == 0:
                exemplars = decode(rows[first : first + step]).reshape(-1, source.spec.elements).astype(np.float64)
            ids = members[start : start + step]
            samples = source.read(ids).reshape(len(ids), -1).astype(np.float64)
            distances = np.square(samples).sum(1)[:, None] + np.square(exemplars).sum(1) - 2 * samples @ exemplars.T
            nearest[ids] = np.minimum(nearest[ids], np.maximum(0, distances.min(axis=1)))
    return float(nearest.mean() / source.spec.elements)
