"""Error against bytes: krstore's codecs and what people compress features with otherwise, on one archive.

Every method gets the same array and the same byte budgets. krstore's bytes are those of the finished file; a peer's are
those that its decoder needs, without a container. NMSE is measured on what was decoded, in float64. With `images.npz`
and `weights.safetensors` beside `features.h5` in the folder `--data`, compressed images are methods too.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks._common import Run, archive_facts, main
from benchmarks.case import Case, Encoded, nmse
from benchmarks.methods import CODECS, IMAGES, PEERS
from benchmarks.peers import integers
from krstore.source import Array

RATIOS = (20, 50, 100, 180)
BITS = (8, 6, 4, 3, 2)
METHODS = {name: method for name, method in CODECS.items() if name not in ("autoencoder", "krnet")} | PEERS | IMAGES


def measure(run: Run) -> dict[str, Any]:
    """Encode the archive by every method at every ratio; rows of an earlier run on the same archive are kept."""
    source = run.source()
    case, facts = Case(run, source, source.read(np.arange(source.spec.samples))), archive_facts(source)
    same = run.earlier.get("archive") == facts
    done = {(row["name"], row["asked"], row["bits"]): row for row in (run.earlier["rows"] if same else [])}
    rows = []
    for name, ratio, bits, method in _methods(case):
        row = done.pop((name, ratio, bits), None)
        if row is None:
            began = time.perf_counter()
            encoded = method()
            if encoded is None:
                continue
            row = {"name": name, "asked": ratio, "bits": bits} | _measured(case.features, encoded, began)
        rows.append(row)
        print(f"{name:18} {ratio or '-':>4} {row['ratio']:7.1f} {row['nmse']:.5f}", file=sys.stderr)
        run.save({"archive": facts, "rows": [*rows, *done.values()]})
    return {"archive": facts, "rows": [*rows, *done.values()]}


def _methods(case: Case) -> Iterator[tuple[str, int | None, int | None, Callable[[], Encoded | None]]]:
    for ratio in RATIOS[:1] if case.run.tiny else case.run.ratios or RATIOS:
        for name, method in METHODS.items():
            yield name, ratio, None, functools.partial(method, case, ratio)
    for bits in BITS:
        yield "integers + zstd", None, bits, functools.partial(integers, case.features, bits)


def _measured(features: Array, encoded: Encoded, began: float) -> dict[str, Any]:
    encode, began = time.perf_counter() - began, time.perf_counter()
    decoded = encoded.decode()
    decode = time.perf_counter() - began
    return {
        "setting": encoded.setting, "bytes": encoded.bytes, "ratio": features.nbytes / encoded.bytes,
        "nmse": nmse(features, decoded), "encode": encode, "decode": decode,
    }  # fmt: skip


if __name__ == "__main__":
    main("frontier", __doc__, measure)
