"""Proving a store intact: its checksums, its decoding, and its quality against the archive it was encoded from."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np

from krstore.archives import open_archive, open_snapshots
from krstore.errors import ArchiveError, CorruptStoreError
from krstore.progress import SILENT, Progress
from krstore.snapshots import SnapshotSource, SnapshotSpec, scan_snapshots
from krstore.source import CHUNK_BYTES, Source, SourceSpec, SourceStats, scan
from krstore.store.header import Quality, SnapshotQuality
from krstore.store.opening import open_store
from krstore.store.quality import measure, measure_snapshots
from krstore.store.reader import Store
from krstore.store.snapshots import SnapshotStore

__all__ = ["TOLERANCE", "VerifyReport", "open_encoded", "verify"]

TOLERANCE = 1e-6
LOOSE = {"discriminator": 0.1}  # a classifier counts whole samples, and the last digit of a feature may turn one

AnySource = Source | SnapshotSource


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `verify` found; damage is an exception, not a report.

    Attributes:
        path: the store.
        kind: ``dense``, ``exemplar`` or ``snapshot``.
        members: the bytes of each member whose checksum was compared.
        decoded: how many samples, or states, were decoded.
        quality: as measured again, where an archive was given.
        differences: by name, (in the header, measured again) of each figure of the quality that differs by more
            than `TOLERANCE`, relative (`LOOSE` for some).
    """

    path: str
    kind: str
    members: dict[str, int]
    decoded: int = 0
    quality: Quality | SnapshotQuality | None = None
    differences: dict[str, tuple[float | None, float | None]] = {}

    @property
    def ok(self) -> bool:
        """Whether the quality, as far as it was measured again, is the one the header states."""
        return not self.differences


def verify(
    path: str | Path,
    *,
    decode: bool = False,
    against: AnySource | str | Path | None = None,
    trust: bool = False,
    device: str = "auto",
    progress: Progress = SILENT,
) -> VerifyReport:
    """Check a store's structure and every checksum, and on request what it decodes to.

    Args:
        path: the store.
        decode: decode every sample or state, and check shape, element type and that all values are finite.
        against: the archive that was encoded: check that it is (by its SHA-256 and labels), and measure the quality
            again, but not by class where an archive comes without labels. For a network's states, their archive.
        trust: let `against` read other files; see `krstore.archives.open_archive`.
        device: where neural codecs decode.
        progress: shown how it goes.

    Raises:
        CorruptStoreError: names the first damage found.
        ArchiveError: `against` cannot be read, or is not what was encoded.
    """
    with open_store(path, device=device) as store:
        kind, members = store.header.kind, store.check()
        if against is None:
            if decode:
                _decode_all(store, progress)
            return VerifyReport(path=str(path), kind=kind, members=members, decoded=len(store) if decode else 0)
        quality: Quality | SnapshotQuality
        if isinstance(store, SnapshotStore):
            quality = _measure_states(store, against, trust, progress)
        else:
            source, stats = _same_source(store, against, trust, progress)
            kept = store.ids if "ids" in store.header.members else None
            quality = measure(source, store.decode, stats, kept, progress)
        differences = _differences(store.quality, quality)
    return VerifyReport(
        path=str(path), kind=kind, members=members, decoded=len(store), quality=quality, differences=differences
    )


def open_encoded(store: Store, path: str | Path, *, trust: bool = False) -> Source:
    """Open the archive that a store was encoded from, by the names that its arrays had."""
    labels_key = None if store.labels is None or Path(path).suffix == ".npy" else store.source.labels_key
    return open_archive(path, features_key=store.source.features_key, labels_key=labels_key, trust=trust)


def _decode_all(store: Store | SnapshotStore, progress: Progress) -> None:
    if isinstance(store, SnapshotStore):
        _decode_states(store, progress)
    else:
        _decode_samples(store, progress)


