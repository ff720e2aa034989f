"""Error, bytes, time and memory against the number of samples, at one ratio.

`--data` names a folder with folders `late_NUMBER`, as `benchmarks.archives` makes them. Each encode and decode is a
process of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import krstore
from benchmarks._common import KRSTORE, Run, child, main
from krstore.testing import example_source

RATIO = 100
PRESETS = {"transform, fast": ("--preset", "fast"), "transform, linear": ("--preset", "linear")}
TINY = {"transform": ("--set", "iterations=2")}


def measure(run: Run) -> dict[str, Any]:
    """Encode and decode archives of growing size; rows of an earlier run are kept."""
    done = {(row["name"], row["samples"]): row for row in run.earlier.get("rows", [])}
    rows: list[dict[str, Any]] = []
    for path in _archives(run):
        samples = krstore.open_archive(path).spec.samples
        for name, options in (TINY if run.tiny else PRESETS).items():
            row = done.pop((name, samples), None) or {"name": name, "samples": samples} | _measured(run, path, options)
            rows.append(row)
            print(f"{name:18} {samples:7} {row['nmse']:.5f} {row['encode']:.0f} s", file=sys.stderr)
            run.save({"ratio": RATIO, "rows": [*rows, *done.values()]})
    return {"ratio": RATIO, "rows": rows}


def _archives(run: Run) -> list[Path]:
    if run.tiny:
        source = example_source(300, (8, 8, 8))
        with krstore.write_archive(run.folder / "features.h5", source.spec, {"labels": source.labels}) as writer:
            writer.append(source.features)
        return [run.folder / "features.h5"]
    if run.data is None:
        raise SystemExit("name a folder of archives late_NUMBER with --data or KRSTORE_DATA (or try --size tiny)")
    return sorted(run.data.glob("late_*/features.h5"), key=lambda path: int(path.parent.name.partition("_")[2]))


def _measured(run: Run, path: Path, options: tuple[str, ...]) -> dict[str, Any]:
    store, decoded = run.folder / "x.krs", run.folder / "decoded.h5"
    ratio = 10 if run.tiny else RATIO
    encode = child(KRSTORE, "encode", path, "-o", store, "--ratio", ratio, *options, "--device", "cpu", "--force")
    decode = child(KRSTORE, "decode", store, "-o", decoded, "--device", "cpu", "--force")
    decoded.unlink()
    with krstore.open(store) as opened:
        return {
            "bytes": opened.bytes.file, "network": opened.bytes.network, "ratio": opened.ratio,
            "nmse": opened.quality.nmse, "width": opened.config["width"], "encode": encode.seconds,
            "encode_cpu": encode.cpu_seconds, "encode_peak": encode.peak_bytes, "decode": decode.seconds,
            "decode_peak": decode.peak_bytes,
        }  # fmt: skip


if __name__ == "__main__":
    main("scaling", __doc__, measure)
