"""The demo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import krstore
from krstore.demonstration import demonstrate
from krstore.errors import OutputError
from krstore_cli.app import run
from krstore_cli.commands.demo import summary


def test_a_small_demo_end_to_end(tmp_path: Path) -> None:
    found = demonstrate(tmp_path / "demo", codecs=("raw", "pq"), ratios=(20,), epochs=4, device="cpu")
    source = krstore.open_archive(tmp_path / "demo" / "features.h5")
    assert source.spec.shape == (16, 8, 8)
    assert source.spec.samples == found.train_images == 1297
    assert found.test_images == 500
    assert [row["codec"] for row in found.comparison.rows] == ["raw", "pq"]
    assert found.network_accuracy > 0.8
    assert found.accuracy[0] == pytest.approx(found.network_accuracy, abs=0.05)
    assert all(value is not None and value > 0.8 for value in found.accuracy)
    assert "raw" in summary(found)
    assert f"{100 * (found.accuracy[1] or 0):.1f} %" in summary(found)
    with pytest.raises(OutputError, match="not empty"):
        demonstrate(tmp_path / "demo", codecs=("raw",))


def test_a_ratio_out_of_reach_leaves_a_row_without_accuracy(tmp_path: Path) -> None:
    found = demonstrate(tmp_path, codecs=("raw", "pq"), ratios=(50_000,), epochs=1, device="cpu")
    assert found.accuracy[0] is not None
    assert found.accuracy[1:] == [None]


@pytest.mark.slow
def test_the_demo_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "-o", str(tmp_path / "demo"), "--json", "-q"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["codec"] for row in told["rows"]] == [
        "raw",
        *["pq"] * 3,
        *["transform"] * 3,
        *["autoencoder"] * 3,
        *["krnet"] * 3,
    ]
    assert len(told["accuracy"]) == 10
    assert min(told["accuracy"]) > 0.9
    assert (tmp_path / "demo" / "rate_distortion.png").read_bytes().startswith(b"\x89PNG")
