"""Error against bytes: krstore's codecs and what people compress features with otherwise, on one archive.

Every method gets the same array and the same byte budgets. krstore's bytes are those of the finished file; a peer's are
those that its decoder needs, without a container. NMSE is measured on what was decoded, in float64. With `images.npz`
and `weights.safetensors` beside `features.h5` in the folder `--data`, WebP of the images is a method too.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
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
    """Encode the archive by every method at every ratio; rows of an earlier run on the same archive are kept."""
    source = run.source()
    features, facts = source.read(np.arange(source.spec.samples)), archive_facts(source)
    same = run.earlier.get("archive") == facts
    done = {(row["name"], row["asked"], row["bits"]): row for row in (run.earlier["rows"] if same else [])}
    rows = []
    for name, ratio, bits, method in _methods(run, source, features):
        row = done.get((name, ratio, bits))
        if row is None:
            began = time.perf_counter()
            encoded = method()
            if encoded is None:
                continue
            row = {"name": name, "asked": ratio, "bits": bits} | _measured(features, encoded, began)
        rows.append(row)
        print(f"{name:18} {ratio or '-':>4} {row['ratio']:7.1f} {row['nmse']:.5f}", file=sys.stderr)
    return {"archive": facts, "ratios": list(RATIOS), "rows": rows}


Method = Callable[[], Encoded | None]


def _methods(run: Run, source: Source, features: Array) -> Iterator[tuple[str, int | None, int | None, Method]]:
    for ratio in RATIOS[:1] if run.tiny else RATIOS:
        budget = features.nbytes // ratio
        for name, (codec, options) in CODECS.items():
            if run.tiny and codec == "transform":
                options = {"settings": {"iterations": 2}}
            yield name, ratio, None, functools.partial(_store, run, source, codec, ratio, options)
        for name, peer in PEERS.items():
            yield name, ratio, None, functools.partial(peer, features, budget)
        if run.data is not None and (run.data / "images.npz").exists():
            yield "WebP, recomputed", ratio, None, functools.partial(webp, source, run.folder, run.data, budget)
    for bits in BITS:
        yield "integers + zstd", None, bits, functools.partial(integers, features, bits)


def _store(run: Run, source: Source, codec: str, ratio: int, options: dict[str, Any]) -> Encoded | None:
    try:
        store = krstore.encode(source, run.folder / "x.krs", codec, ratio=ratio, force=True, **options)
    except TargetUnreachableError:
        return None
    names = ("channels", "width", "iterations") if codec == "transform" else ("subvectors", "bits")
    setting = ", ".join(f"{name} {store.config[name]}" for name in names)
    return Encoded(store.bytes.file, setting, lambda: store.read(slice(None)))


def _measured(features: Array, encoded: Encoded, began: float) -> dict[str, Any]:
    encode, began = time.perf_counter() - began, time.perf_counter()
    decoded = encoded.decode()
    decode = time.perf_counter() - began
    errors = float(np.square(features.astype(np.float64) - decoded.astype(np.float64)).mean())
    return {
        "setting": encoded.setting, "bytes": encoded.bytes, "ratio": features.nbytes / encoded.bytes,
        "nmse": errors / float(features.var(dtype=np.float64)), "encode": encode, "decode": decode,
    }  # fmt: skip


if __name__ == "__main__":
    main("frontier", __doc__, measure)
