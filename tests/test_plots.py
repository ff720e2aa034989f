"""Pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from krstore.errors import MissingExtraError, OutputError
from krstore.plots import plot_rate_distortion


def row(codec: str, ratio: float, nmse: float) -> dict[str, Any]:
    return {"codec": codec, "asked_ratio": ratio, "ratio": ratio, "quality": {"nmse": nmse}}


ROWS = [row("krnet", 10, 0.1), row("krnet", 20, 0.2), row("pq", 10, 0.3), row("pq", 20, 0.4)]


def drawn(rows: list[dict[str, Any]], path: Path) -> np.ndarray[Any, Any]:
    plot_rate_distortion(rows, path)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_every_codec_and_a_lossless_store_leave_their_mark(tmp_path: Path) -> None:
    seen = drawn(ROWS, tmp_path / "a.png")
    assert seen.shape[0] > 400
    assert seen.shape[1] > 600
    without_pq = drawn(ROWS[:2], tmp_path / "b.png")
    lossless = drawn([*ROWS, {**row("raw", 2, 0.0), "asked_ratio": None}], tmp_path / "c.png")
    assert np.abs(seen - without_pq).max() > 100
    assert np.abs(seen - lossless).max() > 100


def test_rows_without_a_store_change_nothing(tmp_path: Path) -> None:
    failed = {"codec": "pq", "asked_ratio": 900.0, "error": "cannot"}
    np.testing.assert_array_equal(drawn(ROWS, tmp_path / "a.png"), drawn([*ROWS, failed], tmp_path / "b.png"))


def test_nothing_but_failures_is_still_a_picture(tmp_path: Path) -> None:
    assert drawn([{"codec": "pq", "asked_ratio": 900.0, "error": "cannot"}], tmp_path / "a.png").size


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        plot_rate_distortion(ROWS, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        plot_rate_distortion(ROWS, tmp_path / "missing" / "a.png")


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"krstore\[plots\]"):
        plot_rate_distortion(ROWS, tmp_path / "a.png")
