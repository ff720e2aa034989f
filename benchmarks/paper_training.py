"""KRNet's own network and training (preset paper-cifar), on some samples for some iterations: the loss and the speed.

The whole of it, 40,000 iterations on 25,000 samples, is `krstore encode features.h5 --codec krnet --preset paper-cifar`
on a GPU; this shows on any machine that it trains.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

import krstore
from benchmarks._common import Run, archive_facts, main
from krstore.testing import ArraySource

SAMPLES, ITERATIONS, EVERY = 250, 200, 10


class Curve:
    """A progress that keeps the loss of a fit."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.began = self.ended = 0.0

    @contextlib.contextmanager
    def task(self, description: str, total: int, unit: str = "samples") -> Iterator[Curve]:
        """Keep time of the fit."""
        fitting = description == "fit"
        self.began = time.perf_counter() if fitting else self.began
        yield self
        self.ended = time.perf_counter() if fitting else self.ended

    def advance(self, amount: int = 1, **figures: float) -> None:
        """Keep the loss."""
        self.losses += [figures["loss"]] if "loss" in figures else []

    def note(self, message: str) -> None:
        """Nothing to keep."""


def measure(run: Run) -> dict[str, Any]:
    """Train the preset and return its loss, in [0, 1] units, every tenth iteration."""
    whole = run.source()
    count, iterations = (8, 10) if run.tiny else (min(SAMPLES, whole.spec.samples), ITERATIONS)
    ids = np.linspace(0, whole.spec.samples - 1, count).astype(np.int64)
    labels = None if whole.labels is None else whole.labels[ids]
    source, curve = ArraySource(whole.read(ids), labels), Curve()
    settings: dict[str, Any] = {"iterations": iterations}
    if run.tiny:
        settings |= {"d0": 16, "c0": 8, "group_size": 16}
    store = krstore.encode(
        source, run.folder / "paper.krs", "krnet", preset="paper-cifar", settings=settings, progress=curve, device="cpu"
    )
    return {
        "archive": archive_facts(whole),
        "samples": count,
        "iterations": iterations,
        "batch": min(count, int(store.config["batch_size"])),
        "every": EVERY,
        "losses": curve.losses,
        "seconds": curve.ended - curve.began,
        "bytes": store.bytes.file,
        "mse_normalised": store.quality.mse_normalised,
        "nmse": store.quality.nmse,
    }


if __name__ == "__main__":
    main("paper_training", __doc__, measure)
