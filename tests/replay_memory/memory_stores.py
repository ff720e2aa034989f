"""Small stores for memories, and what lies in a memory's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import krstore
from krstore import Memory
from krstore.testing import ArraySource

SHAPE = (8, 8, 8)


def raw_store(folder: Path, number: int, samples: int = 20, labels: Any = None) -> Path:
    """A raw store every element of whose samples is `number`, by default of class `number`; made once."""
    if (folder / f"{number}.krs").exists():
        return folder / f"{number}.krs"
    features = np.full((samples, 4), number, np.float32)
    labels = np.full(samples, number) if labels is None else np.asarray(labels)
    return krstore.encode(ArraySource(features, labels), folder / f"{number}.krs", "raw").path


def files(memory: Memory) -> set[str]:
    """The memory's files, the lock excepted."""
    found = (file.relative_to(memory.path).as_posix() for file in memory.path.rglob("*") if file.is_file())
    return set(found) - {"lock"}


def size_on_disk(memory: Memory) -> int:
    return sum((memory.path / file).stat().st_size for file in files(memory))
