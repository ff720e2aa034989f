"""pq: decodes as faiss does, but without it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import krstore
from krstore.errors import ArchiveError, MissingExtraError, TargetUnreachableError, UsageError
from krstore.testing import ArraySource, example_source

faiss = pytest.importorskip("faiss")


def grids(samples: int, shape: tuple[int, ...], seed: int = 0) -> ArraySource:
    return ArraySource(np.random.default_rng(seed).normal(size=(samples, *shape)).astype(np.float32))


def encode(path: Path, source: ArraySource, **options: Any) -> krstore.Store:
    settings = {"iterations": 4, "train_points": 16} | options.pop("settings", {})
    return krstore.encode(
        source, path, "pq", settings=settings, device="cpu", force=True, **(options or {"max_mse": 1e9})
    )


def payload(store: krstore.Store, name: str, dtype: str) -> Any:
    with zipfile.ZipFile(store.path) as file:
        return np.frombuffer(file.read(f"payload/{name}"), dtype)


@pytest.mark.parametrize("bits", range(1, 13))
def test_any_number_of_bits(tmp_path: Path, bits: int) -> None:
    """A code is the nearest centroid: nothing of the codebook is nearer than what was decoded."""
    source = grids(37, (6, 3, 3))
    store = encode(tmp_path / "x.krs", source, settings={"subvectors": 3, "bits": bits})
    books = payload(store, "network/codebooks", "<f4").reshape(3, 2**bits, 2)
    assert 0 <= store.bytes.latent - 37 * 9 * 3 * bits / 8 < 37  # blocks end on whole bytes
    parts = source.features.transpose(0, 2, 3, 1).reshape(-1, 3, 2)
    decoded = store.read(slice(None)).transpose(0, 2, 3, 1).reshape(-1, 3, 2)
    for m in range(3):
        distances = np.square(parts[:, m, None] - books[m]).sum(-1)
        np.testing.assert_allclose(np.square(parts[:, m] - decoded[:, m]).sum(-1), distances.min(1), atol=1e-5)
        assert (np.abs(decoded[:, m, None] - books[m]).sum(-1).min(1) == 0).all()


def test_decodes_as_faiss_does(tmp_path: Path) -> None:
    source = grids(50, (8, 2, 3))
    store = encode(tmp_path / "x.krs", source, settings={"subvectors": 4, "bits": 5})
    quantiser = faiss.ProductQuantizer(8, 4, 5)
    faiss.copy_array_to_vector(payload(store, "network/codebooks", "<f4").copy(), quantiser.centroids)
    vectors = np.ascontiguousarray(source.features.transpose(0, 2, 3, 1).reshape(-1, 8))
    expected = quantiser.decode(quantiser.compute_codes(vectors)).reshape(50, 2, 3, 8).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(store.read(slice(None)), expected)


def test_rotation_pays_where_channels_depend_on_each_other(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(400, 4)) * [5, 4, 0.1, 0.1] @ np.linalg.qr(rng.normal(size=(4, 4)))[0]
    source = ArraySource(mixed.astype(np.float32))
    errors = {}
    for opq in (False, True):
        store = encode(tmp_path / "x.krs", source, settings={"subvectors": 2, "bits": 4, "opq": opq, "iterations": 10})
        errors[opq] = store.quality.mse
        decoded = store.read(slice(None))
        assert store.quality.mse == pytest.approx(np.square(decoded - source.features).mean(), rel=1e-5)
        assert ("payload/network/rotation" in store.header.members) == opq
    rotation = payload(store, "network/rotation", "<f4").reshape(4, 4)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(4), atol=1e-5)
    assert errors[True] < 0.9 * errors[False]


@pytest.mark.parametrize("channels", [9, 15, 7])
def test_odd_channels(tmp_path: Path, channels: int) -> None:
    source = grids(60, (channels, 2, 2))
    store = encode(tmp_path / "x.krs", source, ratio=1.5)
    assert channels % store.config["subvectors"] == 0
    assert store.ratio >= 1.5


def test_subvectors_must_divide_the_channels(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="subvectors=4 does not divide the 6 channels"):
        encode(tmp_path / "x.krs", example_source(30), settings={"subvectors": 4})
    assert list(tmp_path.iterdir()) == []


def test_the_nearest_setting_under_the_target(tmp_path: Path) -> None:
    """No other pair of M and b gives a larger code in a file that still honours the target."""
    source = example_source(500, (8, 4, 4))
    store = encode(tmp_path / "x.krs", source, ratio=8)
    chosen = store.config["subvectors"], store.config["bits"]
    limit = source.spec.bytes // 8
    assert store.path.stat().st_size <= limit
    better = []
    for m in (1, 2, 4, 8):
        for bits in range(1, 13):
            if m * bits > chosen[0] * chosen[1] and 500 * 16 * m * bits / 8 + 4 * 8 * 2**bits < limit - 1700:
                better.append((m, bits))
    assert better == []


@pytest.mark.parametrize("given", [{"subvectors": 2}, {"bits": 3}, {"subvectors": 4, "bits": 2}])
def test_given_settings_are_kept(tmp_path: Path, given: dict[str, int]) -> None:
    store = encode(tmp_path / "x.krs", example_source(300, (8, 4, 4)), ratio=4, settings=given)
    assert given.items() <= store.config.items()
    assert store.ratio >= 4


@pytest.mark.parametrize("shape", [(), (1,), (8,), (4, 3, 3)])
@pytest.mark.parametrize("samples", [100, 999])
def test_any_ratio_it_can_reach_it_does(tmp_path: Path, samples: int, shape: tuple[int, ...]) -> None:
    """Where the smallest setting fits a target, some setting is found: sizes are known beforehand."""
    source = grids(samples, shape)
    smallest = encode(tmp_path / "s.krs", source, settings={"subvectors": 1, "bits": 1}).path.stat().st_size
    for size in (smallest + 400, smallest + 1000, smallest + 4000):
        assert encode(tmp_path / "x.krs", source, max_bytes=size).path.stat().st_size <= size


def test_an_unreachable_size_is_said(tmp_path: Path) -> None:
    with pytest.raises(TargetUnreachableError, match=r"its smallest setting takes [\d,]+ bytes; the target leaves"):
        encode(tmp_path / "x.krs", example_source(300), max_bytes=1900)
    assert list(tmp_path.iterdir()) == []


def test_values_that_would_overflow_inside_faiss(tmp_path: Path) -> None:
    """It would end the process."""
    source = ArraySource(np.random.default_rng(0).choice([-1e38, 0, 1e38], (50, 4)).astype(np.float32))
    with pytest.raises(ArchiveError, match=r"values reach 1e\+38; pq takes at most 1e\+15: scale the features"):
        encode(tmp_path / "x.krs", source)


@pytest.mark.parametrize(("dtype", "highest"), [("uint8", 255), ("float16", 65504)])
def test_decoded_values_stay_in_their_type(tmp_path: Path, dtype: str, highest: float) -> None:
    features = np.random.default_rng(0).choice([0, highest / 2, highest], (200, 6)).astype(dtype)
    decoded = encode(tmp_path / "x.krs", ArraySource(features), settings={"subvectors": 2, "bits": 2}).read(slice(None))
    assert decoded.dtype == np.dtype(dtype)
    assert decoded.min() >= 0
    assert decoded.max() <= highest


def test_more_positions_than_the_training_takes(tmp_path: Path) -> None:
    source = grids(300, (4, 16, 16))
    store = encode(tmp_path / "x.krs", source, settings={"subvectors": 4, "bits": 2, "train_points": 4})
    assert store.quality.nmse < 0.25  # a Gaussian in four levels: 0.12


@pytest.fixture
def no_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)


@pytest.mark.usefixtures("no_faiss")
def test_encoding_without_faiss(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"encoding with codec pq needs .* pip install 'krstore\[pq\]'"):
        encode(tmp_path / "x.krs", example_source(30))


def test_decoding_without_faiss(tmp_path: Path) -> None:
    for opq in ("", "opq"):
        settings = {"subvectors": 3, "bits": 4, "opq": bool(opq)}
        store = encode(tmp_path / f"x{opq}.krs", example_source(100), settings=settings)
        np.save(tmp_path / f"x{opq}.npy", store.read(slice(None)))
    program = """
        import sys
        sys.modules["faiss"] = None
        import krstore, numpy as np
        for name in ("x", "xopq"):
            assert (krstore.open(f"{name}.krs").read(slice(None)) == np.load(f"{name}.npy")).all()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, cwd=tmp_path)
