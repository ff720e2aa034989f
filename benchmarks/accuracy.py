"""What decoded features are worth: the accuracy of a task network trained anew on them alone, against bytes.

`--data` names a folder with `features.h5`, of the ResNet-32's layer `layer3.0`, and `features_test.h5`, of held-out
images. The network after that layer starts from fresh weights and sees what a method decodes to; it is tested on the
held-out features as they are. Raw images, fewer of them in the same bytes, and compressed ones have their features
computed again, by a network that is not counted.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import krstore
from benchmarks._common import Run, archive_facts, main
from benchmarks.case import Case, nmse
from benchmarks.images import lossless_bytes
from benchmarks.methods import CODECS, IMAGES, PEERS, RESTORED
from krstore.backbones import resnet32_tail
from krstore.source import Array, Source
from krstore.testing import example_source

EPOCHS, SEEDS, BATCH = 10, (0, 1, 2), 128
RATIOS = (50, 100, 180, 256)
LEFT_OUT = ("ZFP", "SZ3", "OPQ", "transform, fast", "recompute")  # a dozen others take a night; the last is WebP
METHODS = {name: method for name, method in (RESTORED | CODECS | PEERS | IMAGES).items() if name not in LEFT_OUT}
Labels = NDArray[np.int64]


def measure(run: Run) -> dict[str, Any]:
    """Train on the raw features and on what every method makes of them; rows of an earlier run are kept."""
    source, test = _archives(run)
    case = Case(run, source, source.read(np.arange(source.spec.samples)))
    held_out = test.read(np.arange(test.spec.samples))
    assert source.labels is not None
    assert test.labels is not None
    classes, labels = np.unique(source.labels, return_inverse=True)
    judge = _Judge(run, labels, held_out, np.searchsorted(classes, test.labels))
    facts = {"archive": archive_facts(source), "epochs": EPOCHS, "test": test.spec.samples}
    same = all(run.earlier.get(key) == value for key, value in facts.items())
    done = {(row["name"], row["asked"]): row for row in (run.earlier["rows"] if same else [])}
    rows = []

    def keep(name: str, asked: int | None, row: dict[str, Any]) -> None:
        rows.append({"name": name, "asked": asked} | row)
        print(f"{name:18} {asked or '-':>4} {row['mean']:.4f}", file=sys.stderr)
        run.save({**facts, "rows": [*rows, *done.values()]})

    def accuracy(name: str, asked: int | None, size: int, features: Array, kept: Labels) -> None:
        error = nmse(case.features, features) if len(features) == len(case.features) else None
        row = {
            "bytes": size, "ratio": case.features.nbytes / size, "sample_bytes": size / len(labels),
            "kept": len(kept), "nmse": error,
        }  # fmt: skip
        keep(name, asked, row | judge.accuracy(features, kept))

    everything = np.arange(len(labels))
    if (row := done.pop(("raw features", None), None)) is not None:
        keep("raw features", None, row)
    else:
        accuracy("raw features", None, case.features.nbytes, case.features, everything)
    for ratio in RATIOS[:1] if run.tiny else run.ratios or RATIOS:
        for name, method in list(METHODS.items())[: 1 if run.tiny else None]:
            if (row := done.pop((name, ratio), None)) is not None:
                keep(name, ratio, row)
            elif (encoded := method(case, ratio)) is not None:
                accuracy(name, ratio, encoded.bytes, encoded.decode(), everything)
        name = "images, lossless"
        if (row := done.pop((name, ratio), None)) is not None:
            keep(name, ratio, row)
        elif (chosen := _images(case, labels, case.budget(ratio))) is not None:
            accuracy(name, ratio, chosen[0], case.features[chosen[1]], chosen[1])
    return {**facts, "rows": [*rows, *done.values()]}


def _archives(run: Run) -> tuple[Source, Source]:
    if run.tiny:
        return example_source(200, (8, 8, 8)), example_source(100, (8, 8, 8), seed=1)
    if run.data is None or not run.data.is_dir():
        raise SystemExit("name a folder with features.h5 and features_test.h5 with --data or KRSTORE_DATA")
    return run.source(), krstore.open_archive(run.data / "features_test.h5")


def _images(case: Case, labels: Labels, budget: int) -> tuple[int, Labels] | None:
    """Return bytes and IDs of randomly chosen images, as many of each class, that fit as lossless WebP files.

    `None` where fewer than a batch of them fit.
    """
    data = case.run.data
    if data is None or not (data / "images.npz").exists():
        return None
    order = np.random.default_rng(0).permutation(len(labels))
    ranks = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        own = order[labels[order] == label]
        ranks[own] = np.arange(len(own))
    chosen = order[np.argsort(ranks[order], kind="stable")][: max(1, budget // 500)]
    total = np.cumsum(lossless_bytes(np.load(data / "images.npz")["images"][chosen]))
    count = int(np.searchsorted(total, budget, side="right"))
    return (int(total[count - 1]), chosen[:count]) if count >= BATCH else None


class _Judge:
    """Trains task networks and tests them: SGD, momentum 0.9, rate 0.1 to 0 by a cosine, weight decay 5e-4, flips.

    Fewer samples than the archive has are shown as many times in all.
    """

    def __init__(self, run: Run, labels: Labels, held_out: Array, held_out_labels: Labels) -> None:
        self._tiny, self._labels = run.tiny, labels
        self._held_out, self._held_out_labels = torch.from_numpy(held_out).float(), held_out_labels

    def accuracy(self, features: Array, kept: Labels) -> dict[str, Any]:
        """Return the accuracy by seed, its mean and its deviation, after training on features of these samples."""
        found = []
        for seed in SEEDS[:1] if self._tiny else SEEDS:
            network = self._trained(torch.from_numpy(features).float(), torch.from_numpy(self._labels[kept]), seed)
            with torch.inference_mode():
                scores = torch.cat([network(part) for part in torch.split(self._held_out, 256)])
            found.append(float((scores.argmax(1).numpy() == self._held_out_labels).mean()))
        return {
            "accuracy": found, "mean": statistics.mean(found),
            "deviation": statistics.stdev(found) if len(found) > 1 else None,
        }  # fmt: skip

    def _trained(self, x: Tensor, y: Tensor, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        body: nn.Module = nn.AdaptiveAvgPool2d(1) if self._tiny else resnet32_tail()
        network = nn.Sequential(body, nn.Flatten(), nn.Linear(x.shape[1], int(self._labels.max()) + 1))
        optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
        batches = (1 if self._tiny else EPOCHS) * max(1, len(self._labels) // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, batches)
        rng, queue = np.random.default_rng(seed), np.empty(0, np.int64)
        for _ in range(batches):
            while len(queue) < BATCH:
                queue = np.concatenate([queue, rng.permutation(len(x))])
            ids, queue = queue[:BATCH], queue[BATCH:]
            flipped = torch.from_numpy(rng.random(len(ids)) < 0.5).view(-1, 1, 1, 1)
            batch = torch.where(flipped, x[ids].flip(3), x[ids])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                scores = network(batch)
            loss = F.cross_entropy(scores.float(), y[ids])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        return network.eval()


if __name__ == "__main__":
    main("accuracy", __doc__, measure)
