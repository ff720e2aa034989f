"""What the benchmarks share: their command line, data, timing, child processes and JSON."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import krstore
from benchmarks import tables
from krstore.source import Source, scan
from krstore.testing import example_source

__all__ = ["KRSTORE", "Child", "Run", "Times", "archive_facts", "child", "main", "medians", "timed"]

KRSTORE = str(Path(sys.executable).with_name("krstore"))
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("krstore", "numpy", "torch", "zstandard", "h5py", "hdf5plugin", "faiss-cpu")

# A process of a few megabytes that starts the measured one: the peak that the kernel reports for a child includes
# what its parent held when it forked.
LAUNCHER = """
import json, os, subprocess, sys, time
began = time.monotonic()
running = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
said = running.stderr.read()
_, status, usage = os.wait4(running.pid, 0)
print(json.dumps({
    "code": os.waitstatus_to_exitcode(status),
    "error": said.decode(errors="replace")[-2000:],
    "seconds": time.monotonic() - began,
    "cpu_seconds": usage.ru_utime + usage.ru_stime,
    "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
}))
"""


@dataclass(frozen=True)
class Run:
    """One run of a benchmark.

    Attributes:
        tiny: only show that the benchmark works, on example data, in seconds.
        folder: for temporary files; emptied afterwards.
        unfinished: where learners' runs lie until they have ended; beside the output for those that may be resumed.
        data: a feature archive, or a folder with a `features.h5`; `None` when none was named.
        ratios: what to ask for, where the benchmark asks for ratios; empty for its own choice.
        earlier: the JSON of an earlier run to go on with; empty without one.
        only: which rows to measure, a regular expression of how they are called; for benchmarks of many runs.
        save: write the results so far, so that a run that is interrupted can be gone on with.
    """

    tiny: bool
    folder: Path
    unfinished: Path
    data: Path | None
    ratios: tuple[int, ...] = ()
    earlier: dict[str, Any] = field(default_factory=dict)
    only: str = ""
    save: Callable[[dict[str, Any]], None] = lambda results: None

    def wanted(self, name: str) -> bool:
        """Return whether a row is to be measured."""
        return re.search(self.only, name) is not None

    def source(self) -> Source:
        """Return the archive to measure on: the given one, or example data when tiny."""
        if self.tiny:
            return example_source(samples=200, shape=(8, 8, 8))
        if self.data is None:
            raise SystemExit("name a feature archive with --data or KRSTORE_DATA (or try --size tiny)")
        return krstore.open_archive(self.data / "features.h5" if self.data.is_dir() else self.data)


@dataclass(frozen=True)
class Child:
    """How a child process went: wall and processor seconds, and peak resident bytes (mapped pages included)."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def child(*arguments: object) -> Child:
    """Run a process to its end.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-S", "-c", LAUNCHER, *map(str, arguments)]
    facts = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    if facts["code"] != 0:
        raise RuntimeError(f"{' '.join(map(str, arguments))} ended with {facts['code']}: {facts['error']}")
    return Child(facts["seconds"], facts["cpu_seconds"], facts["peak_bytes"])


@dataclass(frozen=True)
class Times:
    """Wall seconds, and processor seconds of all threads: what others do on the machine matters less to these."""

    wall: float
    cpu: float


def timed(action: Callable[[], object]) -> Times:
    """Return the time that an action takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return Times(time.perf_counter() - wall, time.process_time() - cpu)


def medians(actions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Times]:
    """Return the median times of each action, after one untimed round.

    The actions take turns, so that a noisy spell of the machine falls on all of them.
    """
    for action in actions.values():
        action()
    times: dict[str, list[Times]] = {name: [] for name in actions}
    for _ in range(repeats):
        for name, action in actions.items():
            times[name].append(timed(action))
    return {
        name: Times(statistics.median(t.wall for t in taken), statistics.median(t.cpu for t in taken))
        for name, taken in times.items()
    }


def archive_facts(source: Source) -> dict[str, Any]:
    """Return which archive was measured on: its hash, shape and bytes, not where it lies."""
    spec = source.spec
    return {
        "sha256": scan(source).sha256,
        "shape": [spec.samples, *spec.shape],
        "dtype": spec.dtype,
        "bytes": spec.bytes,
    }


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES if _installed(name)}
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "python": platform.python_version(),
        "packages": packages,
    }


def main(name: str, description: str | None, measure: Callable[[Run], dict[str, Any]]) -> None:
    """Run a benchmark from the command line: measure, write the JSON, print the table."""
    parser = argparse.ArgumentParser(description=description)
    default = os.environ.get("KRSTORE_DATA")
    parser.add_argument(
        "--data", type=Path, default=default and Path(default),
        help="a feature archive, or a folder with a features.h5 (KRSTORE_DATA)",
    )  # fmt: skip
    parser.add_argument("--size", choices=["tiny", "full"], default="full")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / f"{name}.json")
    parser.add_argument("--ratios", type=int, nargs="+", default=(), help="where the benchmark asks for ratios")
    parser.add_argument(
        "--resume", type=Path, nargs="*", metavar="JSON",
        help="keep the rows of the output that are there already, and those of other outputs, and go on with a "
        "learner's run that was stopped",
    )  # fmt: skip
    parser.add_argument("--only", default="", help="measure no other rows than those that this pattern is found in")
    given = parser.parse_args()
    earlier = {} if given.resume is None else _joined([given.output, *given.resume])

    def save(results: dict[str, Any]) -> None:
        document = {"benchmark": name, "size": given.size, "machine": machine(), **results}
        given.output.parent.mkdir(parents=True, exist_ok=True)
        partial = given.output.with_suffix(".partial")
        partial.write_text(json.dumps(document, indent=1) + "\n")
        partial.replace(given.output)

    with tempfile.TemporaryDirectory(prefix="krstore-") as temporary:
        folder = Path(temporary)
        unfinished = folder / "runs" if given.resume is None else given.output.with_suffix(".unfinished")
        run = Run(given.size == "tiny", folder, unfinished, given.data, tuple(given.ratios), earlier, given.only, save)
        save(measure(run))
        with contextlib.suppress(OSError):
            unfinished.rmdir()
    print(tables.TABLES[name](json.loads(given.output.read_text())))


def _joined(paths: Iterable[Path]) -> dict[str, Any]:
    """Return the first JSON of those that are there, with the rows of the others too."""
    documents = [json.loads(path.read_text()) for path in paths if path.exists()]
    if not documents:
        return {}
    return documents[0] | {"rows": [row for document in documents for row in document.get("rows", [])]}


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
