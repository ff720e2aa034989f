"""raw against the lossless compressors that HDF5 users have: size, and seconds to write and to read everything.

Every one gets the same array. The HDF5 files hold the features alone; the store also holds labels, checksums and its
header. Each reading opens its file anew; all of them take turns.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

import krstore
from benchmarks._common import Run, archive_facts, main, medians, timed
from krstore.source import Array, Source
from krstore.testing import example_source

REPEATS = 5
SAMPLES_A_CHUNK = 16

FILTERS: dict[str, dict[str, Any]] = {
    "gzip 4": {"compression": "gzip", "compression_opts": 4},
    "gzip 4, shuffle": {"compression": "gzip", "compression_opts": 4, "shuffle": True},
    "gzip 9": {"compression": "gzip", "compression_opts": 9},
    "gzip 9, shuffle": {"compression": "gzip", "compression_opts": 9, "shuffle": True},
    "zstd 3": {"compression": hdf5plugin.Zstd(clevel=3)},
    "zstd 3, shuffle": {"compression": hdf5plugin.Zstd(clevel=3), "shuffle": True},
    "zstd 19": {"compression": hdf5plugin.Zstd(clevel=19)},
    "zstd 19, shuffle": {"compression": hdf5plugin.Zstd(clevel=19), "shuffle": True},
    "blosc2 zstd 9, shuffle": {
        "compression": hdf5plugin.Blosc2(cname="zstd", clevel=9, filters=hdf5plugin.Blosc2.SHUFFLE)
    },
    "blosc2 zstd 9, bitshuffle": {
        "compression": hdf5plugin.Blosc2(cname="zstd", clevel=9, filters=hdf5plugin.Blosc2.BITSHUFFLE)
    },
    "blosc2 lz4 9, shuffle": {
        "compression": hdf5plugin.Blosc2(cname="lz4", clevel=9, filters=hdf5plugin.Blosc2.SHUFFLE)
    },
    "blosc2 lz4 9, bitshuffle": {
        "compression": hdf5plugin.Blosc2(cname="lz4", clevel=9, filters=hdf5plugin.Blosc2.BITSHUFFLE)
    },
    "bitshuffle zstd": {"compression": hdf5plugin.Bitshuffle(cname="zstd")},
    "bitshuffle lz4": {"compression": hdf5plugin.Bitshuffle(cname="lz4")},
}


def measure(run: Run) -> dict[str, Any]:
    """Write and read the archive with raw and with every filter, in default chunks and in chunks of whole samples."""
    source = run.source()
    features = source.read(np.arange(source.spec.samples))
    chunkings: dict[str, Any] = {"default": True, "samples": (min(SAMPLES_A_CHUNK, len(features)), *features.shape[1:])}
    krstore.encode(example_source(), run.folder / "warm.krs", "raw")
    rows = [_raw(source, run.folder)]
    readers: dict[str, Callable[[], Array]] = {"raw": lambda: krstore.open(run.folder / "raw.krs").read(slice(None))}
    for name, options in FILTERS.items():
        for chunking, chunks in chunkings.items():
            row, path = _hdf5(features, run.folder / f"{len(rows)}.h5", chunks, options)
            rows.append({"name": name, "chunks": chunking, **row})
            readers[f"{name} {chunking}"] = lambda path=path: _read_hdf5(path)  # type: ignore[misc]
    for name, reader in readers.items():
        if not np.array_equal(reader(), features):
            raise AssertionError(f"{name} is not lossless")
    repeats = 1 if run.tiny else REPEATS
    for row, times in zip(rows, medians(readers, repeats).values(), strict=True):
        row |= {"ratio": features.nbytes / row["bytes"], "decode": times.wall, "decode_cpu": times.cpu}
    return {"archive": archive_facts(source), "repeats": repeats, "rows": rows}


def _raw(source: Source, folder: Path) -> dict[str, Any]:
    path = folder / "raw.krs"
    times = timed(lambda: krstore.encode(source, path, "raw"))
    return {"name": "raw", "chunks": None, "bytes": path.stat().st_size, "encode": times.wall, "encode_cpu": times.cpu}


def _hdf5(features: Array, path: Path, chunks: Any, options: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    def write() -> None:
        with h5py.File(path, "w") as file:
            file.create_dataset("features", data=features, chunks=chunks, **options)

    times = timed(write)
    return {"bytes": path.stat().st_size, "encode": times.wall, "encode_cpu": times.cpu}, path


def _read_hdf5(path: Path) -> Array:
    with h5py.File(path) as file:
        return np.asarray(file["features"][:])


if __name__ == "__main__":
    main("lossless", __doc__, measure)
