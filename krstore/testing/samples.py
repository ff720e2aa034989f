"""The conformance suite of codecs of samples."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from krstore.arrays import ArraySource
from krstore.codec import AnyCodec, Codec
from krstore.config import build_config
from krstore.dtypes import numpy_dtype
from krstore.errors import CorruptStoreError, UsageError
from krstore.registry import get_sample_codec
from krstore.source import Array, default_channel_axis
from krstore.store.reader import Store
from krstore.store.writer import encode

__all__ = ["check_codec", "check_config", "check_damage", "example_source"]


def example_source(
    samples: int = 300,
    shape: tuple[int, ...] = (6, 4, 4),
    dtype: str = "float32",
    *,
    labelled: bool = True,
    seed: int = 0,
) -> ArraySource:
    """Return features like a network's: rectified, clustered by class, one channel dead, labels with gaps."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([-3, 5, 1000], samples)
    centres = {label: rng.normal(size=shape) for label in (-3, 5, 1000)}
    values = np.stack([centres[label] for label in labels]) + 0.3 * rng.normal(size=(samples, *shape))
    axis = default_channel_axis(len(shape))
    values = np.maximum(values, 0)
    if axis is not None and shape[axis] > 1:
        values[(slice(None),) * (axis + 1) + (0,)] = 0
    if dtype == "uint8":
        values = np.rint(80 * values).clip(0, 255)
    return ArraySource(values.astype(numpy_dtype(dtype)), labels if labelled else None, attributes={"layer": "example"})


def check_codec(
    name: str,
    folder: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    ratio: float | None = 2.0,
    shapes: tuple[tuple[int, ...], ...] = ((6, 4, 4), (10,), (5, 6)),
    dtypes: tuple[str, ...] = ("float32", "float16", "uint8"),
) -> None:
    """Put a registered codec of samples through everything the contract promises.

    Args:
        name: the codec's registered name.
        folder: an empty folder to work in.
        settings: options that make its fits short.
        ratio: a target that a lossy codec can reach on the examples; they are small, so a low one.
        shapes, dtypes: of the examples; leave out what the codec refuses by design.

    Raises:
        AssertionError: says what was promised and not kept.
    """
    codec = get_sample_codec(name)
    check_config(codec, settings)
    for number, (shape, dtype, labelled) in enumerate(_cases(shapes, dtypes)):
        source = example_source(shape=shape, dtype=dtype, labelled=labelled)
        path = folder / f"{number}.krs"
        target = {} if codec.lossless else {"ratio": _reachable(ratio, shape, dtype)}
        store = encode(source, path, name, settings=settings, device="cpu", **target)  # type: ignore[arg-type]
        _check_store(codec, store, source, target.get("ratio"))
        if number == 0:
            again = encode(source, folder / "again.krs", name, settings=settings, device="cpu", **target)  # type: ignore[arg-type]
            assert again.path.read_bytes() == path.read_bytes(), f"{name}: the same input and seed gave other bytes"
            _check_other_process(store, folder)
            check_damage(store.path, _read)


def _cases(shapes: tuple[tuple[int, ...], ...], dtypes: tuple[str, ...]) -> Iterator[tuple[tuple[int, ...], str, bool]]:
    yield shapes[0], dtypes[0], True
    yield shapes[0], dtypes[0], False
    yield from ((shape, dtypes[0], True) for shape in shapes[1:])
    yield from ((shapes[0], dtype, True) for dtype in dtypes[1:])


def check_config(codec: type[AnyCodec[Any, Any]], settings: Mapping[str, Any] | None) -> None:
    """Every option has a default and survives JSON; equal configs make equal codecs; unknown options are refused."""
    config = build_config(codec.name, codec.Config, codec.presets, settings=settings)
    assert type(config)() == codec.Config(), f"{codec.name}: every option needs a default"
    again = msgspec.json.decode(msgspec.json.encode(config), type=codec.Config)
    assert again == config, f"{codec.name}: the config does not survive JSON"
    assert codec(config) == codec(again), f"{codec.name}: equal configs make unequal codecs"
    assert hash(codec(config)) == hash(codec(again)), f"{codec.name}: equal codecs have unequal hashes"
    assert repr(config) in repr(codec(config)), f"{codec.name}: the repr does not show the config"
    for preset in codec.presets:
        build_config(codec.name, codec.Config, codec.presets, preset)
    try:
        build_config(codec.name, codec.Config, codec.presets, settings={"no such option": 1})
    except UsageError:
        return
    raise AssertionError(f"{codec.name}: an unknown option was accepted")


