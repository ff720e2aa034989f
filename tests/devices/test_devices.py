"""What computes does so on another device than the CPU too, and comes to the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

from krstore.learning.learners import LEARNERS

HERE = Path(__file__).parent
CODECS = ["raw", "pq", "transform", "autoencoder", "krnet", "herding", "kmeans", "mnemonics", "mnemonics_released"]


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="torch 2.9 or later"
)
@pytest.mark.parametrize(
    ("cases", "expected"),
    [
        ("strictness", ["sum", "index", "array", "network", "write", "double"]),
        ("extraction", ["extract"]),
        ("codecs", CODECS),
        ("learners", sorted(LEARNERS)),
    ],
)
def test_on_a_pretended_device(cases: str, expected: list[str]) -> None:
    paths = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent / "learning"), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / "cases.py"), cases],
        env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout.split()) == (0, expected), ran.stderr
