"""krstore decode: a store's samples as an archive again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from krstore_cli import output
from krstore_cli.options import Device, Force, Json, Output, Quiet, Verbose, option, parse_classes, parse_ids
from krstore_cli.show import shape_text, size_text

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
    Without -o it is written beside the store, as NAME.decoded.h5; .npz and .safetensors are written too.
    """
    out = output.begin(json, quiet, verbose)
    from krstore.archives import open_archive
    from krstore.store.export import decode as decode_store
    from krstore.store.reader import Store

    began = time.monotonic()
    with Store(store, device=device) as opened:
        path = decode_store(
            opened,
            output_path,
            ids=None if ids is None else parse_ids(ids, opened.source.samples),
            classes=None if classes is None else parse_classes(classes),
            force=force,
            progress=out.progress(),
        )
        keys = {"features": opened.source.features_key, "ids": "ids"}
        if opened.labels is not None:
            keys["labels"] = opened.source.labels_key
    spec = open_archive(path, features_key=keys["features"]).spec
    facts = {
        "path": str(path),
        "store": str(store),
        "samples": spec.samples,
        "shape": list(spec.shape),
        "dtype": spec.dtype,
        "keys": keys,
        "bytes": path.stat().st_size,
        "seconds": time.monotonic() - began,
    }
    what = f"{spec.samples:,} samples of {shape_text(spec.shape)} {spec.dtype}"
    out.result(facts, f"{path}: {what}, {size_text(path.stat().st_size)}, {facts['seconds']:.1f} s")
