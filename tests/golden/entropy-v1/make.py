"""Write the golden entropy-coded streams beside this file; run once a version of the coding, never over old ones.

A case `NAME` has `NAME.tables` and `NAME.stream`, as `krstore.entropy` packs them, and the runs of integers that must
come out for ever as `NAME.0.npy`, `NAME.1.npy`...
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from krstore.entropy import MAX_SYMBOLS, Integers, Table, encode_runs, pack_tables

HERE = Path(__file__).parent


def cases() -> dict[str, list[Integers]]:
    """Return runs of integers by case."""
    rng = np.random.default_rng(1993)

    def rounded(scale: float, count: int, offset: int = 0) -> Integers:
        return np.rint(scale * rng.standard_t(4, count) + offset).astype(np.int32)

    return {
        "spread": [rounded(scale, 400) for scale in (0.2, 1.0, 7.5, 60.0)],
        "long": [rounded(3.0, 6000, offset=-100_000)],
        "skewed": [np.where(rng.random(5000) < 0.001, 9, 0).astype(np.int32)],
        "single": [np.full(300, -17, np.int32), rounded(2.0, 50), np.empty(0, np.int32), np.array([5], np.int32)],
        "wide": [np.array([0, MAX_SYMBOLS - 1, 0, 0, 77], np.int32), np.array([-(2**31), 1 - 2**31], np.int32)],
    }


def main() -> int:
    """Write what is not there yet."""
    if any(HERE.glob("*.stream")):
        print("golden streams are never overwritten; make a folder for a new version", file=sys.stderr)
        return 1
    for name, runs in cases().items():
        tables = [Table.of(run) for run in runs]
        (HERE / f"{name}.tables").write_bytes(pack_tables(tables))
        (HERE / f"{name}.stream").write_bytes(encode_runs(runs, tables))
        for number, run in enumerate(runs):
            np.save(HERE / f"{name}.{number}.npy", run, allow_pickle=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
