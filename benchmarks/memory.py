"""Peak memory and seconds of the commands on an archive larger than the memory they may take.

A 4 GB archive (250,000 samples of 64x8x8 float32, half exact zeros, 100 classes) is written in pieces; then each
command runs as a process of its own. krnet and the autoencoder train for a few iterations only: what counts is that
fitting, packing and measuring (which decodes everything once) hold only a part of the archive.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import krstore
from benchmarks._common import KRSTORE, Run, child, main
from krstore.source import SourceSpec

SHAPE, CLASSES = (64, 8, 8), 100
SAMPLES, SAMPLES_TINY = 250_000, 1_900
LIMIT_BYTES = 1_500_000_000
SMALL = ("--set", "iterations=5", "--set", "c0=8", "--set", "c1=8")


def measure(run: Run) -> dict[str, Any]:
    """Run every command and note its peak resident memory."""
    archive, samples = run.folder / "large.h5", SAMPLES_TINY if run.tiny else SAMPLES
    write(archive, samples)
    rows = []
    for name, arguments in commands(archive, run.folder, tiny=run.tiny).items():
        ran = child(KRSTORE, *arguments)
        shown = [Path(a).name if a.startswith(str(run.folder)) else a for a in arguments]
        rows.append(
            {
                "name": name,
                "command": f"krstore {' '.join(shown)}",
                "peak_bytes": ran.peak_bytes,
                "seconds": ran.seconds,
                "cpu_seconds": ran.cpu_seconds,
            }
        )
        (run.folder / "decoded.h5").unlink(missing_ok=True)
    spec = {"shape": [samples, *SHAPE], "dtype": "float32", "bytes": samples * 4 * int(np.prod(SHAPE))}
    return {"archive": spec, "limit_bytes": LIMIT_BYTES, "rows": rows}


def write(path: Path, samples: int) -> None:
    """Write an archive of rectified noise, piece by piece."""
    rng = np.random.default_rng(0)
    spec = SourceSpec(samples=samples, shape=SHAPE, dtype="float32", channel_axis=0)
    with krstore.write_archive(path, spec, {"labels": np.arange(samples) % CLASSES}) as writer:
        for start in range(0, samples, 2000):
            count = min(2000, samples - start)
            writer.append(np.maximum(rng.standard_normal((count, *SHAPE), np.float32), 0))


def commands(archive: Path, folder: Path, *, tiny: bool) -> dict[str, Sequence[str]]:
    """Return the commands to measure by name, in order: a decode reads what the encode before it wrote."""
    options = {
        "raw": (),
        "krnet": (*SMALL, "--ratio", "50" if tiny else "2000"),
        "transform": ("--set", "iterations=5", "--set", "width=8", "--ratio", "100"),
        "autoencoder": (*SMALL, "--ratio", "50"),
        "pq": ("--set", "bits=8", "--ratio", "20"),
    }
    found: dict[str, Sequence[str]] = {}
    for codec in ("krnet",) if tiny else options:
        chosen = options[codec]
        store = str(folder / f"{codec}.krs")
        found[f"{codec} encode"] = ("encode", str(archive), "--codec", codec, *chosen, "-o", store)
        found[f"{codec} decode"] = ("decode", store, "-o", str(folder / "decoded.h5"))
    return {name: (*arguments, "--device", "cpu") for name, arguments in found.items()}


if __name__ == "__main__":
    main("memory", __doc__, measure)
