"""Makes the archives that the other benchmarks measure on, from images and a ResNet-32's weights.

`--data`, or KRSTORE_DATA, names a folder with the binary files of CIFAR-100 as published, or with `train.npz` and
`test.npz`, of `images` (N, 32, 32, 3) uint8 and `labels` (N,); and with `weights.safetensors`, of the network after the
first fifty classes of the order `lucir`. Each archive gets a folder in the output, with the images that it is of.

    late          layer3.0, 64x8x8, 10,000 images of 20 classes; features_test.h5 is of held-out images
    early         layer2.0, 32x16x16, of 4,000 of them
    first         layer1.4, 16x32x32, of 4,000 of them
    images        3x32x32 uint8
    embeddings    the pooled output, 64 numbers
    tokens        65x64, after the second layer of a small vision transformer trained on all images for some minutes
    small         16x16x3 uint8, train.h5 and test.h5: all images of the 20 classes, four pixels averaged to one
    halved        the same of all classes
    incremental   layer3.0 of all images, train.h5 and test.h5, and the images themselves in a folder `images`: what the
                  benchmarks of incremental learning on features take as `--data`
    late_1000     as late, of so many images of all classes; beyond their number, of flipped ones as well
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import krstore
from krstore.learning.data import open_dataset
from krstore.modules import load_module
from krstore.source import Array, Source, chunks

MEAN, SPREAD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
MODEL = "krstore.backbones:resnet32"
KINDS = ("late", "early", "first", "images", "embeddings", "tokens", "small", "halved", "incremental")
EPOCHS, BATCH = 3, 128

Arrays = dict[str, Array]


class VisionTransformer(nn.Module):
    """Patches of 4x4 pixels and a class token, pre-norm layers of width 64."""

    def __init__(self, classes: int, width: int = 64, layers: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.start = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, 65, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, classes)."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.start.expand(len(x), -1, -1), x], 1) + self.places
        for layer in self.layers:
            x = layer(x)
        return torch.as_tensor(self.head(self.norm(x[:, 0])))


def normalised(images: Array) -> Tensor:
    """Return images (n, 32, 32, 3) as the networks take them (n, 3, 32, 32)."""
    scaled = (images.astype(np.float32) / 255 - MEAN) / SPREAD
    return torch.from_numpy(scaled.transpose(0, 3, 1, 2).astype(np.float32))


def transformer(images: Array, labels: Array) -> VisionTransformer:
    """Return a transformer trained on the images."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network = VisionTransformer(int(labels.max()) + 1)
    batches = max(1, len(images) // BATCH)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, EPOCHS * batches)
    for _ in range(EPOCHS):
        for ids in np.array_split(rng.permutation(len(images)), batches):
            batch = normalised(images[ids])
            loss = F.cross_entropy(
                network(batch.flip(3) if rng.random() < 0.5 else batch), torch.from_numpy(labels[ids])
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        print(f"transformer: loss {float(loss.detach()):.3f}", file=sys.stderr)
    return network.eval()


def few_classes(data: Arrays, classes: Array) -> Arrays:
    """Return the images of these classes."""
    chosen = np.isin(data["labels"], classes)
    return {name: values[chosen] for name, values in data.items()}


def of_number(data: Arrays, count: int) -> Arrays:
    """Return so many images of all classes, chosen at random; flipped copies where there are too few."""
    order = np.random.default_rng(0).permutation(len(data["labels"]))
    chosen = np.sort(order[:count])
    images, labels = data["images"][chosen], data["labels"][chosen]
    more = np.sort(order[: count - len(chosen)])
    flipped = data["images"][more, :, ::-1]
    return {"images": np.concatenate([images, flipped]), "labels": np.concatenate([labels, data["labels"][more]])}


def halved(images: Array) -> Array:
    """Return images (n, H, W, 3) of half the side, uint8."""
    n, height, width, channels = images.shape
    quarters = images.reshape(n, height // 2, 2, width // 2, 2, channels)
    return np.rint(quarters.mean((2, 4))).astype(np.uint8)


def features(folder: Path, weights: Path, layer: str, data: Arrays, name: str = "features") -> Source:
    """Write the archive of a layer's outputs, and the images and weights beside it."""
    images = folder / ("images.npz" if name == "features" else f"{name}_images.npz")
    np.savez(images, **data)
    shutil.copy(weights, folder / "weights.safetensors")
    return krstore.extract(
        MODEL, layer, images, folder / f"{name}.h5", weights=weights, mean=MEAN, std=SPREAD, force=True
    )


def make(kind: str, folder: Path, train: Arrays, test: Arrays, weights: Path) -> None:
    """Make an archive."""
    classes = np.unique(train["labels"])
    order = np.random.RandomState(1993).permutation(len(classes))  # the class-incremental papers'
    few = few_classes(train, classes[order[:20]])
    match kind.partition("_")[0], kind.partition("_")[2]:
        case "late", "":
            features(folder, weights, "layer3.0", few)
            features(folder, weights, "layer3.0", few_classes(test, classes[order[:20]]), "features_test")
        case "late", count:
            features(folder, weights, "layer3.0", of_number(train, int(count)))
        case "early", _:
            features(folder, weights, "layer2.0", of_number(few, 4000))
        case "first", _:
            features(folder, weights, "layer1.4", of_number(few, 4000))
        case "images", _:
            _write(folder / "features.h5", few["images"].transpose(0, 3, 1, 2), few["labels"])
        case "small", _:
            for name, data in (("train", few), ("test", few_classes(test, classes[order[:20]]))):
                _write(folder / f"{name}.h5", halved(data["images"]), data["labels"])
        case "halved", _:
            for name, data in (("train", train), ("test", test)):
                _write(folder / f"{name}.h5", halved(data["images"]), data["labels"])
        case "incremental", _:
            (folder / "images").mkdir()
            for name, data in (("train", train), ("test", test)):
                features(folder, weights, "layer3.0", data, name)
                (folder / f"{name}_images.npz").unlink()
                _write(folder / "images" / f"{name}.h5", data["images"], data["labels"])
        case "embeddings", _:
            late = features(folder, weights, "layer3.0", few, "late")
            tail = load_module("krstore.backbones:resnet32_tail", weights)
            with torch.inference_mode():
                pooled = [tail(torch.from_numpy(part)).numpy() for _, part in chunks(late, 1 << 24)]
            _write(folder / "features.h5", np.concatenate(pooled), few["labels"])
            for name in ("late.h5", "late_images.npz", "weights.safetensors"):
                (folder / name).unlink()
        case "tokens", _:
            images = folder / "tokens.npz"
            np.savez(images, **few)
            network = transformer(train["images"], train["labels"])
            krstore.extract(network, "layers.1", images, folder / "features.h5", mean=MEAN, std=SPREAD, force=True)
        case _:
            raise SystemExit(f"{kind!r} is no kind of archive; known: {', '.join(KINDS)}, late_NUMBER")


def _write(path: Path, values: Array, labels: Array) -> None:
    with h5py.File(path, "w") as file:
        file["features"], file["labels"] = values, labels


def images_in(folder: Path) -> tuple[Arrays, Arrays]:
    """Return the training and the test images of a folder."""
    if (folder / "train.npz").exists():
        return dict(np.load(folder / "train.npz")), dict(np.load(folder / "test.npz"))
    dataset = open_dataset(folder)
    if (dataset.train.spec.dtype, dataset.train.spec.channel_axis, dataset.train.spec.shape) != (
        "uint8",
        0,
        (3, 32, 32),
    ):
        raise SystemExit(
            f"{folder} has {dataset.train.spec.shape} {dataset.train.spec.dtype}; expected images of CIFAR"
        )
    train, test = (
        {
            "images": source.read(np.arange(source.spec.samples)).transpose(0, 2, 3, 1),
            "labels": np.asarray(source.labels),
        }
        for source in (dataset.train, dataset.test)
    )
    return train, test


def main() -> None:
    """Make the archives that are not there yet."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.archives", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = os.environ.get("KRSTORE_DATA")
    parser.add_argument("--data", type=Path, required=known is None, default=known and Path(known))
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("kinds", nargs="*", default=KINDS)
    given = parser.parse_args()
    train, test = images_in(given.data)
    for kind in given.kinds:
        folder, partial = given.output / kind, given.output / f"{kind}.partial"
        if not folder.exists():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            make(kind, partial, train, test, given.data / "weights.safetensors")
            partial.rename(folder)


if __name__ == "__main__":
    main()
