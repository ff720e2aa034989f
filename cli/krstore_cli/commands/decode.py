"""krstore decode: a store's samples as an archive again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from krstore.errors import UsageError
from krstore_cli import output
from krstore_cli.options import Device, Force, Json, Output, Quiet, Verbose, option, parse_classes, parse_ids
from krstore_cli.show import shape_text, size_text

if TYPE_CHECKING:
    from krstore.progress import Progress
    from krstore.store.reader import Store
    from krstore.store.snapshots import SnapshotStore

__all__ = ["EXAMPLE", "decode"]

EXAMPLE = "Example: krstore decode features.krnet.krs -o subset.h5 --ids 0:100,500 --classes 3,7"


def decode(
    store: Annotated[Path, typer.Argument(help="The .krs file.", show_default=False)],
    output_path: Output = None,
    ids: Annotated[
        str | None, option("--ids", metavar="IDS", help="Only these source IDs: IDs and ranges, as 0:100,500.")
    ] = None,
    classes: Annotated[
        str | None, option("--classes", metavar="LABELS", help="Only samples with these labels, as 3,7.")
    ] = None,
    device: Device = "auto",
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Decode a store, or a part, into an archive.

    It has the source's shape, element type and keys; its dataset "ids" says which samples of the source they are.
    Without -o it is written beside the store, as NAME.decoded.h5; .npz and .safetensors are written too. A store of a
    network's states becomes a snapshot archive again.
    """
    out = output.begin(json, quiet, verbose)
    from krstore.store.opening import open_store
    from krstore.store.snapshots import SnapshotStore

    began = time.monotonic()
    with open_store(store, device=device) as opened:
        if isinstance(opened, SnapshotStore):
            facts, what = _states(opened, output_path, ids or classes, force, out.progress())
        else:
            facts, what = _samples(opened, output_path, ids, classes, force, out.progress())
    facts |= {"store": str(store), "bytes": Path(facts["path"]).stat().st_size, "seconds": time.monotonic() - began}
    out.result(facts, f"{facts['path']}: {what}, {size_text(facts['bytes'])}, {facts['seconds']:.1f} s")


def _samples(
    store: Store, path: Path | None, ids: str | None, classes: str | None, force: bool, progress: Progress
) -> tuple[dict[str, Any], str]:
    from krstore.archives import open_archive
    from krstore.store.export import decode as decode_samples

    path = decode_samples(
        store,
        path,
        ids=None if ids is None else parse_ids(ids, store.source.samples, len(store)),
        classes=None if classes is None else parse_classes(classes),
        force=force,
        progress=progress,
    )
    keys = {"features": store.source.features_key, "ids": "ids"}
    if store.labels is not None:
        keys["labels"] = store.source.labels_key
    spec = open_archive(path, features_key=keys["features"]).spec
    facts = {
        "path": str(path), "samples": spec.samples, "shape": list(spec.shape), "dtype": spec.dtype, "keys": keys,
    }  # fmt: skip
    return facts, f"{spec.samples:,} samples of {shape_text(spec.shape)} {spec.dtype}"


def _states(
    store: SnapshotStore, path: Path | None, part: str | None, force: bool, progress: Progress
) -> tuple[dict[str, Any], str]:
    from krstore.store.export import decode_snapshots

    if part is not None:
        raise UsageError(f"{store.path} holds a network's states; --ids and --classes choose samples")
    path = decode_snapshots(store, path, force=force, progress=progress)
    return {"path": str(path), "steps": len(store)}, f"a network's states after {len(store)} steps"
