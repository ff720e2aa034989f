"""The class-incremental scenario: which classes come when, and what of the data a learner may see."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from krstore.errors import UsageError
from krstore.learning.data import Dataset
from krstore.learning.orders import class_order
from krstore.source import Ids, Subset

__all__ = ["Scenario", "Task"]


@dataclass(frozen=True)
class Task:
    """The classes of one step.

    Attributes:
        number: of the step, from 0.
        first, stop: they are the classes first..stop-1 in the order of learning, which are their labels from here on.
        names: their labels in the data set.
    """

    number: int
    first: int
    stop: int
    names: tuple[int, ...]


class Scenario:
    """A data set cut into tasks of classes.

    Args:
        dataset: training and test set.
        order: of the classes; see `krstore.learning.orders.class_order`.
        base: classes of step 0 (B50 in the literature); 0 for `steps` equal tasks (B0).
        steps: how many tasks follow step 0, or how many there are in all where `base` is 0.
        per_class: at most so many training samples of each class, drawn by `seed`; `None` for all.
        validation: test on so many training samples of each class, which are not trained on, in the test set's place:
            for choosing hyper-parameters.
        seed: of these choices, and of the order where that is ``"seed"``.

    Attributes:
        tasks: one a step.
        class_names: what the data call the classes, in the order of learning; empty where they do not say of each.

    Raises:
        UsageError: the classes cannot be divided so.
    """

    def __init__(
        self, dataset: Dataset, *, order: str = "lucir", base: int = 50, steps: int = 10, per_class: int | None = None,
        validation: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        assert dataset.train.labels is not None
        assert dataset.test.labels is not None
        names = np.unique(dataset.train.labels)
        self._sources = {"train": dataset.train, "test": dataset.train if validation else dataset.test}
        ordered = names[class_order(order, len(names), seed)]
        called = dataset.train.spec.attributes.get("class_names")
        self.class_names: list[str] = []
        if isinstance(called, list) and names[0] >= 0 and names[-1] < len(called):
            self.class_names = [str(called[label]) for label in ordered]
        bounds = _bounds(len(names), base, steps)
        self.tasks = [
            Task(number, first, stop, tuple(ordered[first:stop].tolist()))
            for number, (first, stop) in enumerate(itertools.pairwise(bounds))
        ]
        places = np.empty(len(names), np.int64)
        places[np.searchsorted(names, ordered)] = np.arange(len(names))
        self._labels = {
            name: places[np.searchsorted(names, source.labels)]  # type: ignore[arg-type]
            for name, source in self._sources.items()
        }
        self._chosen, self._tested = _choose(self._labels["train"], per_class, validation, seed)

    @property
    def classes(self) -> int:
        """How many classes there are in the end."""
        return self.tasks[-1].stop

    def train(self, number: int) -> Subset:
        """Return the training samples of one task, labelled in the order of learning."""
        return self._subset("train", self.tasks[number].first, self.tasks[number].stop, self._chosen)

    def train_until(self, number: int) -> Subset:
        """Return the training samples of all tasks up to one: for upper bounds, which forget nothing."""
        return self._subset("train", 0, self.tasks[number].stop, self._chosen)

    def test_until(self, number: int) -> Subset:
        """Return the test samples of all classes seen after a step."""
        return self._subset("test", 0, self.tasks[number].stop, self._tested)

    def _subset(self, name: str, first: int, stop: int, among: Ids | None) -> Subset:
        labels = self._labels[name]
        ids = np.flatnonzero((labels >= first) & (labels < stop))
        if among is not None:
            ids = np.intersect1d(ids, among, assume_unique=True)
        return Subset(self._sources[name], ids, labels[ids])


def _bounds(classes: int, base: int, steps: int) -> list[int]:
    """Return where tasks begin, and the number of classes."""
    if steps < 1 or not 0 <= base < classes:
        raise UsageError(f"base={base}, steps={steps}: expected 0 to {classes - 1} base classes and at least 1 step")
    rest = classes - base
    if rest % steps:
        raise UsageError(f"{rest} classes do not divide into {steps} equal steps; choose another base or steps")
    return [0, *range(base, classes + 1, rest // steps)] if base else list(range(0, classes + 1, rest // steps))


def _choose(labels: Ids, per_class: int | None, validation: int, seed: int) -> tuple[Ids | None, Ids | None]:
    """Return the samples to train on, and those of them to test on instead; `None` for all there are."""
    if per_class is None and not validation:
        return None, None
    if validation < 0 or (per_class is not None and per_class < 1):
        raise UsageError(f"per_class={per_class}, validation={validation}: expected a positive and no negative number")
    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    fewest = min(map(len, shuffled))
    if validation >= fewest:
        raise UsageError(f"validation={validation}: a class has {fewest} samples, and none would be left to train on")
    held = np.sort(np.concatenate([own[:validation] for own in shuffled])) if validation else None
    chosen = [own[validation:][:per_class] for own in shuffled]
    return np.sort(np.concatenate(chosen)), held
