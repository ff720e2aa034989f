"""What exemplars gain from being trained (mnemonics), by their rate: before any incremental step.

`--data` as for `exemplars`. A ResNet-8 learns the first ten classes; twenty random exemplars of each are
trained against it by the codec mnemonics. Then copies of it are trained on the exemplars alone: as the paper's
temporary network is, for five steps, and as fine-tuning does, for sixty with momentum; and a network of random weights
is. Told are their losses on the training samples, which is what exemplars are trained for, and their test accuracies.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import krstore
import krstore.testing
from benchmarks._common import Run, main
from benchmarks.incremental.exemplars import images
from krstore.backbones import resnet8
from krstore.learning.orders import class_order
from krstore.source import Source, Subset

CLASSES, PER_CLASS, EPOCHS, BATCH = 10, 20, 20, 128
RATES = ((1.0, 0.01, 20), (10.0, 0.01, 20), (100.0, 0.01, 20), (10.0, 0.03, 20), (10.0, 0.01, 100))
MEAN, SPREAD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


class Scores(nn.Module):
    """A ResNet-8's scores of images (B, H, W, 3) of 0 to 255."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = resnet8(classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        x = (pixels / 255 - torch.tensor(MEAN)) / torch.tensor(SPREAD)
        return torch.as_tensor(self.body(x.permute(0, 3, 1, 2)))


def measure(run: Run) -> dict[str, Any]:
    """Train a network and exemplars at each rate, and what learns from these."""
    dataset = images(run)
    classes = 2 if run.tiny else CLASSES
    train, test = (_first(source, classes) for source in (dataset.train, dataset.test))
    torch.manual_seed(0)
    network = Scores(classes)
    _descend(network, train, (2 if run.tiny else EPOCHS) * -(-train.spec.samples // BATCH), 0.1, BATCH, mirror=True)
    rows = []
    for rate in (None, *(RATES[:1] if run.tiny else RATES)):
        rows.append(_learnt_from(run, network.eval(), train, test, rate))
        print(rows[-1], file=sys.stderr)
    return {"network": _judged(network, train, test), "rows": rows}


def _learnt_from(
    run: Run, network: Scores, train: Source, test: Source, rate: tuple[float, float, int] | None
) -> dict[str, Any]:
    settings: dict[str, Any] = {"per_class": 4 if run.tiny else PER_CLASS}
    codec, row = "random", {"rate": None, "inner_rate": None, "steps": None}
    if rate is not None:
        codec, row = "mnemonics", dict(zip(row, rate, strict=True))
        steps = 1 if run.tiny else rate[2]
        settings |= {"rate": rate[0], "inner_rate": rate[1], "outer_steps": steps, "halve": 1000}
    store = krstore.encode(
        train, run.folder / "x.krs", codec, settings=settings, task_model=copy.deepcopy(network), device="cpu",
        force=True,
    )  # fmt: skip
    kept = Subset(train, store.ids)
    values = store.read(store.ids)
    exemplars = krstore.testing.ArraySource(values, kept.labels)
    torch.manual_seed(1)
    temporary, tuned, fresh = copy.deepcopy(network), copy.deepcopy(network), Scores(2 if run.tiny else CLASSES)
    few = 2 if run.tiny else 200
    _descend(temporary, exemplars, 5, 0.01, len(values), momentum=0.0, training=False)
    _descend(tuned, exemplars, min(few, 60), 0.01, len(values), schedule=False)
    _descend(fresh, exemplars, few, 0.1, len(values))
    moved = values.astype(float) - kept.read(np.arange(len(values)))
    return {
        **row, "moved": float(np.abs(moved).mean()),
        **{
            name: _judged(own, train, test)
            for name, own in (("temporary", temporary), ("tuned", tuned), ("fresh", fresh))
        },
    }  # fmt: skip


def _first(source: Source, count: int) -> Subset:
    """Return the samples of the first classes of the order `lucir`, their labels their places in it."""
    assert source.labels is not None
    names = np.unique(source.labels)[class_order("lucir", len(np.unique(source.labels)))][:count]
    ids = np.flatnonzero(np.isin(source.labels, names))
    places = {int(name): place for place, name in enumerate(names)}
    return Subset(source, ids, np.array([places[int(label)] for label in source.labels[ids]]))


def _descend(
    network: nn.Module, source: Source, steps: int, rate: float, batch: int, *, momentum: float = 0.9,
    training: bool = True, schedule: bool = True, mirror: bool = False,
) -> None:  # fmt: skip
    x, y = _tensors(source)
    rng = np.random.default_rng(0)
    optimiser = torch.optim.SGD(network.parameters(), rate, momentum=momentum, weight_decay=5e-4 * training)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    network.train(training)
    order = np.empty(0, np.int64)
    for _ in range(steps):
        order = order if len(order) >= batch else rng.permutation(len(x))
        rows, order = order[:batch], order[batch:]
        optimiser.zero_grad()
        shown = x[rows].flip(2) if mirror and rng.random() < 0.5 else x[rows]
        F.cross_entropy(network(shown), y[rows]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if schedule and training:
            cosine.step()
    network.eval()


def _judged(network: nn.Module, train: Source, test: Source) -> dict[str, float]:
    network.eval()
    with torch.inference_mode():
        (x, y), (held_out, truth) = _tensors(train), _tensors(test)
        loss = float(F.cross_entropy(network(x), y))
        return {"loss": loss, "accuracy": float((network(held_out).argmax(1) == truth).float().mean())}


def _tensors(source: Source) -> tuple[Tensor, Tensor]:
    assert source.labels is not None
    values = source.read(np.arange(source.spec.samples))
    return torch.from_numpy(values).float(), torch.from_numpy(source.labels)


if __name__ == "__main__":
    main("mnemonics", __doc__, measure)
