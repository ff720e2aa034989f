"""What a run shows its network: a step's batches to learn from, and samples to look at, as the network takes them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from krstore.errors import UsageError
from krstore.inputs import Inputs
from krstore.learning.config import RunConfig
from krstore.learning.data import Dataset
from krstore.learning.learners.base import Learner, Rehearsal, SampleBatches
from krstore.learning.recall import Recall
from krstore.learning.scenario import Scenario, Task
from krstore.learning.streams import Augmentation, Samples, Stream, batches_held, batches_of, held, hold_out
from krstore.replay import Replayable
from krstore.source import Source, Subset
from krstore.tensors import as_tensor

__all__ = ["Feed", "lent"]

Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Feed:
    """The samples of a scenario, prepared and, to learn from, augmented.

    Attributes:
        scenario: whose tasks these are.
        prepare: brings stored samples to what the network takes.
        augment: changes those that are learnt from.
        device: where they go.
        seed: of the order, of the augmentation and of what is picked.
    """

    scenario: Scenario
    prepare: Callable[[Tensor], Tensor]
    augment: Augmentation
    device: str
    seed: int

    @classmethod
    def of(cls, config: RunConfig, dataset: Dataset, scenario: Scenario, device: str) -> Feed:
        """Return a run's: images are normalised, and may be cropped; features are taken as they are."""
        spec, crop = dataset.train.spec, 0
        prepare: Callable[[Tensor], Tensor] = _as_they_are
        if spec.dtype == "uint8" or config.mean is not None or config.std is not None:
            prepare, crop = Inputs.of(spec, "auto", config.mean, config.std), config.crop
        feed = cls(scenario, prepare, Augmentation(config.flip, crop), device, config.seed)
        shape = tuple(feed.example(dataset).shape[1:])
        if config.flip and len(shape) != 3:
            raise UsageError(f"flip=true is for samples (C, H, W); these are {shape}: set flip=false")
        return feed

    @property
    def prepared(self) -> bool:
        """Whether samples are images of bytes, or have a mean and a deviation; features are taken as they are."""
        return self.prepare is not _as_they_are

    def beyond(self, scenario: Scenario) -> Feed:
        """Return that of the features which a part of the network, cut off, makes of these samples."""
        return replace(self, scenario=scenario, prepare=_as_they_are, augment=Augmentation(self.augment.flip, 0))

    def example(self, dataset: Dataset) -> Tensor:
        """Return a sample (1, *shape)."""
        return self.prepare(as_tensor(dataset.train.read(np.zeros(1, np.int64))))

    def batches(self, source: Source) -> Batches:
        """Yield all samples in order, with their labels."""
        return batches_of(source, self.prepare, self.device)

    def seen(self, task: Task) -> Batches:
        """Yield the training samples of all tasks up to one, which only what judges a learner may see."""
        return self.batches(self.scenario.train_until(task.number))

    def test(self, task: Task) -> Batches:
        """Yield the test samples of all tasks up to one."""
        return self.batches(self.scenario.test_until(task.number))

    def some(self, samples: Subset) -> SampleBatches:
        """Return what yields them all, or as many random ones as it is asked for, the same ones each time."""

        def again(count: int | None = None) -> Batches:
            if count is None or count >= samples.spec.samples:
                return self.batches(samples)
            ids = np.random.default_rng(self.seed).permutation(samples.spec.samples)[:count]
            return self.batches(Subset(samples, np.sort(ids)))

        return again

    def few(self, samples: Subset, count: int) -> Batches:
        """Yield so many samples, or all if there are no more, evenly from first to last."""
        total = samples.spec.samples
        return self.batches(Subset(samples, np.linspace(0, total - 1, min(total, count)).astype(np.int64)))

    def held_out(self, parts: list[Replayable]) -> Batches:
        """Yield what `stream` has held out."""
        return batches_held(parts, self.prepare, self.device)

    def stream(
        self, task: Task, new: Subset, learner: Learner, recall: Recall | None, batch_size: int
    ) -> tuple[Stream, list[Replayable]]:
        """Return what an epoch shows, new samples and what the learner's rehearsal adds, and what is held out of it."""
        old, own = None, Samples(new, f"task {task.number}")
        shown: Any = own
        if task.number and learner.rehearsal is Rehearsal.EVERYTHING:
            shown = Samples(self.scenario.train_until(task.number), "all tasks")
        if task.number and recall is not None:
            if recall.takes_first:
                shown = recall.memory.samples
            else:
                old = recall.before(task)
                shown = recall.passed(task.number, new) if recall.through_codec else own
        held_out = list[Replayable]()
        parts: list[Replayable] = [shown] if old is None else [shown, old]
        if task.number and learner.held_out:
            parts, held_out = hold_out(parts, task.first, learner.held_out, self._seed(task))
        kept = [held(part, self.device) for part in parts]
        return self._stream(task, kept[0], kept[1] if len(kept) > 1 else None, batch_size), held_out

    def remembered(self, task: Task, samples: Replayable, batch_size: int) -> Stream:
        """Return the batches of what the memory holds."""
        return self._stream(task, held(samples, self.device), None, batch_size)

    def _stream(self, task: Task, samples: Replayable, old: Replayable | None, batch_size: int) -> Stream:
        return Stream(
            samples, old, first_new=task.first, batch_size=batch_size, seed=self._seed(task), prepare=self.prepare,
            augment=self.augment, device=self.device,
        )  # fmt: skip

    def _seed(self, task: Task) -> int:
        return 1000 * self.seed + task.number


@contextlib.contextmanager
def lent(samples: SampleBatches) -> Iterator[SampleBatches]:
    """Let a learner look at samples while the block lasts.

    Raises:
        UsageError: it looks at them later.
    """
    lender = [samples]

    def look(count: int | None = None) -> Batches:
        if lender:
            for batch in lender[0](count):
                yield batch
                if not lender:
                    break
        if not lender:
            raise UsageError(
                "a learner looks at samples that it was lent for an earlier call; what it needs of them is its state"
            )

    try:
        yield look
    finally:
        lender.clear()


def _as_they_are(x: Tensor) -> Tensor:
    return x.float()
