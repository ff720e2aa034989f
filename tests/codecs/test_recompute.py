"""Features kept as the images and the network that they were computed from."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from payloads import MemoryPayload
from safetensors.torch import load, save, save_file

import krstore
from krstore.archives import open_archive
from krstore.backbones import resnet8
from krstore.checkpoint import Checkpoint
from krstore.codec import FitContext, OpenContext
from krstore.errors import CorruptStoreError, UsageError
from krstore.progress import SILENT
from krstore.source import Source, scan
from krstore.testing import ArraySource
from krstore_codecs.raw import Raw
from krstore_codecs.recompute import NETWORK, WEIGHTS, Recompute

pytest.importorskip("PIL.Image")
LAYER = "layer1.0"
SAMPLES = 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images, the weights of a network, and an archive of one of its early layers."""
    folder = tmp_path_factory.mktemp("recompute")
    y, x = np.mgrid[:16, :16]
    slopes = np.random.default_rng(0).normal(size=(SAMPLES, 2, 1, 1, 3))
    pixels = 128 + 6 * (slopes[:, 0] * y[..., None] + slopes[:, 1] * x[..., None])
    np.savez(folder / "images.npz", images=pixels.clip(0, 255).astype(np.uint8), labels=np.arange(SAMPLES) % 3)
    torch.manual_seed(0)
    save_file(resnet8(classes=7).state_dict(), folder / "weights.safetensors")
    krstore.extract(
        "krstore.backbones:resnet8", LAYER, folder / "images.npz", folder / "features.h5", device="cpu",
        weights=folder / "weights.safetensors", model_args={"classes": 7}, mean=[0.5], std=[0.25],
    )  # fmt: skip
    return folder


def settings(folder: Path, **others: Any) -> dict[str, Any]:
    return {"images": str(folder / "images.npz"), "weights": str(folder / "weights.safetensors"), **others}


def test_images_that_fit_are_lossless_and_give_the_features_back(folder: Path, tmp_path: Path) -> None:
    store = krstore.encode(
        folder / "features.h5", tmp_path / "a.krs", "recompute", settings=settings(folder), ratio=50, device="cpu"
    )
    original = open_archive(folder / "features.h5")
    np.testing.assert_allclose(store.read(slice(None)), original.read(np.arange(SAMPLES)), atol=1e-5)
    np.testing.assert_allclose(store.decode_tensor(np.array([149, 3])), original.read(np.array([149, 3])), atol=1e-5)
    np.testing.assert_array_equal(store.labels, original.labels)
    assert store.read([]).shape == (0, 16, 16, 16)
    assert store.quality.nmse < 1e-10
    assert store.bytes.network < 4 * sum(t.numel() for t in resnet8().state_dict().values()) / 5, "all of the network"


def test_a_smaller_target_makes_the_images_lossy(folder: Path, tmp_path: Path) -> None:
    sizes = [
        krstore.encode(
            folder / "features.h5", tmp_path / f"{ratio}.krs", "recompute", settings=settings(folder), ratio=ratio,
            device="cpu",
        )
        for ratio in (50, 75)
    ]  # fmt: skip
    assert sizes[1].ratio >= 75
    assert sizes[0].quality.nmse < sizes[1].quality.nmse < 1


@pytest.mark.parametrize("codec", ["raw", "webp_lossless"])
def test_a_named_codec_stores_the_images(codec: str, folder: Path, tmp_path: Path) -> None:
    store = krstore.encode(
        folder / "features.h5", tmp_path / "a.krs", "recompute", settings=settings(folder, codec=codec), ratio=10,
        device="cpu",
    )  # fmt: skip
    assert store.quality.nmse < 1e-10


