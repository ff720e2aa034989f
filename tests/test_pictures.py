"""Pictures of what a store holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import krstore
from krstore.errors import UsageError
from krstore.testing import ArraySource

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")

from krstore.pictures import in_a_plane, plot_plane, plot_sheet  # noqa: E402


@pytest.fixture
def images() -> ArraySource:
    """Images (60, 8, 8, 3) of three classes of one colour each."""
    labels = np.arange(60) % 3
    values = np.zeros((60, 8, 8, 3), np.uint8)
    values[np.arange(60), :, :, labels] = 200
    return ArraySource(values, labels)


def test_a_sheet_has_originals_above_what_is_stored(images: ArraySource, tmp_path: Path) -> None:
    kept = ArraySource(images.features[:14], images.labels[:14])  # of the last class, four
    store = krstore.encode(kept, tmp_path / "a.krs", "raw")
    plot_sheet(store, kept, tmp_path / "sheet.png", classes=2, each=10_000)
    with Image.open(tmp_path / "sheet.png") as picture:
        sheet = np.asarray(picture.convert("RGB"))
    scale = sheet.shape[1] // (5 * 8)
    small = sheet[::scale, ::scale].astype(int)
    assert small.shape == (4 * 8, 5 * 8, 3)
    assert small[0, 0].tolist() == small[8, 0].tolist() == [200, 0, 0]
    assert small[16, 0].tolist() == small[24, 0].tolist() == [0, 0, 200]  # the last class
    assert small[16, 39].tolist() == [255, 255, 255]  # as wide as the largest class


@pytest.mark.parametrize("labelled", [True, False])
def test_a_plane_of_any_samples(labelled: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    source = ArraySource(rng.normal(size=(60, 5)).astype(np.float32), np.arange(60) % 3 if labelled else None)
    store = krstore.encode(source, tmp_path / "a.krs", "herding", settings={"total": 9}, device="cpu")
    plot_plane(store, source, tmp_path / "plane.png")
    with Image.open(tmp_path / "plane.png") as picture:
        assert picture.size[0] > 600
    parts = in_a_plane([source.features[:7], source.features[7:20]])
    assert [part.shape for part in parts] == [(7, 2), (13, 2)]
    whole, again = in_a_plane([source.features[:20], source.features[:5]])
    np.testing.assert_array_equal(whole[:5], again)


@pytest.mark.parametrize(
    "values",
    [
        np.full((4, 5), 0.1),
        np.full((1, 5), 7),
        np.repeat([[0.0, 1.0], [3.0, 4.0]], 4, axis=0),
        np.arange(7.0),
        np.arange(14.0).reshape(7, 2) * 1e149,
    ],
)
def test_samples_that_coincide_or_are_few_have_a_place_too(values: np.ndarray) -> None:
    places = in_a_plane([values[:1], values[1:]]) if len(values) > 1 else in_a_plane([values])
    assert [place.shape[1] for place in places] == [2] * len(places)
    assert np.isfinite(np.concatenate(places)).all()


def test_what_cannot_be_drawn(images: ArraySource, tmp_path: Path) -> None:
    features = ArraySource(np.ones((60, 5, 4, 4), np.float32), np.arange(60) % 3)
    store = krstore.encode(features, tmp_path / "a.krs", "raw")
    with pytest.raises(UsageError, match=r"\(5, 4, 4\) are no images .* \(--tsne\)"):
        plot_sheet(store, features, tmp_path / "sheet.png")
    with pytest.raises(UsageError, match="was encoded from 60 samples"):
        plot_sheet(store, images, tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()
    with pytest.raises(UsageError, match=r"sheet\.jpg: a picture is a PNG file"):
        plot_plane(store, features, tmp_path / "sheet.jpg")
    with pytest.raises(UsageError, match="NaN or infinite"):
        in_a_plane([np.array([[1.0], [np.inf]])])


def test_the_command(images: ArraySource, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "images.h5", "w") as file:
        file["images"], file["labels"] = images.features, images.labels
    source = krstore.open_archive(tmp_path / "images.h5", features_key="images")
    krstore.encode(source, tmp_path / "a.krs", "kmeans", settings={"per_class": 3}, device="cpu")
    command = [
        str(Path(sys.executable).with_name("krstore")),
        "show",
        "a.krs",
        "--against",
        "images.h5",
        "-o",
        "sheet.png",
    ]
    for code in (0, 1):
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (ran.returncode == 0) == (code == 0), ran.stderr
    assert "sheet.png" in ran.stderr
    assert (tmp_path / "sheet.png").stat().st_size > 100
