"""What it costs to start the command line: `krstore --help` and `krstore info`, as processes."""

from __future__ import annotations

import statistics
from typing import Any

import krstore
from benchmarks._common import KRSTORE, Run, child, main
from krstore.testing import example_source

REPEATS = 10


def measure(run: Run) -> dict[str, Any]:
    """Run each command a few times, in turn."""
    store = krstore.encode(example_source(), run.folder / "example.krs", "raw")
    commands = {
        "krstore --help": (0.3, ["--help"]),
        "krstore info": (0.5, ["info", str(store.path)]),
        "krstore info --json": (0.5, ["info", str(store.path), "--json"]),
    }
    repeats = 1 if run.tiny else REPEATS
    ran: dict[str, list[Any]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, (_, arguments) in commands.items():
            ran[name].append(child(KRSTORE, *arguments))
    rows = [
        {
            "command": name,
            "limit": limit,
            "seconds": statistics.median(each.seconds for each in ran[name]),
            "slowest": max(each.seconds for each in ran[name]),
            "cpu_seconds": statistics.median(each.cpu_seconds for each in ran[name]),
            "peak_bytes": max(each.peak_bytes for each in ran[name]),
        }
        for name, (limit, _) in commands.items()
    ]
    return {"repeats": repeats, "rows": rows}


if __name__ == "__main__":
    main("startup", __doc__, measure)
