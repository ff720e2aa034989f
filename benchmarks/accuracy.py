"""What decoded features are worth: the accuracy of a task network trained anew on them alone, against bytes.

`--data` names a folder with `features.h5`, of the ResNet-32's layer `layer3.0`, and `features_test.h5`, of held-out
images. The network after that layer starts from fresh weights and sees what a method decodes to; it is tested on the
held-out features as they are.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import krstore
from benchmarks._common import Run, archive_facts, main
from benchmarks.peers import klt_dct
from krstore.backbones import resnet32_tail
from krstore.source import Array, Source
from krstore.testing import example_source

EPOCHS, SEEDS, BATCH = 15, (0, 1, 2), 128
Method = tuple[str, int, Callable[[Run, Source, Array, int], tuple[int, Array]]]


def measure(run: Run) -> dict[str, Any]:
    """Train on the raw features and on what every method makes of them."""
    source, test = _archives(run)
    features = source.read(np.arange(source.spec.samples))
    held_out = test.read(np.arange(test.spec.samples))
    assert source.labels is not None
    assert test.labels is not None
    classes, labels = np.unique(source.labels, return_inverse=True)
    held_out_labels = np.searchsorted(classes, test.labels)
    rows = []
    for name, ratio, method in METHODS[:2] if run.tiny else METHODS:
        size, decoded = method(run, source, features, ratio)
        seeds = SEEDS[:1] if run.tiny else SEEDS
        accuracy = [
            _accuracy(_trained(decoded, labels, seed, tiny=run.tiny), held_out, held_out_labels) for seed in seeds
        ]
        nmse = float(np.square(features - decoded, dtype=np.float64).mean() / features.var(dtype=np.float64))
        rows.append(
            {
                "name": name, "bytes": size, "ratio": features.nbytes / size, "sample_bytes": size / len(features),
                "nmse": nmse, "accuracy": accuracy, "mean": statistics.mean(accuracy),
                "deviation": statistics.stdev(accuracy) if len(accuracy) > 1 else None,
            }
        )  # fmt: skip
        print(rows[-1], file=sys.stderr)
    return {"archive": archive_facts(source), "epochs": EPOCHS, "test": test.spec.samples, "rows": rows}


def _archives(run: Run) -> tuple[Source, Source]:
    if run.tiny:
        return example_source(200, (8, 8, 8)), example_source(100, (8, 8, 8), seed=1)
    if run.data is None or not run.data.is_dir():
        raise SystemExit("name a folder with features.h5 and features_test.h5 with --data or KRSTORE_DATA")
    return run.source(), krstore.open_archive(run.data / "features_test.h5")


def _raw(run: Run, source: Source, features: Array, ratio: int) -> tuple[int, Array]:
    return features.nbytes, features


def _codec(name: str, **options: Any) -> Callable[[Run, Source, Array, int], tuple[int, Array]]:
    def method(run: Run, source: Source, features: Array, ratio: int) -> tuple[int, Array]:
        given = {"settings": {"iterations": 2}} if run.tiny else options
        store = krstore.encode(source, run.folder / "x.krs", name, ratio=ratio, force=True, **given)
        return store.bytes.file, store.read(slice(None))

    return method


def _klt_dct(run: Run, source: Source, features: Array, ratio: int) -> tuple[int, Array]:
    found = klt_dct(features, features.nbytes // ratio)
    assert found is not None
    return found.bytes, found.decode()


METHODS: list[Method] = [
    ("raw features", 1, _raw),
    ("transform", 128, _codec("transform", preset="fast")),
    ("transform", 256, _codec("transform", preset="fast")),
    ("KLT + DCT", 256, _klt_dct),
    ("PQ", 120, _codec("pq")),
]


def _trained(features: Array, labels: Array, seed: int, *, tiny: bool) -> nn.Module:
    """Train the task network for `EPOCHS`: SGD, momentum 0.9, rate 0.1 to 0 by a cosine, weight decay 5e-4, flips."""
    torch.manual_seed(seed)
    width, classes = features.shape[1], int(labels.max()) + 1
    body: nn.Module = nn.AdaptiveAvgPool2d(1) if tiny else resnet32_tail()
    network = nn.Sequential(body, nn.Flatten(), nn.Linear(width, classes))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    x, y, rng = torch.from_numpy(features).float(), torch.from_numpy(labels), np.random.default_rng(seed)
    epochs = 1 if tiny else EPOCHS
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * max(1, len(x) // BATCH))
    for _ in range(epochs):
        for ids in np.array_split(rng.permutation(len(x)), max(1, len(x) // BATCH)):
            batch: Tensor = x[ids]
            flipped = torch.from_numpy(rng.random(len(ids)) < 0.5).view(-1, 1, 1, 1)
            loss = F.cross_entropy(network(torch.where(flipped, batch.flip(3), batch)), y[ids])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return network.eval()


def _accuracy(network: nn.Module, features: Array, labels: Array) -> float:
    with torch.inference_mode():
        scores = torch.cat([network(part) for part in torch.split(torch.from_numpy(features).float(), 256)])
    return float((scores.argmax(1).numpy() == labels).mean())


if __name__ == "__main__":
    main("accuracy", __doc__, measure)
