"""Yesterday's stores decode for ever, through krstore and through a reader written from the specification alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from second_reader import read_store

import krstore
from krstore.dtypes import numpy_dtype
from krstore.testing import example_source

GOLDEN = sorted((Path(__file__).parent / "golden").glob("v*/*.krs"))
HERE = Path(__file__).parent


def expected(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    names = ("features", "labels", "task")
    files = {name: path.with_suffix(f".{name}.npy") for name in names}
    return {name: np.load(file, allow_pickle=False) for name, file in files.items() if file.exists()}


def test_there_are_golden_files() -> None:
    names = {path.name for path in GOLDEN}
    assert {f"raw-{dtype}.krs" for dtype in ("float32", "float16", "bfloat16", "float64", "uint8")} <= names


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_golden_file_decodes_identically(path: Path) -> None:
    arrays = expected(path)
    with krstore.open(path) as store:
        features = store.read(slice(None))
        assert features.dtype == numpy_dtype(store.source.dtype)
        assert features.tobytes() == arrays["features"].tobytes()
        assert features.shape == arrays["features"].shape
        for name in ("labels", "task"):
            column = getattr(store, name)
            assert (column is None) == (name not in arrays)
            np.testing.assert_equal(column, arrays.get(name))
        assert store.check()
    _, own = read_store(path)
    assert own.keys() == arrays.keys()
    for name, values in arrays.items():
        assert own[name].tobytes() == values.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8"])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5, 4)])
def test_both_readers_agree_on_new_stores(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    source = example_source(41, shape, dtype)
    store = krstore.encode(source, tmp_path / "x.krs", codec="raw", settings={"block_samples": 8})
    header, arrays = read_store(store.path)
    assert arrays["features"].tobytes() == store.read(slice(None)).tobytes() == np.asarray(source.features).tobytes()
    np.testing.assert_array_equal(arrays["labels"], source.labels)
    assert header["source"]["bytes"] / store.path.stat().st_size == store.ratio


def test_second_reader_stands_alone() -> None:
    """It would prove nothing if it borrowed krstore's code."""
    tree = ast.parse((HERE / "second_reader.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    tops = {name.partition(".")[0] for name in imported}
    assert tops <= {*sys.stdlib_module_names, "numpy", "zstandard"}


def test_golden_files_are_not_overwritten() -> None:
    before = {path: path.read_bytes() for path in GOLDEN}
    run = subprocess.run(
        [sys.executable, HERE / "golden" / "regenerate.py"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "never overwritten" in run.stderr
    assert {path: path.read_bytes() for path in GOLDEN} == before
