"""Yesterday's coded integers decode identically everywhere, and the features of them closely."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import krstore

HERE = Path(__file__).parent / "golden" / "codecs-v1"


def _make() -> Any:
    spec = spec_from_file_location("golden_codecs", HERE / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = _make()


@pytest.mark.parametrize("name", make.STORES)
def test_golden_stores_decode(name: str) -> None:
    expected = np.load(HERE / f"{name}.integers.npy")
    np.testing.assert_array_equal(make.integers(HERE / f"{name}.krs", make.STORES[name][2]), expected)
    features = np.load(HERE / f"{name}.features.npy")
    with krstore.open(HERE / f"{name}.krs") as store:
        assert store.check()
        tolerance = 1e-5 * float(np.sqrt(np.square(features, dtype=np.float64).mean()))
        np.testing.assert_allclose(store.read(slice(None, None, make.EVERY)), features, rtol=0, atol=tolerance)
    assert np.abs(expected).max() > 1  # the stores hold something


def test_one_of_them_lays_tokens_out_as_a_square() -> None:
    with krstore.open(HERE / "transform-tokens.krs") as store:
        assert b'"square":true' in store._container.read("payload/network/sizes")


@pytest.mark.parametrize("threads", ["1", "3"])
def test_integers_are_the_same_in_other_processes_with_other_threads(threads: str) -> None:
    script = (
        "import hashlib, runpy, sys; make = runpy.run_path(sys.argv[1]);"
        "[print(hashlib.sha256(make['integers'](make['HERE'] / f'{n}.krs', s[2]).astype('<i2')).hexdigest())"
        " for n, s in make['STORES'].items()]"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, HERE / "make.py"], env={**os.environ, "OMP_NUM_THREADS": threads},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    own = [hashlib.sha256(np.load(HERE / f"{name}.integers.npy").astype("<i2")).hexdigest() for name in make.STORES]
    assert ran.stdout.split() == own


def test_golden_stores_are_not_overwritten() -> None:
    ran = subprocess.run([sys.executable, HERE / "make.py"], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "never overwritten" in ran.stderr
