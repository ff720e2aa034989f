"""Decoding stores into archives again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from krstore.archives import write_archive
from krstore.errors import UsageError
from krstore.files import check_target
from krstore.progress import SILENT, Progress
from krstore.source import CHUNK_BYTES, Ids
from krstore.store.reader import Store
from krstore.store.snapshots import SnapshotStore

__all__ = ["decode", "decode_snapshots", "default_archive"]

ID_COLUMNS = ("ids", "source_ids", "krstore_ids")


def default_archive(store: Store) -> Path:
    """Return where a decoded archive goes when no output is named: beside the store, as ``NAME.decoded.h5``.

    HDF5 has no bfloat16: such features go to ``NAME.decoded.safetensors``.
    """
    suffix = "safetensors" if store.source.dtype == "bfloat16" else "h5"
    return store.path.with_name(f"{store.path.stem}.decoded.{suffix}")


def decode(
    store: Store | str | Path,
    output: str | Path | None = None,
    *,
    ids: slice | Sequence[int] | Ids | None = None,
    classes: Iterable[int] | None = None,
    force: bool = False,
    device: str = "auto",
    progress: Progress = SILENT,
) -> Path:
    """Write samples of a store as an archive of the source's shape, element type and keys.

    Beside features and labels (and tasks) it has a column ``ids``: the source's ID of each sample. Where an array,
    or a group of them, is called so already, the column is ``source_ids``.

    Args:
        store: an open store, or its path.
        output: the archive; its suffix chooses the container (.h5, .npz, .safetensors). Default beside the store.
        ids: source IDs, in the order wanted; default all that the store holds, in its order.
        classes: only samples with these labels.
        force: replace an existing output.
        device: where neural codecs decode, when `store` is a path.
        progress: shown how it goes.

    Returns:
        the path of the archive.

    Raises:
        UsageError: an ID that the store does not hold, a class it does not know, nothing left to decode, or the store
            itself as the output.
        OutputError: the output exists or cannot be written.
        CorruptStoreError: the payload is damaged.
    """
    if not isinstance(store, Store):
        with Store(store, device=device) as opened:
            return decode(opened, output, ids=ids, classes=classes, force=force, progress=progress)
    path = default_archive(store) if output is None else Path(output)
    check_target(path, force=force, inputs=[store.path])
    rows = _rows(store, ids, classes)
    taken = {key.partition("/")[0] for key in (store.source.features_key, store.source.labels_key, "task")}
    columns = {next(name for name in ID_COLUMNS if name not in taken): store.ids[rows]}
    if store.labels is not None:
        columns[store.source.labels_key] = store.labels[rows]
    if store.task is not None:
        columns["task"] = store.task[rows]
    spec = replace(store.source, samples=len(rows))
    step = max(1, CHUNK_BYTES // max(1, spec.sample_bytes))
    with write_archive(path, spec, columns) as writer, progress.task("decode", len(rows)) as task:
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            writer.append(store.decode(part))
            task.advance(len(part))
    return path


def _rows(store: Store, ids: slice | Sequence[int] | Ids | None, classes: Iterable[int] | None) -> Ids:
    rows = np.arange(len(store)) if ids is None else store.rows(ids)
    if classes is not None:
        if store.labels is None:
            raise UsageError(f"{store.path} has no labels: it cannot be decoded by class; name --ids")
        wanted, known = np.unique(np.fromiter(classes, np.int64)), np.unique(store.labels)
        unknown = np.setdiff1d(wanted, known)
        if len(unknown):
            raise UsageError(f"{store.path} has no class {unknown[0]}; its classes are {', '.join(map(str, known))}")
        rows = rows[np.isin(store.labels[rows], wanted)]
    if not len(rows):
        raise UsageError(f"none of the {len(store):,} samples of {store.path} is asked for; nothing to decode")
    return rows


def decode_snapshots(
    store: SnapshotStore | str | Path,
    output: str | Path | None = None,
    *,
    force: bool = False,
    device: str = "auto",
    progress: Progress = SILENT,
) -> Path:
    """Write a store's states as a snapshot archive.

    Args:
        store: an open store, or its path.
        output: the archive (.h5); default beside the store, as ``NAME.decoded.h5``.
        force: replace an existing output.
        device: where to decode, when `store` is a path.
        progress: shown how it goes.

    Returns:
        the path of the archive.

    Raises:
        UsageError: the output is the store itself.
        OutputError: the output exists or cannot be written.
        CorruptStoreError: the payload is damaged.
    """
    if not isinstance(store, SnapshotStore):
        with SnapshotStore(store, device=device) as opened:
            return decode_snapshots(opened, output, force=force, progress=progress)
    from krstore.archives.snapshots import write_snapshots

    path = store.path.with_name(f"{store.path.stem}.decoded.h5") if output is None else Path(output)
    check_target(path, force=force, inputs=[store.path])
    with write_snapshots(path, store.spec) as writer, progress.task("decode", len(store), "steps") as task:
        for step in range(len(store)):
            writer.append(store.state(step))
            task.advance(1)
    return path
