"""Comparing codecs: one archive through every codec at every ratio, into a folder of stores with a table of results."""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from krstore.archives import open_archive
from krstore.comparison_folder import Cell, Comparison, ComparisonFolder, Row
from krstore.config import build_config
from krstore.errors import TargetUnreachableError, UsageError
from krstore.files import check_target
from krstore.plots import require_matplotlib
from krstore.progress import SILENT, Progress
from krstore.registry import get_sample_codec
from krstore.source import Source, scan
from krstore.store.reader import Store, StoreSource
from krstore.store.summary import summarise
from krstore.store.writer import check_seed, encode

__all__ = ["compare"]


def compare(
    source: Source | str | Path,
    folder: str | Path,
    codecs: Sequence[str],
    ratios: Sequence[float] = (10, 20, 40),
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    device: str = "auto",
    seed: int = 0,
    force: bool = False,
    progress: Progress = SILENT,
) -> Comparison:
    """Encode a source with every codec at every ratio, and measure sizes, quality and times.

    Args:
        source: an archive's path, or any `Source`.
        folder: where everything goes; created when it is missing.
        codecs: names of registered codecs; lossless ones are encoded once.
        ratios: bytes of the samples over bytes of the file, at least.
        settings: options by codec's name.
        device: where to compute.
        seed: of everything random.
        force: encode again what the folder has already, and replace a comparison of something else.
        progress: shown how it goes.

    Returns:
        All that the folder holds now, results of earlier runs included.

    Raises:
        UsageError: an unknown codec or option, a ratio that is not positive, a seed out of range, settings of a
            codec not compared, or a source that is one of the stores to be made.
        ArchiveError: the source cannot be read, or holds values that cannot be encoded.
        OutputError: the folder holds a comparison of other data or options, or a file that is not of this one.
        MissingExtraError: matplotlib, or what a codec needs, is not installed.
    """
    from krstore.tensors import resolve_device

    require_matplotlib()
    check_seed(seed)
    folder = Path(folder)
    cells = _cells(codecs, ratios, settings or {})
    source = source if not isinstance(source, str | Path) else open_archive(source)
    for cell in cells:
        get_sample_codec(cell.codec)(cell.config).validate(source.spec)
    device = resolve_device(device)
    if isinstance(source, StoreSource):
        for path in (folder / cell.name for cell in cells if (folder / cell.name).exists()):
            check_target(path, force=True, inputs=[source.path])
    state = ComparisonFolder(folder, _identify(source, progress), _setup(device, seed), force)
    todo = state.plan(cells)
    with progress.task("compare", len(cells), "stores") as task:
        task.advance(len(cells) - len(todo))
        for cell in todo:
            state.add(_run(cell, source, folder, device, seed, progress))
            task.advance()
    return state.finish()


def _cells(codecs: Sequence[str], ratios: Sequence[float], settings: Mapping[str, Mapping[str, Any]]) -> list[Cell]:
    if not codecs:
        raise UsageError("no codec to compare; name at least one")
    bad = [ratio for ratio in ratios if not 0 < ratio < float("inf")]
    if bad:
        raise UsageError(f"ratio {bad[0]} is not a positive number")
    strangers = sorted(set(settings) - set(codecs))
    if strangers:
        raise UsageError(f"settings of codec {strangers[0]!r}, which is not compared; compared: {', '.join(codecs)}")
    cells = []
    for name in dict.fromkeys(codecs):
        codec = get_sample_codec(name)
        config = build_config(name, codec.Config, codec.presets, settings=settings.get(name))
        if not codec.lossless and not ratios:
            raise UsageError(f"codec {name} is lossy and needs at least one ratio")
        targets: list[float | None] = [None] if codec.lossless else [float(r) for r in dict.fromkeys(ratios)]
        cells += [Cell(name, config, ratio) for ratio in targets]
    return cells


def _identify(source: Source, progress: Progress) -> Row:
    spec, labels = source.spec, source.labels
    return {
        "sha256": scan(source, progress).sha256,
        "labels_sha256": None if labels is None else hashlib.sha256(np.asarray(labels, "<i8").tobytes()).hexdigest(),
        "samples": spec.samples,
        "shape": list(spec.shape),
        "dtype": spec.dtype,
        "bytes": spec.bytes,
        "attributes": dict(spec.attributes),
    }


def _setup(device: str, seed: int) -> Row:
    return {
        "krstore_version": version("krstore"),
        "torch_version": version("torch"),
        "device": device,
        "cpus": os.cpu_count(),
        "seed": seed,
    }


def _run(cell: Cell, source: Source, folder: Path, device: str, seed: int, progress: Progress) -> Row:
    began = time.perf_counter()
    try:
        store = encode(
            source, folder / cell.name, cell.codec, ratio=cell.ratio, settings=msgspec.structs.asdict(cell.config),
            device=device, seed=seed, force=True, progress=progress,
        )  # fmt: skip
    except TargetUnreachableError as error:
        (folder / cell.name).unlink(missing_ok=True)  # an earlier store of this name is not what the row says
        return {**cell.identity, "seconds": time.perf_counter() - began, "error": str(error)}
    seconds = time.perf_counter() - began
    with store:
        facts = {**summarise(store), "path": cell.name}
        times = {"seconds": seconds, "decode_seconds": _decode_seconds(store)}
    return {**cell.identity, **facts, **times, "error": None}


def _decode_seconds(store: Store, chunk_bytes: int = 16 << 20) -> float:
    """Return how long decoding all samples in order takes: the median of three passes, or one when it is long."""
    step = max(1, chunk_bytes // store.source.sample_bytes)
    seconds: list[float] = []
    while len(seconds) < 3 and sum(seconds) < 5:
        began = time.perf_counter()
        for start in range(0, len(store), step):
            store.decode(np.arange(start, min(start + step, len(store))))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
