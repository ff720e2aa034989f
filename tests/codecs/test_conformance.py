"""Every registered codec keeps the contract. A new one needs a line in SETTINGS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import krstore
import krstore.registry
from krstore.codec import Kind
from krstore.testing import check_codec, check_snapshot_codec

SETTINGS: dict[str, dict[str, Any]] = {
    "raw": {},
    "autoencoder": {"iterations": 12},
    "krnet": {"iterations": 12},
    "transform": {"iterations": 12, "width": 8},
    "pq": {"iterations": 4, "train_points": 16},
    "herding": {},
    "random": {},
    "kmeans": {},
    "webp": {},
    "webp_lossless": {},
    "packnet": {},
    "packnet_quantised": {},
}
SLOW = ("random", "kmeans", "webp_lossless")  # as herding and webp, but for what they choose or keep
EXTRAS = {"pq": "faiss", "webp": "PIL", "webp_lossless": "PIL"}
ACCEPTED: dict[str, dict[str, Any]] = {
    name: {"shapes": ((3, 16, 16),), "dtypes": ("uint8",)} for name in ("webp", "webp_lossless")
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in krstore.codec_names()]
)
def test_conforms(name: str, tmp_path: Path) -> None:
    if name in ("mnemonics", "mnemonics_released", "recompute"):
        pytest.skip("it needs a network, which the suite does not give; it has tests of its own")
    assert name in SETTINGS, f"codec {name!r} is registered, but nobody said how to test it"
    if name in EXTRAS:
        pytest.importorskip(EXTRAS[name])
    if krstore.registry.get_codec(name).kind is Kind.SNAPSHOT:
        check_snapshot_codec(name, tmp_path, settings=SETTINGS[name])
        return
    check_codec(name, tmp_path, settings=SETTINGS[name], **ACCEPTED.get(name, {}))


@pytest.mark.slow
def test_krnet_with_codes_conforms(tmp_path: Path) -> None:
    check_codec("krnet", tmp_path, settings={"iterations": 12, "latent": 3})


@pytest.mark.slow
def test_transform_of_tiles_conforms(tmp_path: Path) -> None:
    check_codec("transform", tmp_path, settings={"width": 0, "tile": 2})


def test_every_tested_codec_is_registered() -> None:
    assert set(SETTINGS) <= set(krstore.codec_names())


@pytest.mark.parametrize("name", ["uniform", "first"])
def test_a_third_partys_codecs_conform(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = str(Path(__file__).parent.parent / "fake_codec")
    monkeypatch.syspath_prepend(fake)
    monkeypatch.setenv("PYTHONPATH", fake)  # for the other process that decodes
    check_codec(name, tmp_path)


@pytest.mark.parametrize("name", ["deltas", "rounded"])
def test_a_third_partys_snapshot_codecs_conform(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "fake_codec"))
    check_snapshot_codec(name, tmp_path)
