"""CompressAI's models as peers, in an environment of their own: they want an older numpy, and torchvision.

The environment is made on first use, under `KRSTORE_PEERS` or the user's cache folder; it takes some gigabytes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.case import Case, Encoded
from benchmarks.peers import like
from krstore.source import default_channel_axis

__all__ = ["factorised", "hyperprior"]

PACKAGE = "compressai==1.2.8"
SECONDS = 240.0  # of processor time in training, about what transform's default takes on one core
LEAST_SIDE = 8


def factorised(case: Case, budget: int) -> Encoded | None:
    """A factorised prior, for grids of 8x8 positions or more, channels first."""
    return _fitted(case, budget)


def hyperprior(case: Case, budget: int) -> Encoded | None:
    """A scale hyperprior; otherwise as `factorised`."""
    return _fitted(case, budget, "--hyperprior")


def _fitted(case: Case, budget: int, *options: str) -> Encoded | None:
    features = case.features
    first = default_channel_axis(features.ndim - 1) == 0
    if case.run.tiny or features.ndim != 4 or not first or min(features.shape[2:]) < LEAST_SIDE:
        return None
    given, made = case.run.folder / "given.npy", case.run.folder / "made.npy"
    np.save(given, features)
    script = Path(__file__).with_name("compressai_fit.py")
    command = [_python(), "-W", "ignore", script, given, made, "--budget", budget, "--seconds", SECONDS, *options]
    said = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(said)
    if found is None:
        return None
    return Encoded(found["bytes"], found["setting"], lambda: like(np.load(made), features))


def _python() -> Path:
    """Return the interpreter of the environment, made if need be."""
    folder = Path(os.environ.get("KRSTORE_PEERS") or Path.home() / ".cache" / "krstore-peers") / "compressai"
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", PACKAGE], check=True)
        (folder / "made").touch()
    return python