def changed(source: Source, **attributes: Any) -> Source:
    """Return the archive in memory with other attributes; `None` takes one away."""

    kept = {name: value for name, value in {**source.spec.attributes, **attributes}.items() if value is not None}
    return ArraySource(
        source.read(np.arange(source.spec.samples)), source.labels, channel_axis=source.spec.channel_axis,
        attributes=kept,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("attributes", "own", "message"),
    [
        ({}, {"images": None}, "--set images=FILE"),
        ({"layer": None}, {}, "attributes lack layer"),
        ({"model": "os:system"}, {}, "a store may name only those of krstore.backbones, because"),
        ({"model_args": {"classes": "DEFAULT"}}, {}, "arguments .* Expected `bool | int`"),
        ({"weights_sha256": "0" * 64}, {}, "not those that the features were computed with"),
        ({"mean": [0.4]}, {}, "image 0 does not give the features of sample 0"),
        ({}, {"codec": "herding"}, "codec=herding does not store images"),
        ({}, {"codec": "recompute"}, "codec=recompute does not store images"),
    ],
)
def test_what_it_cannot_compute_again_is_refused(
    attributes: dict[str, Any], own: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    source = changed(open_archive(folder / "features.h5"), **attributes)
    with pytest.raises(UsageError, match=message):
        krstore.encode(source, tmp_path / "a.krs", "recompute", settings={**settings(folder), **own}, device="cpu")
    assert not (tmp_path / "a.krs").exists()


def test_other_images_are_refused(folder: Path, tmp_path: Path) -> None:
    with np.load(folder / "images.npz") as file:
        np.savez(tmp_path / "turned.npz", images=file["images"][::-1])
        np.savez(tmp_path / "fewer.npz", images=file["images"][1:])
    for name, message in (("turned", "does not give the features of sample 0"), ("fewer", "holds 149; the archive")):
        with pytest.raises(UsageError, match=message):
            krstore.encode(
                folder / "features.h5", tmp_path / "a.krs", "recompute", device="cpu",
                settings=settings(folder, images=str(tmp_path / f"{name}.npz")),
            )  # fmt: skip


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"model": "os:system"}, "expected one of"),
        ({"model": "krstore.backbones:nothing"}, "expected one of"),
        ({"model_args": {"pretrained": 1}}, "cannot be built again"),
        ({"model_args": {"classes": 8}}, "cannot be built again"),
        ({"dtype": "nonsense"}, "cannot be read"),
        ({"layout": "zzz"}, "cannot be read"),
        ({"shape": [1 << 20, 8, 3]}, "cannot be read"),
        ({"model_args": {"classes": 1 << 40}}, "cannot be read"),
        ({"layer": "layer9"}, "cannot be built again"),
        ({"codec": "herding"}, "stores no images"),
        ({"codec": "recompute"}, "stores no images"),
        ({"divisor": 0}, "cannot be read"),
        ({"mean": [0.0, 1.0]}, "cannot be built again"),
        ({"layer": "layer2.0"}, "the layer answers"),
    ],
)
def test_a_network_that_is_not_what_it_should_be(own: dict[str, Any], message: str, folder: Path) -> None:
    payload = MemoryPayload()
    payload.write(NETWORK, msgspec.json.encode({
        "model": "krstore.backbones:resnet8", "model_args": {"classes": 7}, "layer": LAYER, "layout": "nhwc",
        "divisor": 255, "mean": None, "std": None, "codec": "raw", "shape": [8, 8, 3], "dtype": "uint8",
        "channel_axis": 2, **own,
    }))  # fmt: skip
    payload.write(WEIGHTS, (folder / "weights.safetensors").read_bytes())
    raw, images = Raw(Raw.Config()), ArraySource(np.zeros((4, 8, 8, 3), np.uint8))
    context = FitContext(
        budget=None, max_mse=None, device="cpu", seed=0, progress=SILENT, checkpoint=Checkpoint(None),
        stats=scan(images),
    )  # fmt: skip
    raw.pack(raw.fit(images, context), 0.0, payload)
    spec = replace(open_archive(folder / "features.h5").spec, samples=4, shape=(16, 8, 8))
    with pytest.raises(CorruptStoreError, match=message):
        Recompute.open(payload, OpenContext(spec=spec, kept=4, labels=None, device="cpu")).decode(np.arange(2))


def test_a_store_without_a_weight_is_corrupt_and_reading_leaves_random_numbers_alone(
    folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.krs"
    whole = krstore.encode(folder / "features.h5", path, "recompute", settings=settings(folder), ratio=50, device="cpu")
    before = torch.get_rng_state()
    whole.read([0])
    krstore.open(path, device="cpu").read([1])
    assert torch.equal(before, torch.get_rng_state())
    with zipfile.ZipFile(path) as file:
        payload = MemoryPayload()
        for name in file.namelist():
            if name.startswith("payload/"):
                payload.write(name.removeprefix("payload/"), file.read(name))
    weights = load(payload.read(WEIGHTS))
    del weights["layer1.0.conv2.weight"]
    payload.write(WEIGHTS, save(weights))
    context = OpenContext(spec=open_archive(folder / "features.h5").spec, kept=SAMPLES, labels=None, device="cpu")
    with pytest.raises(CorruptStoreError, match=r"it lacks layer1\.0\.conv2\.weight"):
        Recompute.open(payload, context)
    payload.write(WEIGHTS, save({**weights, "other": torch.zeros(1)}))
    with pytest.raises(CorruptStoreError, match="it has no other"):
        Recompute.open(payload, context)


def test_lossless_images_are_taken_where_they_are_smaller_than_lossy_ones(folder: Path, tmp_path: Path) -> None:
    lossless = krstore.encode(
        folder / "features.h5", tmp_path / "a.krs", "recompute", device="cpu", ratio=10,
        settings=settings(folder, codec="webp_lossless"),
    )  # fmt: skip
    store = krstore.encode(
        folder / "features.h5", tmp_path / "b.krs", "recompute", device="cpu", settings=settings(folder),
        max_bytes=lossless.bytes.file + 200,
    )  # fmt: skip
    assert store.quality.nmse < 1e-10
    assert store.bytes.file <= lossless.bytes.file + 200
