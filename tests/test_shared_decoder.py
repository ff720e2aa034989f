"""An encode with another store's decoder: the same network, byte for byte, and new samples nearly as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import krstore
from krstore.errors import DecoderMismatchError, TargetUnreachableError, UsageError
from krstore.progress import SILENT
from krstore.testing import ArraySource, example_source


def patterns(samples: int, seed: int) -> ArraySource:
    """Rectified mixtures of patterns that all seeds share."""
    fields = np.random.default_rng(99).normal(size=(5, 12, 6, 6))
    rng = np.random.default_rng(seed)
    values = np.einsum("nk,kchw->nchw", rng.normal(size=(samples, 5)), fields) + 0.1 * rng.normal(
        size=(samples, 12, 6, 6)
    )
    return ArraySource(np.maximum(values, 0).astype(np.float32), rng.integers(0, 3, samples))


def network(store: krstore.Store) -> dict[str, str]:
    shared = ("sizes", "normaliser", "weights")
    return {name: store.header.members[f"payload/network/{name}"].sha256 for name in shared}


@pytest.mark.parametrize("settings", [{"width": 0}, {"width": 8, "iterations": 100}])
def test_the_network_is_the_same_and_the_error_is_close(tmp_path: Path, settings: dict[str, Any]) -> None:
    first = krstore.encode(patterns(600, 0), tmp_path / "a.krs", ratio=20, settings=settings, device="cpu")
    own = krstore.encode(patterns(600, 1), tmp_path / "b.krs", ratio=20, settings=settings, device="cpu")
    given = {name: value for name, value in settings.items() if name == "iterations"}
    shared = krstore.encode(patterns(600, 1), tmp_path / "c.krs", ratio=20, settings=given, decoder=first, device="cpu")
    assert network(shared) == network(first) != network(own)
    assert shared.ratio >= 20
    assert shared.quality.nmse < 1.3 * own.quality.nmse
    assert (shared.config["width"], shared.config["tile"]) == (first.config["width"], first.config["tile"])


@pytest.mark.parametrize(("kind", "fits"), [("dense", False), ("centred", False), ("rare", False), ("faint", True)])
def test_a_channel_that_was_silent_is_not_lost(tmp_path: Path, kind: str, fits: bool) -> None:
    """Unless there is little to lose: a decoder gives such a channel nothing but zeros."""
    old, new = patterns(300, 0), patterns(300, 1)
    old.features[:, 3] = 0
    if kind == "centred":
        new.features[:, 3] -= new.features[:, 3].mean()
    elif kind == "rare":
        new.features[np.arange(300) % 5 > 0, 3] = 0
    elif kind == "faint":
        new.features[:, 3] *= 0.02
    first = krstore.encode(old, tmp_path / "a.krs", ratio=10, preset="linear", device="cpu")
    if fits:
        krstore.encode(new, tmp_path / "b.krs", ratio=10, decoder=first, device="cpu")
        return
    with pytest.raises(DecoderMismatchError, match=r"channel 3 reaches .*clipping would lose .* % of the variance"):
        krstore.encode(new, tmp_path / "b.krs", ratio=10, decoder=first, device="cpu")


@pytest.mark.parametrize("width", [0, pytest.param(16, marks=pytest.mark.slow)])
def test_a_stored_encoder_needs_no_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    settings = {"width": width, "iterations": 300, "encoder": True}
    first = krstore.encode(patterns(600, 0), tmp_path / "a.krs", ratio=8, settings=settings, device="cpu")
    fitted = krstore.encode(
        patterns(600, 1), tmp_path / "b.krs", ratio=8, settings={**settings, "encoder": False}, device="cpu"
    )
    monkeypatch.setattr("krstore_codecs.transform.Trainer", None)
    second = krstore.encode(patterns(600, 1), tmp_path / "c.krs", ratio=8, decoder=first, device="cpu")
    assert second.quality.nmse < 1.3 * fitted.quality.nmse + 0.01
    assert second.config["encoder"]
    names = [name for name in first.header.members if name.startswith("payload/network/") and "step" not in name]
    assert "payload/network/encoder" in names
    for name in names:
        assert second.header.members[name] == first.header.members[name]


def test_targets_hold_with_a_shared_decoder(tmp_path: Path) -> None:
    first = krstore.encode(patterns(600, 0), tmp_path / "a.krs", ratio=20, settings={"width": 0}, device="cpu")
    limit = 0.05 * float(patterns(300, 1).features.var(dtype=np.float64))
    store = krstore.encode(patterns(300, 1), tmp_path / "b.krs", max_mse=limit, decoder=first.path, device="cpu")
    assert 0.9 * limit <= store.quality.mse <= limit
    with pytest.raises(TargetUnreachableError, match="the decoder alone takes"):
        krstore.encode(patterns(300, 1), tmp_path / "c.krs", max_bytes=4000, decoder=first.path, device="cpu")
    assert not (tmp_path / "c.krs").exists()


def test_a_decoder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    raw = krstore.encode(example_source(40), tmp_path / "raw.krs", "raw")
    transform = krstore.encode(patterns(300, 0), tmp_path / "t.krs", ratio=10, settings={"width": 0})
    with pytest.raises(UsageError, match="codec raw cannot use another store's decoder"):
        krstore.encode(example_source(40), tmp_path / "x.krs", "raw", decoder=raw)
    with pytest.raises(UsageError, match="is a store of codec raw"):
        krstore.encode(example_source(40), tmp_path / "x.krs", decoder=raw)
    with pytest.raises(UsageError, match=r"decodes samples of \(12, 6, 6\) float32; these are \(3, 4, 4\) float32"):
        krstore.encode(example_source(40, (3, 4, 4)), tmp_path / "x.krs", decoder=transform)


def test_samples_that_the_decoder_would_clip_are_refused(tmp_path: Path) -> None:
    first = krstore.encode(patterns(300, 0), tmp_path / "a.krs", ratio=10, settings={"width": 0}, device="cpu")
    louder = ArraySource(5 * patterns(300, 1).features)
    with pytest.raises(DecoderMismatchError, match=r"12 of 12 channels leave the range .* Encode without --decoder"):
        krstore.encode(louder, tmp_path / "b.krs", ratio=5, decoder=first, device="cpu")


def test_samples_a_little_out_of_range_are_clipped(tmp_path: Path) -> None:
    first = krstore.encode(patterns(300, 0), tmp_path / "a.krs", ratio=10, settings={"width": 0}, device="cpu")
    notes = Notes()
    louder = ArraySource(1.2 * patterns(300, 1).features)
    store = krstore.encode(louder, tmp_path / "b.krs", ratio=5, decoder=first, device="cpu", progress=notes)
    assert "what is beyond is clipped" in " ".join(notes.said)
    assert store.read(slice(None)).max() <= first.read(slice(None)).max() * 1.5
    assert store.quality.nmse < 0.5


class Notes:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)

    def task(self, description: str, total: int, unit: str = "samples") -> Any:
        return SILENT.task(description, total, unit)


def test_options_that_contradict_the_decoder_are_refused(tmp_path: Path) -> None:
    first = krstore.encode(patterns(300, 0), tmp_path / "a.krs", ratio=10, settings={"width": 0}, device="cpu")
    with pytest.raises(UsageError, match=r"width=16: the decoder given has width=0"):
        krstore.encode(patterns(300, 1), tmp_path / "b.krs", ratio=5, decoder=first, settings={"width": 16})


def test_a_damaged_decoder_is_named(tmp_path: Path) -> None:
    first = krstore.encode(patterns(300, 0), tmp_path / "a.krs", ratio=10, settings={"width": 0}, device="cpu")
    member = first.header.members["payload/network/weights"]
    data = bytearray(first.path.read_bytes())
    place = data.find(b"payload/network/weights") + len("payload/network/weights") + member.bytes // 2
    data[place] ^= 0xFF
    (tmp_path / "bad.krs").write_bytes(data)
    with pytest.raises(krstore.errors.CorruptStoreError, match=r"bad\.krs"):
        krstore.encode(patterns(300, 1), tmp_path / "b.krs", ratio=5, decoder=tmp_path / "bad.krs", device="cpu")
