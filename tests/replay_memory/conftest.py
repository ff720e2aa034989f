"""Memories that tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from memory_stores import SHAPE

import krstore
from krstore import Memory
from krstore.testing import example_source


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory.create(tmp_path / "memory", device="cpu")


@pytest.fixture
def sharing(tmp_path: Path) -> list[krstore.Store]:
    """Two stores with one decoder."""
    first = krstore.encode(example_source(300, SHAPE), tmp_path / "a.krs", ratio=30, preset="linear", device="cpu")
    second = krstore.encode(
        example_source(200, SHAPE, seed=1), tmp_path / "b.krs", ratio=30, preset="linear", decoder=first, device="cpu"
    )
    return [first, second]