def _decode_samples(store: Store, progress: Progress) -> None:
    spec = store.source
    step = max(1, CHUNK_BYTES // max(1, spec.sample_bytes))
    with progress.task("decode", len(store)) as task:
        for start in range(0, len(store), step):
            rows = np.arange(start, min(start + step, len(store)))
            values = store.decode(rows)
            if values.shape != (len(rows), *spec.shape) or values.dtype.name != spec.dtype:
                raise CorruptStoreError(
                    f"{store.path}: samples decode to shape {values.shape[1:]} and type {values.dtype}; "
                    f"expected {spec.shape} and {spec.dtype}"
                )
            finite = np.isfinite(values.reshape(len(rows), -1).astype(np.float64)).all(axis=1)
            if not finite.all():
                raise CorruptStoreError(
                    f"{store.path}: sample {store.ids[rows[~finite][0]]} decodes to NaN or infinity"
                )
            task.advance(len(rows))


def _decode_states(store: SnapshotStore, progress: Progress) -> None:
    with progress.task("decode", len(store), "steps") as task:
        for step in range(len(store)):
            for name, array in store.state(step).items():
                if not np.isfinite(array.astype(np.float64)).all():
                    raise CorruptStoreError(f"{store.path}: step {step}: {name!r} decodes to NaN or infinity")
            task.advance(1)


def _measure_states(
    store: SnapshotStore, against: AnySource | str | Path, trust: bool, progress: Progress
) -> SnapshotQuality:
    """Open and scan the archive, make sure that it is the one that was encoded, and measure again."""
    source = open_snapshots(against, trust=trust) if isinstance(against, str | Path) else against
    if not isinstance(source.spec, SnapshotSpec):
        raise ArchiveError(f"the archive holds samples; {store.path} was encoded from a network's states")
    if source.spec.steps != store.spec.steps:
        raise ArchiveError(
            f"the archive's {len(source.spec.steps)} steps have other arrays than the {len(store)} that {store.path} "
            "was encoded from"
        )
    stats = scan_snapshots(source, progress)
    _check_hash(store, stats.sha256, "arrays")
    return measure_snapshots(source, store.state, stats, progress)


def _check_hash(store: Store | SnapshotStore, sha256: str, what: str) -> None:
    if sha256 != store.header.source.sha256:
        raise ArchiveError(
            f"the archive is not what {store.path} was encoded from: its {what} have SHA-256 {sha256}; the header says "
            f"{store.header.source.sha256}"
        )


def _same_source(
    store: Store, against: AnySource | str | Path, trust: bool, progress: Progress
) -> tuple[Source, SourceStats]:
    """Open and scan the archive, and make sure that it is the one that was encoded."""
    spec = store.source
    if isinstance(against, str | Path):
        against = open_encoded(store, against, trust=trust)
    if not isinstance(against.spec, SourceSpec):
        raise ArchiveError(f"the archive holds a network's states; {store.path} was encoded from samples")
    own = against.spec
    if (own.samples, own.shape, own.dtype) != (spec.samples, spec.shape, spec.dtype):
        raise ArchiveError(
            f"the archive has {own.samples} samples of {own.shape} {own.dtype}; {store.path} was encoded from "
            f"{spec.samples} of {spec.shape} {spec.dtype}"
        )
    stats = scan(against, progress)
    _check_hash(store, stats.sha256, "features")
    if store.labels is None:
        return against, stats
    if against.labels is None and "ids" in store.header.members:
        raise ArchiveError(f"the archive has no labels, by which the coverage of {store.path} was measured")
    if against.labels is not None and not np.array_equal(against.labels[store.ids], store.labels):
        raise ArchiveError(f"the archive's labels are not those of {store.path}")
    return against, stats


def _differences(stated: msgspec.Struct, measured: msgspec.Struct) -> dict[str, tuple[float | None, float | None]]:
    old, new = _figures(stated), _figures(measured)
    found: dict[str, tuple[float | None, float | None]] = {}
    for name in old.keys() & new.keys():
        a, b = old[name], new[name]
        if a != b and (a is None or b is None or not math.isclose(a, b, rel_tol=LOOSE.get(name, TOLERANCE))):
            found[name] = (a, b)
    return dict(sorted(found.items()))


def _figures(quality: msgspec.Struct) -> dict[str, float | None]:
    """Return the figures of a quality by name, those of classes or steps as ``name[0]``, ``name[1]``, ..."""
    figures: dict[str, float | None] = {}
    for name, value in msgspec.structs.asdict(quality).items():
        figures.update({f"{name}[{i}]": v for i, v in enumerate(value)} if isinstance(value, tuple) else {name: value})
    return figures
