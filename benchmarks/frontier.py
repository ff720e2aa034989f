"""Error against bytes: krstore's codecs and what people compress features with otherwise, on one archive.

Every method gets the same array and the same byte budgets. krstore's bytes are those of the finished file; a peer's are
those that its decoder needs, without a container. NMSE is measured on what was decoded, in float64. With `images.npz`
and `weights.safetensors` beside `features.h5` in the folder `--data`, WebP of the images is a method too.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

import krstore
from benchmarks._common import Run, archive_facts, main
from benchmarks.images import webp
from benchmarks.peers import PEERS, Encoded, integers
from krstore.errors import TargetUnreachableError
from krstore.source import Array, Source

RATIOS = (20, 50, 100, 180)
BITS = (8, 6, 4, 3, 2)
CODECS: dict[str, tuple[str, dict[str, Any]]] = {
    "transform": ("transform", {}),
    "transform, fast": ("transform", {"preset": "fast"}),
    "transform, linear": ("transform", {"preset": "linear"}),
    "PQ": ("pq", {}),
    "OPQ": ("pq", {"settings": {"opq": True}}),
}


def measure(run: Run) -> dict[str, Any]:
    """Encode the archive by every method at every ratio."""
    source = run.source()
    features = source.read(np.arange(source.spec.samples))
    rows = []
    for row in _rows(run, source, features):
        rows.append(row)
        print(f"{row['name']:18} {row['asked'] or '-':>4} {row['ratio']:7.1f} {row['nmse']:.5f}", file=sys.stderr)
    return {"archive": archive_facts(source), "ratios": list(RATIOS), "rows": rows}


def _rows(run: Run, source: Source, features: Array) -> Iterator[dict[str, Any]]:
    for ratio in RATIOS[:1] if run.tiny else RATIOS:
        for name, (codec, options) in CODECS.items():
            if run.tiny and codec == "transform":
                options = {"settings": {"iterations": 2}}
            began = time.perf_counter()
            try:
                store = krstore.encode(source, run.folder / "x.krs", codec, ratio=ratio, force=True, **options)
            except TargetUnreachableError:
                continue
            encoded = Encoded(store.bytes.file, _setting(store), lambda store=store: store.read(slice(None)))  # type: ignore[misc]
            yield _row(name, ratio, features, encoded, time.perf_counter() - began)
        for name, peer in PEERS.items():
            began = time.perf_counter()
            found = peer(features, features.nbytes // ratio)
            if found is not None:
                yield _row(name, ratio, features, found, time.perf_counter() - began)
        if run.data is not None and (run.data / "images.npz").exists():
            began = time.perf_counter()
            found = webp(source, run.folder, run.data, features.nbytes // ratio)
            if found is not None:
                yield _row("WebP, recomputed", ratio, features, found, time.perf_counter() - began)
    for bits in BITS:
        began = time.perf_counter()
        yield _row("integers + zstd", None, features, integers(features, bits), time.perf_counter() - began)


def _row(name: str, asked: int | None, features: Array, encoded: Encoded, seconds: float) -> dict[str, Any]:
    began = time.perf_counter()
    decoded = encoded.decode()
    decode = time.perf_counter() - began
    errors = float(np.square(features.astype(np.float64) - decoded.astype(np.float64)).mean())
    return {
        "name": name, "asked": asked, "setting": encoded.setting, "bytes": encoded.bytes,
        "ratio": features.nbytes / encoded.bytes, "nmse": errors / float(features.var(dtype=np.float64)),
        "encode": seconds, "decode": decode,
    }  # fmt: skip


def _setting(store: krstore.Store) -> str:
    names = ("channels", "width", "iterations") if store.codec == "transform" else ("subvectors", "bits")
    return ", ".join(f"{name} {store.config[name]}" for name in names)


if __name__ == "__main__":
    main("frontier", __doc__, measure)
