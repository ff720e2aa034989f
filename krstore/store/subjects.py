"""What a store can hold, samples or a network's states, as the writer sees it: columns, quality, header."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from krstore.checkpoint import Checkpoint
from krstore.codec import (
    AnyCodec,
    Codec,
    FitContext,
    Kind,
    OpenContext,
    SharedDecoder,
    SnapshotCodec,
    SnapshotFitContext,
    SnapshotOpenContext,
)
from krstore.errors import KrstoreError
from krstore.progress import Progress
from krstore.snapshots import SnapshotSource, scan_snapshots
from krstore.source import Source, scan
from krstore.store.columns import pack_column
from krstore.store.header import (
    FORMAT_VERSION,
    CommonHeader,
    Header,
    Quality,
    SnapshotHeader,
    SnapshotInfo,
    SnapshotQuality,
    SourceInfo,
)
from krstore.store.quality import measure, measure_snapshots, round_figure
from krstore.store.sink import Sink

if TYPE_CHECKING:
    import torch

__all__ = ["AnyQuality", "Samples", "Snapshots", "Subject"]

AnyQuality = Quality | SnapshotQuality


class Subject(ABC):
    """A source with the codec that is to encode it.

    Attributes:
        codec: the codec.
        sha256: of the source's elements.
    """

    codec: AnyCodec[Any, Any]
    sha256: str

    @abstractmethod
    def fit(self, budget: int | None, max_mse: float | None, seed: int, checkpoint: Checkpoint) -> Any:
        """Let the codec fit."""

    @abstractmethod
    def write_columns(self, sink: Sink) -> None:
        """Write what belongs to the store beside the payload, as far as it is known."""

    @abstractmethod
    def measure(self, sink: Sink) -> AnyQuality:
        """Decode what was written, and compare it with the source."""

    @abstractmethod
    def placeholder_quality(self) -> AnyQuality:
        """Return a quality whose JSON is at least as long as any real one's."""

    @abstractmethod
    def header(self, config: Mapping[str, Any], quality: AnyQuality, sink: Sink) -> CommonHeader:
        """Return the header of what was written."""


class Samples(Subject):
    """Samples and a codec of samples.

    Raises:
        UsageError: the codec cannot encode them.
        ArchiveError: there are none, or one has a value that cannot be encoded.
    """

    def __init__(
        self, codec: Codec[Any, Any], source: Source, task_model: torch.nn.Module | None,
        decoder: SharedDecoder | None, device: str, progress: Progress, together: bool = False,
    ) -> None:  # fmt: skip
        codec.validate(source.spec)
        self.codec: Codec[Any, Any] = codec
        self.source, self.decoder = source, decoder
        self.task_model = copy.deepcopy(task_model)  # the caller's own keeps its mode, gradients and device
        if self.task_model is not None:
            self.task_model.eval().requires_grad_(False).to(device)
        self.device, self.progress, self.together = device, progress, together
        self.stats = scan(source, progress)
        self.sha256 = self.stats.sha256
        self.classes = None if source.labels is None else len(np.unique(source.labels))

    def fit(self, budget: int | None, max_mse: float | None, seed: int, checkpoint: Checkpoint) -> Any:
        context = FitContext(
            stats=self.stats, budget=budget, max_mse=max_mse, device=self.device, seed=seed, progress=self.progress,
            checkpoint=checkpoint, task_model=self.task_model, decoder=self.decoder, together=self.together,
        )  # fmt: skip
        return self.codec.fit(self.source, context)

    def write_columns(self, sink: Sink) -> None:
        if self.codec.kind is Kind.EXEMPLAR and sink.kept is None:
            return
        for name, values in (("labels", self.source.labels), ("task", self.source.task)):
            if values is not None:
                sink.container.write(name, [pack_column(values if sink.kept is None else values[sink.kept])])
        if sink.kept is not None:
            sink.container.write("ids", [pack_column(sink.kept)])

    def measure(self, sink: Sink) -> Quality:
        labels = self.source.labels
        if labels is not None and sink.kept is not None:
            labels = labels[sink.kept]
        context = OpenContext(spec=self.source.spec, kept=self._kept(sink), labels=labels, device=self.device)
        return measure(self.source, self.codec.open(sink, context).decode, self.stats, sink.kept, self.progress)

    def placeholder_quality(self) -> Quality:
        digits = long_figures(10 + (self.classes or 0))
        return Quality(
            mse=next(digits), mse_normalised=next(digits), nmse=next(digits), psnr=next(digits),
            max_abs=next(digits), cosine=next(digits), variance_kept=next(digits), discriminator=next(digits),
            coverage_mse=next(digits) if self.codec.kind is Kind.EXEMPLAR else None,
            per_class=tuple(round_figure(next(digits)) for _ in range(self.classes or 0)),
        )  # fmt: skip

    def header(self, config: Mapping[str, Any], quality: AnyQuality, sink: Sink) -> Header:
        assert isinstance(quality, Quality)
        spec = self.source.spec
        return Header(
            krs_version=FORMAT_VERSION,
            min_reader=FORMAT_VERSION,
            flags=0,
            kind="exemplar" if self.codec.kind is Kind.EXEMPLAR else "dense",
            codec=self.codec.name,
            config=dict(config),
            source=SourceInfo(
                samples=spec.samples, shape=spec.shape, dtype=spec.dtype, channel_axis=spec.channel_axis,
                bytes=spec.bytes, sha256=self.sha256, features_key=spec.features_key,
                labels_key=spec.labels_key, attributes=dict(spec.attributes),
            ),
            kept=self._kept(sink),
            classes=self.classes,
            quality=quality,
            members=sink.members(),
        )  # fmt: skip

    def _kept(self, sink: Sink) -> int:
        return self.source.spec.samples if sink.kept is None else len(sink.kept)


