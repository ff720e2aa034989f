"""autoencoder: the paper's latents to the byte, sizes that spend a target, one sample alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import krstore
from krstore.config import build_config
from krstore.errors import TargetUnreachableError
from krstore.source import SourceSpec
from krstore.testing import ArraySource, example_source
from krstore_codecs._networks import build_decoder, build_encoder
from krstore_codecs.autoencoder import Autoencoder

TABLE_II = {64_817: "253.19 MB", 129_395: "505.45 MB", 194_217: "758.66 MB", 255_224: "996.97 MB", 319_811: "1.22 GB"}


def paper(name: str, **changes: Any) -> Autoencoder:
    return Autoencoder(build_config("autoencoder", Autoencoder.Config, Autoencoder.presets, name, changes))


def spec_of(shape: tuple[int, ...], samples: int) -> SourceSpec:
    return SourceSpec(samples=samples, shape=shape, dtype="float32", channel_axis=0)


def encode(path: Path, source: ArraySource, **options: Any) -> krstore.Store:
    settings = {"iterations": 5} | options.pop("settings", {})
    return krstore.encode(source, path, "autoencoder", settings=settings, device="cpu", **options)


@pytest.mark.parametrize("samples", [1, 777])
def test_table_ii_latents_to_the_byte(tmp_path: Path, samples: int) -> None:
    """1024 floats a sample and nothing else, in a real store; so the paper's numbers follow."""
    source = ArraySource(np.random.default_rng(0).random((samples, 2), np.float32))
    small = {"d0": 8, "c0": 4, "iterations": 1}
    store = encode(tmp_path / "x.krs", source, preset="paper-imagenet", settings=small)
    assert store.bytes.latent == samples * 1024 * 4
    for paper_samples, printed in TABLE_II.items():
        total = store.bytes.latent // samples * paper_samples
        assert printed == (f"{total / 2**20:.2f} MB" if total < 2**30 else f"{total / 2**30:.2f} GB")


def test_decoder_has_the_papers_size() -> None:
    """325.8 MB of 2^20 bytes for ImageNet (Sec. IV-B1)."""
    sizes = paper("paper-imagenet").plan(spec_of((256, 14, 14), 64_817), budget=0).sizes.decoder
    with torch.device("meta"):
        weights = sum(p.numel() for p in build_decoder(sizes).parameters())
    assert 4 * weights / 2**20 == pytest.approx(325.8, rel=5e-4)
    assert sizes.width == 1024


@pytest.mark.parametrize("preset", ["paper-cifar", "paper-imagenet"])
def test_encoder_mirrors_the_decoder(preset: str) -> None:
    sizes = paper(preset, d0=8, c0=4, latent=6).plan(spec_of((4, 6, 6), 50), budget=0).sizes.decoder
    encoder, decoder = build_encoder(sizes).eval(), build_decoder(sizes).eval()
    latents = encoder(torch.rand(3, 4, 6, 6))
    assert latents.shape == (3, 6)
    assert decoder(latents).shape == (3, 4, 6, 6)
    counts = [sum(p.numel() for p in network.parameters() if p.dim() > 1) for network in (encoder, decoder)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("style", ["paper", "residual"])
def test_the_encoder_is_not_in_the_file(tmp_path: Path, style: str) -> None:
    settings = {"style": style, "weights": "float32", "latent": 4, "d0": 8, "c0": 4}
    store = encode(tmp_path / "x.krs", example_source(100), ratio=1.0, settings=settings)
    sizes = Autoencoder(build_config("autoencoder", Autoencoder.Config, {}, settings=store.config)).plan(
        store.source, budget=0
    )
    decoder = sum(p.numel() for p in build_decoder(sizes.sizes.decoder).parameters())
    assert store.header.members["payload/network/weights"].bytes == 4 * decoder


def test_latents_are_standardised_before_they_are_quantised() -> None:
    torch.manual_seed(0)
    sizes = paper("paper-cifar", d0=8, c0=4, latent=6).plan(spec_of((4, 6, 6), 50), budget=0).sizes.decoder
    latents = build_encoder(sizes).train()(torch.rand(200, 4, 6, 6))
    torch.testing.assert_close(latents.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std(0, correction=0), torch.ones(6), atol=1e-2, rtol=0)


@pytest.mark.parametrize("shape", [(4, 3, 3), (5,), ()])
def test_one_sample_alone(tmp_path: Path, shape: tuple[int, ...]) -> None:
    features = np.random.default_rng(0).random((1, *shape), np.float32)
    store = encode(tmp_path / "x.krs", ArraySource(features, np.array([4])), max_bytes=20_000)
    assert store.read([0]).shape == features.shape


def test_a_larger_target_buys_latents_and_weights() -> None:
    codec, spec = Autoencoder(Autoencoder.Config()), spec_of((16, 8, 8), 2000)
    plans = [codec.plan(spec, budget) for budget in (50_000, 200_000, 800_000)]
    widths = [plan.sizes.decoder.width for plan in plans]
    assert widths == sorted(set(widths))
    for plan, budget in zip(plans, (50_000, 200_000, 800_000), strict=True):
        assert plan.network_bytes <= 0.9 * budget


def test_the_smallest_network_must_fit() -> None:
    with pytest.raises(TargetUnreachableError, match=r"its smallest network here takes about [\d,]+ bytes"):
        Autoencoder(Autoencoder.Config()).plan(spec_of((16, 8, 8), 2000), budget=500)


def test_dead_channels_are_exact(tmp_path: Path) -> None:
    features = np.random.default_rng(0).random((60, 3, 4, 4), np.float32)
    features[:, 2] = -1.3
    decoded = encode(tmp_path / "x.krs", ArraySource(features), ratio=1.0).read(slice(None))
    np.testing.assert_array_equal(decoded[:, 2], features[:, 2])
