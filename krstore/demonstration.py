"""The demo: real images, a small network, its feature maps through every codec, and a classifier retrained from them.

Scikit-learn's 1,797 handwritten digits (8x8) are split into training and test images. A small CNN learns the training
images; its middle layer's feature maps of them (16x8x8 float32) become an archive, and the archive stores. From each
store alone the layers after the middle are learned anew, and tested on the features of the test images.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from krstore.archives import write_archive
from krstore.comparison import compare
from krstore.comparison_folder import Comparison
from krstore.errors import OutputError
from krstore.extraction import extract
from krstore.plots import require_matplotlib
from krstore.progress import SILENT, Progress
from krstore.source import SourceSpec
from krstore.store.reader import Store
from krstore.tensors import resolve_device

__all__ = ["CODECS", "LAYER", "RATIOS", "Demonstration", "DigitNet", "demonstrate"]

CODECS = ("raw", "pq", "transform", "autoencoder", "krnet")
RATIOS = (10.0, 20.0, 40.0)
LAYER = "body"
CHANNELS, CLASSES, TEST_IMAGES = 16, 10, 500
Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


class DigitNet(nn.Module):
    """Images (n, 1, 8, 8) to ten logits: `body` to feature maps (n, 16, 8, 8), then `head`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS), nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS), nn.ReLU(),
        )  # fmt: skip
        self.head = _head()

    def forward(self, images: Tensor) -> Tensor:
        """Classify images."""
        return torch.as_tensor(self.head(self.body(images)))


@dataclass(frozen=True)
class Demonstration:
    """What the demo found.

    Attributes:
        comparison: the stores, with sizes, quality and times.
        train_images, test_images: how many.
        iterations: that the codecs which train were given.
        network_accuracy: of the network that the features come from, on the test images, 0 to 1.
        accuracy: the same for each row of the comparison: of a head retrained from that store alone; `None` for a
            row without a store. The lossless store's is the accuracy from the raw features.
    """

    comparison: Comparison
    train_images: int
    test_images: int
    iterations: int
    network_accuracy: float
    accuracy: list[float | None]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute with one thread: on tensors as small as these, threads wait more than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def demonstrate(
    folder: str | Path,
    *,
    codecs: Sequence[str] = CODECS,
    ratios: Sequence[float] = RATIOS,
    iterations: int = 200,
    epochs: int = 10,
    device: str = "auto",
    seed: int = 0,
    force: bool = False,
    progress: Progress = SILENT,
) -> Demonstration:
    """Run the demo into a folder: ``images.npz``, ``features.h5``, and what `krstore.compare` writes.

    Args:
        folder: created when it is missing.
        codecs, ratios: what is compared.
        iterations: of the codecs that train, far fewer than by default, so that all is done within a minute or two.
        epochs: of the network, and of every head.
        device: where to compute.
        seed: of everything random.
        force: use a folder that is not empty, and replace what is there.
        progress: shown how it goes.

    Raises:
        OutputError: the folder is not empty, or cannot be written.
        MissingExtraError: matplotlib or faiss is not installed.
    """
    require_matplotlib()
    device = resolve_device(device)
    folder = Path(folder)
    _make(folder, force)
    images, labels = _digits()
    order = np.random.default_rng(seed).permutation(len(labels))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    network, accuracy = _train_network(images, labels, train, test, epochs, device, seed, progress)
    _write_images(folder / "images.npz", images[train], labels[train])
    source = extract(
        network, LAYER, folder / "images.npz", folder / "features.h5", layout="nchw", device=device, force=force,
        progress=progress,
    )  # fmt: skip
    settings = {name: {"iterations": iterations} for name in codecs if name in ("transform", "autoencoder", "krnet")}
    comparison = compare(
        source, folder, codecs, ratios, settings=settings, device=device, seed=seed, force=force, progress=progress
    )
    with torch.inference_mode():
        test_features = network.body(_inputs(images[test], device))
    test_labels = torch.from_numpy(labels[test]).to(device)

    def retrained(row: Mapping[str, Any]) -> float | None:
        if row["error"] is not None:
            return None
        with Store(folder / row["path"], device=device) as store:
            return _accuracy(_retrain_head(store, epochs, device, seed), test_features, test_labels)

    found = []
    with progress.task("retrain", len(comparison.rows), "stores") as task:
        for row in comparison.rows:
            found.append(retrained(row))
            task.advance()
    return Demonstration(comparison, len(train), len(test), iterations, accuracy, found)


def _make(folder: Path, force: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not force:
            raise OutputError(f"{folder} is not empty; use --force (force=True) to replace the demo's files, or -o")
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror}") from error


def _digits() -> tuple[np.ndarray[Any, np.dtype[np.uint8]], np.ndarray[Any, np.dtype[np.int64]]]:
    """Return images (N, 1, 8, 8), their 17 grey levels spread over uint8, and labels (N,)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None], digits.target.astype(np.int64)


def _write_images(path: Path, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> None:
    spec = SourceSpec(
        samples=len(images), shape=images.shape[1:], dtype="uint8", channel_axis=0, features_key="images"
    )  # fmt: skip
    with write_archive(path, spec, {"labels": labels}) as writer:
        writer.append(images)


def _inputs(images: np.ndarray[Any, np.dtype[np.uint8]], device: str) -> Tensor:
    """Scale images as `krstore.extract` does."""
    return torch.from_numpy(images).to(device).float() / 255


def _head() -> nn.Module:
    return nn.Sequential(
        nn.MaxPool2d(2), nn.Conv2d(CHANNELS, 2 * CHANNELS, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(2 * CHANNELS, CLASSES),
    )  # fmt: skip


def _train_network(
    images: np.ndarray[Any, np.dtype[np.uint8]], labels: np.ndarray[Any, Any], train: np.ndarray[Any, Any],
    test: np.ndarray[Any, Any], epochs: int, device: str, seed: int, progress: Progress,
) -> tuple[DigitNet, float]:  # fmt: skip
    x, y = _inputs(images, device), torch.from_numpy(labels).to(device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = DigitNet().to(device)
    rng = np.random.default_rng([seed, 1])

    def batches() -> Iterable[tuple[Tensor, Tensor]]:
        for ids in np.array_split(rng.permutation(train), len(train) // 64):
            picked = torch.from_numpy(ids).to(device)
            yield x[picked], y[picked]

    with progress.task("train the network", epochs, "epochs") as task:
        _fit(network, batches, epochs, task.advance)
    held_out = torch.from_numpy(test).to(device)
    return network, _accuracy(network, x[held_out], y[held_out])


def _retrain_head(store: Store, epochs: int, device: str, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        head = _head().to(device)
    replay = store.replay(batch_size=64, device=device, seed=seed)
    _fit(head, lambda: replay, epochs)
    return head


def _fit(network: nn.Module, batches: Batches, epochs: int, done: Callable[[], None] = lambda: None) -> None:
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    network.train()
    for _ in range(epochs):
        for x, y in batches():
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        schedule.step()
        done()
    network.eval()


def _accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.inference_mode():
        return float((network(x).argmax(1) == y).float().mean())