class Snapshots(Subject):
    """A network's states and a codec of such.

    Raises:
        ArchiveError: there are none, or one has a value that cannot be encoded.
    """

    def __init__(self, codec: SnapshotCodec[Any, Any], source: SnapshotSource, device: str, progress: Progress) -> None:
        self.codec: SnapshotCodec[Any, Any] = codec
        self.source, self.device, self.progress = source, device, progress
        self.stats = scan_snapshots(source, progress)
        self.sha256 = self.stats.sha256

    def fit(self, budget: int | None, max_mse: float | None, seed: int, checkpoint: Checkpoint) -> Any:
        context = SnapshotFitContext(
            stats=self.stats, budget=budget, max_mse=max_mse, device=self.device, seed=seed, progress=self.progress,
            checkpoint=checkpoint,
        )  # fmt: skip
        return self.codec.fit(self.source, context)

    def write_columns(self, sink: Sink) -> None:
        if sink.kept is not None:
            raise KrstoreError(f"codec {self.codec.name} keeps samples; a snapshot codec has none")

    def measure(self, sink: Sink) -> SnapshotQuality:
        decoder = self.codec.open(sink, SnapshotOpenContext(spec=self.source.spec, device=self.device))
        return measure_snapshots(self.source, decoder.network, self.stats, self.progress)

    def placeholder_quality(self) -> SnapshotQuality:
        steps = len(self.source.spec.steps)
        digits = long_figures(3 + steps)
        return SnapshotQuality(
            mse=next(digits), nmse=next(digits), max_abs=next(digits),
            per_step=tuple(round_figure(next(digits)) for _ in range(steps)),
        )  # fmt: skip

    def header(self, config: Mapping[str, Any], quality: AnyQuality, sink: Sink) -> SnapshotHeader:
        assert isinstance(quality, SnapshotQuality)
        spec = self.source.spec
        return SnapshotHeader(
            krs_version=FORMAT_VERSION,
            min_reader=FORMAT_VERSION,
            flags=0,
            kind="snapshot",
            codec=self.codec.name,
            config=dict(config),
            source=SnapshotInfo(
                steps=tuple(dict(step) for step in spec.steps), bytes=spec.bytes, sha256=self.sha256,
                attributes=dict(spec.attributes),
            ),
            quality=quality,
            members=sink.members(),
        )  # fmt: skip


def long_figures(count: int) -> Iterator[float]:
    """Return floats whose decimal forms are as long as any."""
    return iter(np.random.default_rng(0).uniform(1e-7, 1e-6, count).tolist())
