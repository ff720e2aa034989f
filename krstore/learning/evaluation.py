"""What a step has come to, on test samples: of predictions, and of representations by a linear probe."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from krstore.errors import UsageError
from krstore.learning.learners.base import Learner
from krstore.learning.scenario import Task

__all__ = ["evaluated", "probed"]

TEST_BATCH = 512
PROBE_ITERATIONS = 300

Batches = Iterable[tuple[Tensor, Tensor]]


def evaluated(learner: Learner, batches: Batches, tasks: Sequence[Task]) -> dict[str, Any]:
    """Return accuracies on the samples of all classes seen, and how often each class was taken for each other.

    Args:
        batches: test samples of the classes of `tasks`, as the network takes them, with labels.
        tasks: those so far.

    Raises:
        UsageError: the learner returns something else than finite logits of all classes seen.
    """
    learner.network.eval()
    classes = tasks[-1].stop
    confusion, top5 = np.zeros((classes, classes), np.int64), 0
    others: dict[str, int] = {}
    for x, y in _split(batches):
        with torch.inference_mode():
            scores = _scores("predict", learner.predict(x), len(x), classes)
            if not scores.isfinite().all():
                cure = "lower the learning rate" if x.isfinite().all() else "nor are the samples"
                raise UsageError(f"scores of test samples are not finite; {cure}")
            for name, other in learner.also(x).items():
                other = _scores(f"also ({name})", other, len(x), classes)
                others[name] = others.get(name, 0) + int((other.argmax(1) == y).sum())
        guessed, truth = scores.argmax(1).cpu().numpy(), y.cpu().numpy()
        np.add.at(confusion, (truth, guessed), 1)
        best = scores.topk(min(5, classes), 1).indices
        top5 += int((best == y[:, None]).any(1).sum())
    right = np.diagonal(confusion)
    return {
        "accuracy": float(right.sum() / confusion.sum()),
        "top5": float(top5 / confusion.sum()),
        "by_task": [float(right[t.first : t.stop].sum() / confusion[t.first : t.stop].sum()) for t in tasks],
        "confusion": confusion.tolist(),
        "other_accuracy": {name: right / int(confusion.sum()) for name, right in others.items()},
    }


def _scores(what: str, scores: Tensor, count: int, classes: int) -> Tensor:
    if tuple(scores.shape) != (count, classes):
        raise UsageError(f"the learner's {what} returned {tuple(scores.shape)}; expected ({count}, {classes}), logits")
    return scores


def probed(body: nn.Module, train: Batches, test: Batches, tasks: Sequence[Task]) -> list[float]:
    """Return how well a linear classifier of embeddings tells each task's test samples among those of all tasks.

    It is fitted to training samples of all classes, which a learner no longer has: it judges the representation alone.

    Args:
        train, test: samples of all classes of `tasks`, as the network takes them, with labels.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=PROBE_ITERATIONS))
    if tasks[-1].stop == 1:
        return [1.0]
    (known, labels), (asked, truth) = _embedded(body, train), _embedded(body, test)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        right = model.fit(known, labels).predict(asked) == truth
    return [float(right[(truth >= task.first) & (truth < task.stop)].mean()) for task in tasks]


def _embedded(body: nn.Module, batches: Batches) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    body.eval()
    with torch.inference_mode():
        parts = [(body(x).float().cpu().numpy(), y.cpu().numpy()) for x, y in _split(batches)]
    embedded, labels = zip(*parts, strict=True)
    return np.concatenate(embedded), np.concatenate(labels)


def _split(batches: Batches) -> Batches:
    for x, y in batches:
        yield from zip(torch.split(x, TEST_BATCH), torch.split(y, TEST_BATCH), strict=True)
