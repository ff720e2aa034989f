"""Data sets that learners' tests share."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest
from learning_runs import TEST, TRAIN, samples


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with train.h5 and test.h5, features of six classes."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, each, seed in (("train", TRAIN, 0), ("test", TEST, 1)):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["features"], file["labels"] = samples(each, seed)
    return folder