def _check_store(codec: type[Codec[Any, Any]], store: Store, source: ArraySource, ratio: float | None) -> None:
    name, spec = codec.name, source.spec
    assert ratio is None or store.ratio >= ratio, f"{name}: ratio {store.ratio}, asked for {ratio}"
    assert store.bytes.file == store.path.stat().st_size, f"{name}: the file's size is misreported"
    assert all(value >= 0 for value in msgspec.structs.astuple(store.bytes)), f"{name}: {store.bytes}"
    kept = {"dense": spec.samples, "exemplar": min(len(store), spec.samples)}[store.header.kind]
    assert len(store) == kept, f"{name}: {len(store)} of {spec.samples} samples kept"
    decoded = store.read(store.ids)
    assert decoded.shape == (len(store), *spec.shape), f"{name}: decoded shape {decoded.shape}"
    assert decoded.dtype == source.features.dtype, f"{name}: decoded dtype {decoded.dtype}"
    assert np.isfinite(decoded.astype(np.float64)).all(), f"{name}: decoded values are not finite"
    if source.labels is None:
        assert store.labels is None, f"{name}: labels out of nowhere"
    else:
        np.testing.assert_array_equal(store.labels, source.labels[store.ids])
    truth = source.features[store.ids].astype(np.float64)
    mse = float(np.square(truth - decoded.astype(np.float64)).mean())
    assert np.isclose(store.quality.mse, mse, rtol=1e-6, atol=1e-18), f"{name}: mse {store.quality.mse} is really {mse}"
    if codec.lossless:
        np.testing.assert_array_equal(decoded, source.features[store.ids])
    _check_reads(name, store, decoded, truth)
    store.check()


def _check_reads(name: str, store: Store, decoded: Array, truth: Array) -> None:
    """Any selection decodes to the same values, within 1e-5 of the features' root mean square (or a rounding step)."""
    tolerance = 1e-5 * float(np.sqrt(np.square(truth).mean())) if decoded.dtype.kind == "f" else 1.0
    tolerance = max(tolerance, 4 * float(np.finfo(decoded.dtype).eps)) if decoded.dtype == np.float16 else tolerance
    rng = np.random.default_rng(1)
    for rows in (rng.permutation(len(store)), rng.integers(len(store), size=5), np.array([0]), np.array([], np.int64)):
        got = store.read(store.ids[rows]).astype(np.float64)
        assert got.shape == (len(rows), *decoded.shape[1:]), f"{name}: reading {len(rows)} samples gave {got.shape}"
        worst = np.abs(got - decoded[rows]).max(initial=0)
        assert worst <= tolerance, f"{name}: a scattered read differs by {worst}"
        tensor = store.decode_tensor(rows).cpu()
        assert tuple(tensor.shape) == got.shape, f"{name}: decode_tensor gave {tuple(tensor.shape)}"
    for bad in ([store.source.samples], [-1], [[0]], ["a"]):
        try:
            store.read(bad)
        except UsageError:
            continue
        raise AssertionError(f"{name}: reading {bad} was not refused")


def _check_other_process(store: Store, folder: Path) -> None:
    """Another process, with one thread, decodes the same values."""
    out = folder / "other.npy"
    code = (
        "import sys, numpy, krstore; store = krstore.open(sys.argv[1], device='cpu'); "
        "numpy.save(sys.argv[2], store.read(store.ids))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(store.path), str(out)], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, f"another process could not read {store.path}: {run.stderr}"
    np.testing.assert_allclose(np.load(out, allow_pickle=False), store.read(store.ids), rtol=1e-4, atol=1e-5)


def check_damage(path: Path, read: Callable[[Path], list[Array]]) -> None:
    """A flipped byte is an error or changes nothing: never other numbers.

    Args:
        path: an intact store.
        read: opens a store and returns all that it holds.
    """
    good, truth = path.read_bytes(), read(path)
    damaged = path.with_name("damaged.krs")
    for place in np.linspace(0, len(good) - 1, 60).astype(int):
        data = bytearray(good)
        data[place] ^= 0x55
        damaged.write_bytes(data)
        try:
            got = read(damaged)
        except CorruptStoreError:
            continue
        for expected, array in zip(truth, got, strict=True):
            np.testing.assert_array_equal(array, expected, err_msg=f"byte {place} changed what is decoded")


def _read(path: Path) -> list[Array]:
    with Store(path, device="cpu") as store:
        return [store.read(store.ids)]


def _reachable(ratio: float | None, shape: tuple[int, ...], dtype: str) -> float:
    """Header and labels weigh more on small samples: keep to targets that leave most of the file to the payload."""
    source = example_source(shape=shape, dtype=dtype)
    return min(ratio or 2.0, source.spec.bytes / 6000)
