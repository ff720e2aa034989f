"""Encoding from Python: arguments, outputs, progress, seeds; what is refused before any work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import krstore
from krstore.errors import ArchiveError, OutputError, UnknownNameError, UsageError
from krstore.store.reader import StoreSource
from krstore.testing import ArraySource, example_source

SOURCE = example_source(50)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "features.h5"
    with h5py.File(path, "w") as file:
        file["features"], file["labels"] = SOURCE.features, SOURCE.labels
    return path


def test_the_output_lies_beside_the_input(archive: Path) -> None:
    store = krstore.encode(archive, codec="raw")
    assert store.path == archive.with_name("features.raw.krs")
    np.testing.assert_array_equal(store.read(slice(None)), SOURCE.features)
    np.testing.assert_array_equal(store.labels, SOURCE.labels)


def test_a_path_may_be_text(archive: Path) -> None:
    store = krstore.encode(str(archive), str(archive.with_name("x.krs")), "raw")
    assert store.path == archive.with_name("x.krs")


def test_arrays_have_no_place_beside_them() -> None:
    with pytest.raises(UsageError, match="name an output"):
        krstore.encode(SOURCE, codec="raw")


def test_an_existing_output_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.krs"
    krstore.encode(SOURCE, path, "raw")
    before = path.read_bytes()
    other = example_source(20, seed=1)
    with pytest.raises(OutputError, match=r"x\.krs"):
        krstore.encode(other, path, "raw")
    assert path.read_bytes() == before
    assert len(krstore.encode(other, path, "raw", force=True)) == 20


class NeverRead:
    """A source whose samples nobody may touch."""

    spec, labels, task = SOURCE.spec, SOURCE.labels, None

    def read(self, ids: Any) -> Any:
        raise AssertionError("read before the request was checked")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"codec": "rwa"}, UnknownNameError, "Did you mean 'raw'"),
        ({"codec": "raw", "ratio": 2.0}, UsageError, "raw is lossless"),
        ({"codec": "krnet", "ratio": 2.0, "max_bytes": 9}, UsageError, "give one target"),
        ({"codec": "krnet", "preset": "huge"}, UnknownNameError, "unknown preset of codec krnet"),
        ({"codec": "krnet", "settings": {"d1": 3}}, UnknownNameError, "unknown option of codec krnet"),
        ({"codec": "krnet", "settings": {"d0": 0}}, UsageError, "option d0=0"),
        ({"codec": "pq", "settings": {"subvectors": 4}}, UsageError, "does not divide the 6 channels"),
        ({"codec": "raw", "device": "quantum"}, UsageError, "device 'quantum' is not available"),
    ],
)
def test_wrong_requests_are_refused_before_any_sample_is_read(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        krstore.encode(NeverRead(), tmp_path / "x.krs", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("codec", ["krnet", "autoencoder"])
def test_options_that_contradict_each_other(tmp_path: Path, codec: str) -> None:
    with pytest.raises(UsageError, match="c1=3: in style paper it is the number of the features' channels, 6"):
        krstore.encode(SOURCE, tmp_path / "x.krs", codec, settings={"style": "paper", "c1": 3})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("value", "said"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_values_that_are_not_finite(tmp_path: Path, value: float, said: str) -> None:
    features = SOURCE.features.copy()
    features[37, 2, 1, 1] = value
    with pytest.raises(ArchiveError, match=f"sample 37 holds a {said} value"):
        krstore.encode(ArraySource(features), tmp_path / "x.krs", "krnet")
    assert list(tmp_path.iterdir()) == []


def test_no_samples(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="no samples"):
        krstore.encode(ArraySource(np.empty((0, 3), np.float32)), tmp_path / "x.krs", "raw")


class Watching:
    """Notes what is reported."""

    def __init__(self) -> None:
        self.tasks: dict[str, list[int]] = {}
        self.notes: list[str] = []

    @contextlib.contextmanager
    def task(self, description: str, total: int, unit: str = "samples") -> Iterator[Any]:
        self.tasks[description] = [total, 0]
        self.current = self.tasks[description]
        yield self

    def advance(self, amount: int = 1, **figures: float) -> None:
        self.current[1] += amount

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.mark.parametrize("iterations", [7, 20, 25])
def test_progress_ends_where_it_said(tmp_path: Path, iterations: int) -> None:
    watching = Watching()
    krstore.encode(
        SOURCE, tmp_path / "x.krs", "krnet", ratio=1.0, settings={"iterations": iterations}, device="cpu",
        progress=watching,
    )  # fmt: skip
    assert watching.tasks["scan"] == [50, 50]
    assert watching.tasks["fit"] == [iterations, iterations]
    assert watching.tasks["measure"] == [50, 50]
    assert any(note.startswith("krnet: ") for note in watching.notes)


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    krstore.encode(SOURCE, tmp_path / "x.krs", "krnet", ratio=1.0, settings={"iterations": 3}, device="cpu")
    assert capfd.readouterr() == ("", "")


def test_a_preset_has_the_size_it_has(tmp_path: Path) -> None:
    small = {"d0": 8, "c0": 4, "group_size": 8, "iterations": 2}
    store = krstore.encode(SOURCE, tmp_path / "x.krs", "krnet", preset="paper-cifar", settings=small, device="cpu")
    assert store.ratio < 2


def test_without_target_or_preset_a_lossy_codec_aims_at_twenty(tmp_path: Path) -> None:
    source = example_source(800, (8, 6, 6))
    pytest.importorskip("faiss")
    settings = {"iterations": 2, "train_points": 8}
    store = krstore.encode(source, tmp_path / "x.krs", "pq", settings=settings, device="cpu")
    assert 20 <= store.ratio < 25


def test_a_store_is_a_source(tmp_path: Path) -> None:
    first = krstore.encode(SOURCE, tmp_path / "a.krs", "raw")
    again = krstore.encode(StoreSource(first), tmp_path / "b.krs", "raw")
    assert again.path.read_bytes() == first.path.read_bytes()


def test_the_task_of_each_sample_is_kept(tmp_path: Path) -> None:
    task = np.arange(50) // 20
    store = krstore.encode(ArraySource(SOURCE.features, SOURCE.labels, task), tmp_path / "x.krs", "raw")
    np.testing.assert_array_equal(store.task, task)


def test_an_output_that_comes_to_be_meanwhile_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "x.krs"

    class Meanwhile(ArraySource):
        def read(self, ids: Any) -> Any:
            output.write_bytes(b"another process'")
            return super().read(ids)

    source = Meanwhile(SOURCE.features, SOURCE.labels)
    with pytest.raises(OutputError, match="has come to be meanwhile"):
        krstore.encode(source, output, "raw")
    assert output.read_bytes() == b"another process'"
    assert [path.name for path in tmp_path.iterdir()] == ["x.krs"]
    krstore.encode(source, output, "raw", force=True)
    assert len(krstore.open(output)) == 50


def test_a_few_exemplars_of_very_many_samples(tmp_path: Path) -> None:
    source = ArraySource(np.arange(1_500_000, dtype=np.float32)[:, None])
    store = krstore.encode(source, tmp_path / "few.krs", "random", settings={"total": 3})
    np.testing.assert_array_equal(store.read(store.ids)[:, 0], store.ids)


def test_a_file_that_no_reader_would_open_is_not_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.krs").write_bytes(b"as it was")
    monkeypatch.setattr("krstore.store.reader.MAX_SAMPLES_PER_BYTE", 0)
    with pytest.raises(UsageError, match=r"cannot be kept in a store: .*: 50 samples in a file of"):
        krstore.encode(SOURCE, tmp_path / "x.krs", "raw", force=True)
    assert (tmp_path / "x.krs").read_bytes() == b"as it was"


@pytest.mark.parametrize("key", ["labels_key", "features_key"])
def test_decoding_arrays_that_are_called_ids(key: str, tmp_path: Path) -> None:
    names = {"features_key": "features", "labels_key": "labels", key: "ids"}
    np.savez(tmp_path / "a.npz", **{names["features_key"]: SOURCE.features, names["labels_key"]: SOURCE.labels})
    krstore.encode(krstore.open_archive(tmp_path / "a.npz", **names), tmp_path / "a.krs", "raw")
    for suffix in ("h5", "npz", "safetensors"):
        path = krstore.decode(tmp_path / "a.krs", tmp_path / f"again.{suffix}", ids=[3, 1])
        again = krstore.open_archive(path, **names)
        np.testing.assert_array_equal(again.read(np.arange(2)), SOURCE.features[[3, 1]])
        np.testing.assert_array_equal(again.labels, SOURCE.labels[[3, 1]])
    with np.load(tmp_path / "again.npz") as arrays:
        np.testing.assert_array_equal(arrays["source_ids"], [3, 1])


def test_decoding_does_not_depend_on_what_is_around_it(tmp_path: Path) -> None:
    store = krstore.encode(
        example_source(200, (8, 8, 8)), tmp_path / "x.krs", "autoencoder", ratio=8, settings={"iterations": 5},
        device="cpu",
    )  # fmt: skip
    expected = store.read(slice(None))
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(store.read(slice(None)), expected)
