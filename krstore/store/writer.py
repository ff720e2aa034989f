"""Encoding: source in, store out, with the target honoured by the finished file."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec
import numpy as np

from krstore.archives import open_archive
from krstore.checkpoint import Checkpoint
from krstore.codec import Codec, FitContext, Kind, OpenContext
from krstore.config import build_config
from krstore.errors import KrstoreError, UsageError
from krstore.files import atomic_write, check_target
from krstore.progress import SILENT, Progress
from krstore.registry import get_codec
from krstore.source import Ids, Source, SourceStats, scan
from krstore.store.blocks import block_index
from krstore.store.columns import pack_column
from krstore.store.container_writer import ContainerWriter
from krstore.store.header import FORMAT_VERSION, Header, MemberInfo, Quality, SourceInfo, encode_header
from krstore.store.quality import measure, round_figure
from krstore.store.rate import DEFAULT_RATIO, Target, make_target, search
from krstore.store.reader import PAYLOAD, Store

if TYPE_CHECKING:
    import torch

__all__ = ["default_output", "encode"]


def default_output(path: Path, codec: str) -> Path:
    """Return where a store goes when no output is named: beside the input, as ``NAME.CODEC.krs``."""
    return path.with_name(f"{path.stem}.{codec}.krs")


def encode(
    source: Source | str | Path,
    output: str | Path | None = None,
    codec: str = "krnet",
    *,
    ratio: float | None = None,
    max_bytes: int | None = None,
    max_mse: float | None = None,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    seed: int = 0,
    force: bool = False,
    resume: bool = False,
    task_model: torch.nn.Module | None = None,
    progress: Progress = SILENT,
) -> Store:
    """Encode a source into a store and open it.

    Args:
        source: an archive's path (`krstore.archives.open_archive` takes its keys), or any `Source`.
        output: the `.krs` file; default beside the input.
        codec: a registered codec's name.
        ratio: bytes of the source samples over bytes of the file: at least this.
        max_bytes: bytes of the file: at most this.
        max_mse: mean squared error, raw units: at most this. Give one of the three; without any, a preset has the
            size it has, and a lossy codec without a preset aims at a ratio of 20.
        preset: a named set of the codec's options; `settings` override single ones.
        device: where to compute.
        seed: of everything random: the same seed on the same machine gives the same bytes.
        force: replace an existing output.
        resume: take up the checkpoint of an interrupted encode of the same things.
        task_model: a frozen network on features, for codecs that use one (KRNet's Eq. 3).
        progress: shown how it goes.

    Raises:
        UsageError: contradictory or unknown arguments.
        ArchiveError: the source cannot be read or holds values that cannot be encoded.
        TargetUnreachableError: the codec cannot honour the target; no file is written.
        OutputError: the output exists or cannot be written.
    """
    if not 0 <= seed < 1 << 31:
        raise UsageError(f"seed={seed} is not in 0..{(1 << 31) - 1}")
    if isinstance(source, str | Path):
        path = Path(source)
        output = default_output(path, codec) if output is None else output
        if path.resolve() == Path(output).resolve() and path.suffix != ".krs":
            raise UsageError(f"{path} is the archive itself; name another output")
        source = open_archive(path)
    if output is None:
        raise UsageError("name an output: a source that is no file has no place beside it")
    output = Path(output)
    check_target(output, force=force)
    from krstore.modules import weights_hash
    from krstore.tensors import resolve_device

    codec_type = get_codec(codec)
    config = build_config(codec, codec_type.Config, codec_type.presets, preset, settings)
    target = make_target(source.spec.bytes, ratio, max_bytes, max_mse)
    if codec_type.lossless and target is not None:
        raise UsageError(f"codec {codec} is lossless: it takes no ratio, max_bytes or max_mse")
    if target is None and preset is None and not codec_type.lossless:
        target = make_target(source.spec.bytes, DEFAULT_RATIO, None, None)
    instance = codec_type(config)
    instance.validate(source.spec)
    device = resolve_device(device)
    stats = scan(source, progress)
    task = None if task_model is None else weights_hash(task_model)
    fingerprint = msgspec.json.encode(
        [codec, config, stats.sha256, seed, target and [target.max_bytes, target.max_mse], task]
    )
    checkpoint = Checkpoint(output.with_name(f".{output.name}.checkpoint"), fingerprint.decode(), resume=resume)
    encoder = _Encoder(instance, source, stats, target, device, progress)
    with atomic_write(output) as file:
        encoder.write(file, seed, checkpoint, task_model)
    checkpoint.discard()
    return Store(output, device=device)


class _Sink:
    """Writes a payload into a container, keeping what an exemplar codec says it keeps."""

    def __init__(self, file: BinaryIO) -> None:
        self.container = ContainerWriter(file)
        self.kept: Ids | None = None

    def write(self, name: str, data: bytes) -> None:
        self.container.write(self._checked(name), [data])

    def write_blocks(self, name: str, block_samples: int, blocks: Iterable[bytes]) -> None:
        sizes: list[int] = []
        checksums: list[int] = []

        def counted() -> Iterable[bytes]:
            for block in blocks:
                sizes.append(len(block))
                checksums.append(zlib.crc32(block))
                yield block

        self.container.write(self._checked(name), counted())
        self.container.write(self._checked(f"{name}.index"), [block_index(block_samples, sizes, checksums)])

    def keep(self, ids: Ids) -> None:
        self.kept = np.asarray(ids, np.int64)

    def _checked(self, name: str) -> str:
        if not name.startswith(("network/", "latent/")):
            raise KrstoreError(f"payload member {name!r}: a codec's members begin with network/ or latent/")
        return PAYLOAD + name

    # what has been written is read back through these, to measure the quality of the very bytes of the file

    def names(self) -> list[str]:
        return [name.removeprefix(PAYLOAD) for name in self.container.names() if name.startswith(PAYLOAD)]

    def size(self, name: str) -> int:
        return self.container.size(PAYLOAD + name)

    def read(self, name: str) -> bytes:
        return self.container.read(PAYLOAD + name)

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        return self.container.read_at(PAYLOAD + name, offset, size)


class _Encoder:
    """One encode under way: fits once, packs until the target is honoured, measures, and closes the file."""

    def __init__(
        self, codec: Codec[Any, Any], source: Source, stats: SourceStats, target: Target | None, device: str,
        progress: Progress,
    ) -> None:  # fmt: skip
        self.codec, self.source, self.stats, self.target = codec, source, stats, target
        self.device, self.progress, self.config = device, progress, codec.config
        self.classes = None if source.labels is None else len(np.unique(source.labels))

    def write(self, file: BinaryIO, seed: int, checkpoint: Checkpoint, task_model: torch.nn.Module | None) -> None:
        """Fit, pack and finish the store in `file`."""
        by_bytes = self.target is not None and self.target.max_bytes is not None
        self.slack = 64
        budget = self._payload_budget(file) if by_bytes else None
        context = FitContext(
            stats=self.stats, budget=budget, device=self.device, seed=seed, progress=self.progress,
            checkpoint=checkpoint, task_model=task_model,
        )  # fmt: skip
        fitted = self.codec.fit(self.source, context)
        self.config = self.codec.settled(fitted)
        while True:
            self._pack_to_target(file, fitted)
            quality = self.quality or self._measure()
            if self._finish(quality) or not by_bytes:
                return
            self.slack *= 4

    def _pack_to_target(self, file: BinaryIO, fitted: Any) -> None:
        knob = self.codec.knob(fitted)
        self.quality: Quality | None = None

        def pack(value: float) -> None:
            self.sink = _Sink(file)
            self.codec.pack(fitted, value, self.sink)
            self._write_columns(self.sink)
            self.quality = None

        def trial(value: float) -> float:
            pack(value)
            if self.target is not None and self.target.max_bytes is not None:
                return self.sink.container.finished_bytes(self._header(self._placeholder_quality())) + self.slack
            self.quality = self._measure()
            return self.quality.mse

        if self.target is None:
            pack(knob.start if knob else 0.0)
        else:
            search(self.codec.name, knob, self.target, trial)

    def _payload_budget(self, file: BinaryIO) -> int:
        """Return what the target leaves to the payload after header, labels and directory."""
        assert self.target is not None
        self.sink = _Sink(file)
        if self.codec.kind is not Kind.EXEMPLAR:
            self._write_columns(self.sink)
        left = (
            int(self.target.limit)
            - self.sink.container.finished_bytes(self._header(self._placeholder_quality()))
            - self.slack
        )
        return max(0, left)

    def _write_columns(self, sink: _Sink) -> None:
        for name, values in (("labels", self.source.labels), ("task", self.source.task)):
            if values is not None:
                sink.container.write(name, [pack_column(values if sink.kept is None else values[sink.kept])])
        if sink.kept is not None:
            sink.container.write("ids", [pack_column(sink.kept)])

    def _decode(self) -> Any:
        labels = self.source.labels
        if labels is not None and self.sink.kept is not None:
            labels = labels[self.sink.kept]
        context = OpenContext(spec=self.source.spec, kept=self._kept(), labels=labels, device=self.device)
        return self.codec.open(self.sink, context).decode

    def _kept(self) -> int:
        return self.source.spec.samples if self.sink.kept is None else len(self.sink.kept)

    def _measure(self) -> Quality:
        return measure(self.source, self._decode(), self.stats, self.sink.kept, self.progress)

    def _placeholder_quality(self) -> Quality:
        """A quality whose JSON is at least as long as any real one's."""
        digits = iter(np.random.default_rng(0).uniform(1e-7, 1e-6, 8 + (self.classes or 0)).tolist())
        return Quality(
            mse=next(digits), mse_normalised=next(digits), nmse=next(digits), psnr=next(digits),
            max_abs=next(digits), cosine=next(digits),
            coverage_mse=next(digits) if self.codec.kind is Kind.EXEMPLAR else None,
            per_class=tuple(round_figure(next(digits)) for _ in range(self.classes or 0)),
        )  # fmt: skip

    def _header(self, quality: Quality) -> bytes:
        spec, container = self.source.spec, self.sink.container
        return encode_header(
            Header(
                krs_version=FORMAT_VERSION,
                min_reader=FORMAT_VERSION,
                flags=0,
                kind=str(self.codec.kind),
                codec=self.codec.name,
                config=msgspec.to_builtins(self.config),
                source=SourceInfo(
                    samples=spec.samples, shape=spec.shape, dtype=spec.dtype, channel_axis=spec.channel_axis,
                    bytes=spec.bytes, sha256=self.stats.sha256, features_key=spec.features_key,
                    labels_key=spec.labels_key, attributes=dict(spec.attributes),
                ),
                kept=self._kept(),
                classes=self.classes,
                quality=quality,
                members={name: MemberInfo(container.size(name), container.hashes[name]) for name in container.names()},
            )
        )  # fmt: skip

    def _finish(self, quality: Quality) -> bool:
        """Write header and directory; return whether the file honours a byte target."""
        container = self.sink.container
        container.finish(self._header(quality))
        return self.target is None or self.target.max_bytes is None or container.position() <= self.target.max_bytes
