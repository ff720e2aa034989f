"""The conformance suite of codecs of a network's states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from krstore.archives import open_snapshots
from krstore.errors import UsageError
from krstore.registry import get_snapshot_codec
from krstore.snapshots import HeldStates
from krstore.source import Array
from krstore.store.export import decode_snapshots
from krstore.store.snapshots import SnapshotStore
from krstore.store.verify import verify
from krstore.store.writer import encode_snapshots
from krstore.testing.samples import check_config, check_damage

__all__ = ["StateSource", "check_snapshot_codec", "example_states"]


@dataclass(frozen=True)
class StateSource(HeldStates):
    """States in memory as a source."""

    attributes: Mapping[str, Any] = field(default_factory=lambda: {"network": "example"})


def example_states(steps: int = 3, *, seed: int = 0) -> StateSource:
    """Return states like those of a network pruned and frozen step by step, as PackNet's are.

    A weight is 0 until the step that takes it, and stays as it is from then on; biases, norm statistics and counters
    change freely; the classifier grows by two classes a step.
    """
    rng = np.random.default_rng(seed)
    taken_at = rng.integers(0, steps + 1, (8, 4, 3, 3))
    weight = rng.normal(size=taken_at.shape).astype(np.float32)
    return StateSource(
        tuple(
            {
                "conv.weight": np.where(taken_at <= step, weight, np.float32(0)),
                "norm.bias": rng.normal(size=8).astype(np.float32),
                "norm.running_var": rng.uniform(0.5, 2, 8).astype(np.float32),
                "norm.num_batches_tracked": np.array(100 * (step + 1)),
                "fc.weight": rng.normal(size=(2 * (step + 1), 8)).astype(np.float32),
            }
            for step in range(steps)
        )
    )


def check_snapshot_codec(
    name: str, folder: Path, *, settings: Mapping[str, Any] | None = None, ratio: float | None = 1.1
) -> None:
    """Put a registered snapshot codec through everything the contract promises.

    Args:
        name: the codec's registered name.
        folder: an empty folder to work in.
        settings: options of the codec.
        ratio: a target that a lossy codec can reach on `example_states`.

    Raises:
        AssertionError: says what was promised and not kept.
    """
    codec, source = get_snapshot_codec(name), example_states(8)
    check_config(codec, settings)
    target = {} if codec.lossless else {"ratio": ratio}
    path = folder / "states.krs"
    store = encode_snapshots(source, path, codec=name, settings=settings, device="cpu", **target)  # type: ignore[arg-type]
    assert codec.lossless or ratio is None or store.ratio >= ratio, f"{name}: ratio {store.ratio}, asked for {ratio}"
    assert store.bytes.file == path.stat().st_size, f"{name}: the file's size is misreported"
    assert store.bytes.source == source.spec.bytes, f"{name}: the source's size is misreported"
    _check_states(name, store, source, lossless=codec.lossless)
    assert verify(path, against=source, device="cpu").ok, f"{name}: the stated quality is not the real one"
    again = encode_snapshots(source, folder / "again.krs", codec=name, settings=settings, device="cpu", **target)  # type: ignore[arg-type]
    assert again.path.read_bytes() == path.read_bytes(), f"{name}: the same input and seed gave other bytes"
    _check_archive(name, store, folder)
    check_damage(path, _read)


def _check_states(name: str, store: SnapshotStore, source: StateSource, *, lossless: bool) -> None:
    squared, count = 0.0, 0
    for step in reversed(range(len(store))):  # any order will do
        for key, truth in source.states[step].items():
            array = store.state(step)[key]
            assert (array.shape, array.dtype) == (truth.shape, truth.dtype), f"{name}: {key} has {array.dtype}"
            tensor = store.network(step)[key].numpy()
            np.testing.assert_array_equal(tensor, array, err_msg=f"{name}: network() and state() differ in {key}")
            if lossless or truth.dtype.kind != "f":
                assert array.tobytes() == truth.tobytes(), f"{name}: {key} of step {step} is not bit for bit the same"
                continue
            squared += float(np.square(truth.astype(np.float64) - array).sum())
            count += truth.size
    mse = squared / max(1, count)
    assert np.isclose(store.quality.mse, mse, rtol=1e-6, atol=1e-18), f"{name}: mse {store.quality.mse} is really {mse}"
    for bad in (-1, len(store)):
        try:
            store.network(bad)
        except UsageError:
            continue
        raise AssertionError(f"{name}: step {bad} was not refused")


def _check_archive(name: str, store: SnapshotStore, folder: Path) -> None:
    """A decoded archive holds what the store does, and can be encoded again."""
    archive = open_snapshots(decode_snapshots(store, folder / "decoded.h5"))
    assert archive.spec.steps == store.spec.steps, f"{name}: the decoded archive has other arrays"
    for step, arrays in enumerate(archive.spec.steps):
        for key in arrays:
            np.testing.assert_array_equal(archive.read(step, key), store.read(step, key))


def _read(path: Path) -> list[Array]:
    with SnapshotStore(path, device="cpu") as store:
        return [array for step in range(len(store)) for _, array in sorted(store.state(step).items())]
