"""Encoding: source in, store out, with the target honoured by the finished file."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from krstore.archives import open_archive, open_snapshots
from krstore.checkpoint import Checkpoint, Resume
from krstore.codec import AnyCodec, Codec, Kind, SharedDecoder
from krstore.config import build_config
from krstore.errors import ArchiveError, CorruptStoreError, UsageError
from krstore.files import atomic_path, check_target
from krstore.progress import SILENT, Progress
from krstore.registry import get_sample_codec, get_snapshot_codec
from krstore.snapshots import SnapshotSource
from krstore.source import Source, SourceSpec
from krstore.store.header import encode_header
from krstore.store.rate import DEFAULT_RATIO, Target, make_target, search
from krstore.store.reader import Store
from krstore.store.sink import Sink
from krstore.store.snapshots import SnapshotStore
from krstore.store.subjects import AnyQuality, Samples, Snapshots, Subject

if TYPE_CHECKING:
    import torch

__all__ = ["check_seed", "default_output", "encode", "encode_snapshots"]


def default_output(path: Path, codec: str) -> Path:
    """Return where a store goes when no output is named: beside the input, as ``NAME.CODEC.krs``.

    Raises:
        ArchiveError: the input is not a file.
    """
    if not path.is_file():
        raise ArchiveError(f"{path} is not a file")
    return path.with_name(f"{path.stem}.{codec}.krs")


def check_seed(seed: int) -> None:
    """Refuse a seed that not everything random can take.

    Raises:
        UsageError: it is not in 0..2^31 - 1.
    """
    if not 0 <= seed < 1 << 31:
        raise UsageError(f"seed={seed} is not in 0..{(1 << 31) - 1}")


def encode(
    source: Source | str | Path,
    output: str | Path | None = None,
    codec: str = "transform",
    *,
    ratio: float | None = None,
    max_bytes: int | None = None,
    max_mse: float | None = None,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    seed: int = 0,
    force: bool = False,
    resume: Resume = False,
    task_model: torch.nn.Module | None = None,
    decoder: Store | str | Path | None = None,
    together: bool = False,
    progress: Progress = SILENT,
) -> Store:
    """Encode a source into a store and open it.

    Args:
        source: an archive's path (`krstore.archives.open_archive` takes its keys), or any `Source`, as
            `krstore.ArraySource` is one of arrays and tensors.
        output: the `.krs` file; default beside the input.
        codec: a registered codec's name.
        ratio: bytes of the source samples over bytes of the file: at least this.
        max_bytes: bytes of the file: at most this.
        max_mse: mean squared error, raw units: at most this. Give one of the three; without any, a preset has the
            size it has, exemplars are as many as their codec keeps, and a lossy codec aims at a ratio of 20.
        preset: a named set of the codec's options; `settings` override single ones.
        device: where to compute.
        seed: of everything random: the same seed on the same machine gives the same bytes, but for fits on a GPU.
        force: replace an existing output.
        resume: take up the checkpoint of an interrupted encode of the same things; ``"auto"`` begins anew where there
            is one of other things, which is an error otherwise.
        task_model: a frozen network on features, for codecs that use one (KRNet's Eq. 3).
        decoder: a store of the same codec and of samples of the same kind, whose decoder is used as it is. The new
            file holds the same network, byte for byte, so that a memory of both keeps one.
        together: all processes of `torch.distributed` call this with the same arguments and share the fit: each
            computes the gradients of its part of every batch. The first writes the file.
        progress: shown how it goes.

    Raises:
        UsageError: contradictory or unknown arguments, or an output that is read as well; but a store may be encoded
            anew in its own place.
        ArchiveError: the source cannot be read or holds values that cannot be encoded.
        TargetUnreachableError: the codec cannot honour the target; no file is written.
        OutputError: the output exists or cannot be written.
    """
    codec_type = get_sample_codec(codec)
    job = _Job(source, output, codec, seed, force, decoder.path if isinstance(decoder, Store) else decoder)
    opened = open_archive(source) if isinstance(source, str | Path) else source
    if not hasattr(opened, "spec"):
        raise UsageError(
            f"a {type(source).__name__} is no source; krstore.ArraySource(features, labels) or "
            "krstore.DatasetSource(dataset) makes one"
        )
    config = build_config(codec, codec_type.Config, codec_type.presets, preset, settings)
    target = _target(codec_type, opened.spec.bytes, preset, ratio, max_bytes, max_mse)
    from krstore.distributed import barrier, processes
    from krstore.modules import weights_hash
    from krstore.tensors import resolve_device

    if together and resume and processes()[1] > 1:
        raise UsageError("resume: a fit that several processes share cannot be taken up; begin it anew")
    device = resolve_device(device)
    shared = None if decoder is None else _shared_decoder(decoder, codec_type, opened.spec)
    samples = Samples(codec_type(config), opened, task_model, shared, device, progress, together)
    others = [None if task_model is None else weights_hash(task_model), None if shared is None else shared.sha256]
    if together and processes()[0] > 0:
        job.follow(samples, target)
    else:
        job.run(samples, target, Store, resume=resume, others=others)
    if together:
        barrier()
    return Store(job.output, device=device)


def encode_snapshots(
    source: SnapshotSource | str | Path,
    output: str | Path | None = None,
    *,
    codec: str,
    ratio: float | None = None,
    max_bytes: int | None = None,
    max_mse: float | None = None,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    seed: int = 0,
    force: bool = False,
    resume: bool = False,
    progress: Progress = SILENT,
) -> SnapshotStore:
    """Encode a network's states into a store and open it.

    Args:
        source: a snapshot archive's path (see `krstore.archives.open_snapshots`), or any `SnapshotSource`.
        others: as for `encode`; ratio and error are of all arrays of all steps.

    Raises:
        as `encode`.
    """
    codec_type = get_snapshot_codec(codec)
    job = _Job(source, output, codec, seed, force)
    opened = open_snapshots(source) if isinstance(source, str | Path) else source
    config = build_config(codec, codec_type.Config, codec_type.presets, preset, settings)
    target = _target(codec_type, opened.spec.bytes, preset, ratio, max_bytes, max_mse)
    from krstore.tensors import resolve_device

    device = resolve_device(device)
    job.run(Snapshots(codec_type(config), opened, device, progress), target, SnapshotStore, resume=resume)
    return SnapshotStore(job.output, device=device)


def _shared_decoder(decoder: Store | str | Path, codec: type[Codec[Any, Any]], spec: SourceSpec) -> SharedDecoder:
    store = decoder if isinstance(decoder, Store) else Store(decoder)
    if not codec.shares_decoder:
        raise UsageError(f"codec {codec.name} cannot use another store's decoder")
    if store.codec != codec.name:
        raise UsageError(f"{store.path} is a store of codec {store.codec}; its decoder is not one of {codec.name}")
    own, other = ((s.shape, s.dtype, s.channel_axis) for s in (spec, store.source))
    if own != other:
        raise UsageError(f"{store.path} decodes samples of {other[0]} {other[1]}; these are {own[0]} {own[1]}")
    return store.shared_decoder()


def _target(
    codec: type[AnyCodec[Any, Any]],
    source_bytes: int,
    preset: str | None,
    ratio: float | None,
    max_bytes: int | None,
    max_mse: float | None,
) -> Target | None:
    target = make_target(source_bytes, ratio, max_bytes, max_mse)
    if codec.lossless and target is not None:
        raise UsageError(f"codec {codec.name} is lossless: it takes no ratio, max_bytes or max_mse")
    if target is None and preset is None and not codec.lossless and codec.kind is not Kind.EXEMPLAR:
        return make_target(source_bytes, DEFAULT_RATIO, None, None)
    return target


class _Job:
    """One encode: where it goes, and what names it."""

    def __init__(
        self, source: object, output: str | Path | None, codec: str, seed: int, force: bool,
        decoder: str | Path | None = None,
    ) -> None:  # fmt: skip
        check_seed(seed)
        path = Path(source) if isinstance(source, str | Path) else None
        if output is None:
            if path is None:
                raise UsageError("name an output: a source that is no file has no place beside it")
            output = default_output(path, codec)
        self.output, self.seed, self._force = Path(output), seed, force
        archive = None if path is None or path.suffix == ".krs" else path
        check_target(self.output, force=force, inputs=(archive, decoder))

    def run(
        self, subject: Subject, target: Target | None, opens: type[Store] | type[SnapshotStore], *, resume: Resume,
        others: Sequence[str | None] = (),
    ) -> None:  # fmt: skip
        """Encode into the output, which is put in place when it has been opened."""
        codec = subject.codec
        limits = target and [target.max_bytes, target.max_mse]
        fingerprint = msgspec.json.encode([codec.name, codec.config, subject.sha256, self.seed, limits, others])
        state = self.output.with_name(f".{self.output.name}.checkpoint")
        checkpoint = Checkpoint(state, fingerprint.decode(), resume=resume)
        with atomic_path(self.output, replace=self._force) as temporary:
            with temporary.open("r+b") as file:
                _Encoder(subject, target).write(file, self.seed, checkpoint)
            try:
                opens(temporary, device="cpu").close()
            except CorruptStoreError as error:
                raise UsageError(f"this source cannot be kept in a store: {error}") from None
        checkpoint.discard()

    def follow(self, subject: Subject, target: Target | None) -> None:
        """Do the same as another process that writes the output, for the sake of the fit that both share."""
        with tempfile.TemporaryFile() as file:
            _Encoder(subject, target).write(file, self.seed, Checkpoint(None))


class _Encoder:
    """One encode under way: fits once, packs until the target is honoured, measures, and closes the file."""

    def __init__(self, subject: Subject, target: Target | None) -> None:
        self.subject, self.codec, self.target = subject, subject.codec, target
        self.config = self.codec.config

    def write(self, file: BinaryIO, seed: int, checkpoint: Checkpoint) -> None:
        """Fit, pack and finish the store in `file`."""
        by_bytes = self.target is not None and self.target.max_bytes is not None
        self.slack = 64
        budget = self._payload_budget(file) if by_bytes else None
        max_mse = self.target.max_mse if self.target is not None else None
        fitted = self.subject.fit(budget, max_mse, seed, checkpoint)
        self.config = self.codec.settled(fitted)
        while True:
            self._pack_to_target(file, fitted)
            quality = self.quality or self.subject.measure(self.sink)
            if self._finish(quality) or not by_bytes:
                return
            self.slack *= 4

    def _pack_to_target(self, file: BinaryIO, fitted: Any) -> None:
        knob = self.codec.knob(fitted)
        self.quality: AnyQuality | None = None

        def pack(value: float) -> None:
            self.sink = Sink(file)
            self.codec.pack(fitted, value, self.sink)
            self.subject.write_columns(self.sink)
            self.quality = None

        def trial(value: float) -> float:
            pack(value)
            if self.target is not None and self.target.max_bytes is not None:
                return self._finished_bytes()
            self.quality = self.subject.measure(self.sink)
            return self.quality.mse

        if self.target is None:
            pack(knob.start if knob else 0.0)
        else:
            search(self.codec.name, knob, self.target, trial)

    def _payload_budget(self, file: BinaryIO) -> int:
        """Return what the target leaves to the payload after header, labels and directory."""
        assert self.target is not None
        self.sink = Sink(file)
        self.subject.write_columns(self.sink)
        return max(0, int(self.target.limit) - self._finished_bytes())

    def _finished_bytes(self) -> int:
        """Return at most how large the file will be."""
        return self.sink.container.finished_bytes(self._header(self.subject.placeholder_quality())) + self.slack

    def _header(self, quality: AnyQuality) -> bytes:
        return encode_header(self.subject.header(msgspec.to_builtins(self.config), quality, self.sink))

    def _finish(self, quality: AnyQuality) -> bool:
        """Write header and directory; return whether the file honours a byte target."""
        container = self.sink.container
        container.finish(self._header(quality))
        return self.target is None or self.target.max_bytes is None or container.position() <= self.target.max_bytes
