"""Commands on an archive larger than the memory they take."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import krstore
from krstore.source import SourceSpec

KRSTORE = Path(sys.executable).with_name("krstore")
SAMPLES, SHAPE = 40_000, (64, 8, 8)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """655 MB of rectified noise in 20 classes."""
    path = tmp_path_factory.mktemp("large") / "large.h5"
    rng = np.random.default_rng(0)
    spec = SourceSpec(samples=SAMPLES, shape=SHAPE, dtype="float32", channel_axis=0)
    with krstore.write_archive(path, spec, {"labels": np.arange(SAMPLES) % 20}) as writer:
        for _ in range(0, SAMPLES, 1000):
            writer.append(np.maximum(rng.standard_normal((1000, *SHAPE), np.float32), 0))
    return path


def peak(*arguments: object) -> int:
    """Run a command and return its peak resident bytes, or this process's where that is more: Linux counts from
    before the new program replaces the copy of this one."""
    running = subprocess.Popen([KRSTORE, *map(str, arguments)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(running.pid, 0)
    running.returncode = os.waitstatus_to_exitcode(status)
    assert running.returncode == 0
    return usage.ru_maxrss * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
@pytest.mark.parametrize(
    ("codec", "options", "megabytes"),
    [
        ("raw", (), 700),
        ("krnet", ("--ratio", "1000", "--set", "iterations=5", "--set", "c0=8", "--set", "c1=8"), 950),
    ],
)
def test_memory_does_not_grow_with_the_archive(
    large: Path, tmp_path: Path, codec: str, options: tuple[str, ...], megabytes: int
) -> None:
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if own > megabytes:
        pytest.skip(f"this process has had {own:.0f} MB itself, so that less cannot be seen of a child")
    store = tmp_path / "large.krs"
    assert peak("encode", large, "--codec", codec, *options, "--device", "cpu", "-o", store) < megabytes << 20
    assert peak("decode", store, "--device", "cpu", "-o", tmp_path / "decoded.h5") < megabytes << 20
