"""One protocol for all learners: the loop over tasks, epochs and batches, evaluation, bytes, and going on after a kill.

A run's folder holds ``run.json`` (config, code, and the results of each step so far), ``memory`` where the learner has
one, ``stepK.safetensors``, the network and what the learner keeps after the K steps that are finished, and meanwhile
``trainedK.safetensors``, the same when step K has been trained and not yet taken into the memory.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from krstore.errors import UsageError
from krstore.inputs import Inputs
from krstore.learning.agreement import agreed_memory
from krstore.learning.blocks import Blocks, read_analysis, write_analysis
from krstore.learning.budget import Budget
from krstore.learning.config import RunConfig, Training
from krstore.learning.data import Dataset, open_dataset
from krstore.learning.evaluation import evaluated, probed
from krstore.learning.front import cut, seen_through
from krstore.learning.learners import get_learner
from krstore.learning.learners.base import Rehearsal, frozen
from krstore.learning.network import build_network, leading_modules, stored_bytes
from krstore.learning.optimisation import shortened
from krstore.learning.recall import Recall
from krstore.learning.results import RunResult, StepResult, load_result, save_result
from krstore.learning.scenario import Scenario, Task
from krstore.learning.state import load_state, save_state
from krstore.learning.streams import (
    Augmentation,
    Batch,
    Samples,
    Stream,
    batches_held,
    batches_of,
    held,
    hold_out,
)
from krstore.learning.training import Trainer
from krstore.progress import SILENT, Progress
from krstore.replay import Replayable
from krstore.source import Source, Subset
from krstore.tensors import as_tensor, resolve_device

__all__ = ["MEMORY", "learn", "scenario_of"]

MEMORY = "memory"


class Alone(NamedTuple):
    """Accuracy on a task's classes of a network that was trained alone, and that of a probe of its embeddings."""

    accuracy: float
    probed: float | None = None


def learn(
    config: RunConfig, folder: str | Path, *, dataset: Dataset | None = None, progress: Progress = SILENT
) -> RunResult:
    """Run one method over all tasks, or go on with a run that was stopped, and return its results.

    Args:
        config: the run; see `krstore.learning.config.build_run_config`.
        folder: of the run; made, or one that the same config has left unfinished or finished.
        dataset: the data; default what the config names.
        progress: shown how it goes.

    Raises:
        UsageError: the folder is of another run, or the config does not fit the data.
        ArchiveError: the data cannot be read.
        TargetUnreachableError: the codec cannot honour the memory's ratio or budget.
    """
    return _Run(config, Path(folder), dataset or open_dataset(config.data, config.test), progress).run()


def scenario_of(config: RunConfig, dataset: Dataset) -> Scenario:
    """Return the scenario of a run."""
    return Scenario(
        dataset, order=config.order, base=config.base, steps=config.steps, per_class=config.per_class,
        validation=config.validation, seed=config.seed,
    )  # fmt: skip


class _Run:
    def __init__(self, config: RunConfig, folder: Path, dataset: Dataset, progress: Progress) -> None:
        self.config, self.folder, self.progress = config, folder, progress
        self.device = resolve_device(config.device)
        self.dataset, self.scenario = dataset, scenario_of(config, dataset)
        self.result = load_result(folder, config, self.scenario)
        self.prepare = _preparation(config, dataset.train)
        self.augment = Augmentation(config.flip, config.crop if isinstance(self.prepare, Inputs) else 0)
        torch.manual_seed(config.seed)
        self.trainer = Trainer(self.device, config.precision, progress)
        self._example = self.prepare(as_tensor(dataset.train.read(np.zeros(1, np.int64))))
        if config.flip and self._example.ndim != 4:
            raise UsageError(
                f"flip=true is for samples (C, H, W); these are {tuple(self._example.shape[1:])}: set flip=false"
            )
        method = get_learner(config.method)
        self.network = build_network(
            config.model, config.weights, self._example, config.model_args, cosine=method.cosine
        ).to(self.device)
        until = config.frozen_until
        self.frozen = [] if until is None else leading_modules(self.network.body, until)
        self.learner = method(config.options, self.network, config.seed)
        self.learner.mirrored = config.flip
        memory = agreed_memory(config, self.learner)
        if self.learner.own_classifier:
            self.network.forget_classifier()
        self.given = self.network.classes
        if self.given not in (0, self.scenario.tasks[0].stop):
            raise UsageError(
                f"the weights have a classifier of {self.given} classes; the first task has "
                f"{self.scenario.tasks[0].stop}"
            )
        self.front: nn.Module | None = None
        self.budget = None if config.budget is None else Budget(config.budget, config.method)
        self.alone: Alone | None = None
        self.recall: Recall | None = None
        if memory is not None:
            self.recall = Recall(
                memory, folder / MEMORY, self.scenario, seed=config.seed, device=self.device, progress=progress
            )
            self.recall.check(len(self.result.steps))
            self._share_budget()

    def run(self) -> RunResult:
        """Do the steps that are left."""
        if self.result.steps and not self.result.finished:
            self.network.grow(self.scenario.tasks[len(self.result.steps) - 1].stop)
            if self.config.transfer and len(self.result.steps) > 1:
                self.network.transfer()
            if self.config.features:
                self._cut()
            self._load(self._state("step", len(self.result.steps)))
            self._share_budget()
        if self.recall is not None and self.recall.unlike:
            self.progress.note(
                "new samples do not pass through the lossy codec (through_codec=false): the network may learn to tell "
                "old from new by how sharp they are"
            )
        for task in self.scenario.tasks[len(self.result.steps) :]:
            began = time.monotonic()
            self._step(task)
            measured = evaluated(
                self.learner, self._test_batches(task), self.scenario.tasks[: task.number + 1]
            )  # fmt: skip
            representation = self._probed(self.network.body, task) if self.config.probe else []
            held_bytes = self.learner.held()
            step = StepResult(
                seconds=time.monotonic() - began, memory_bytes=self._memory_bytes(task),
                held_bytes=held_bytes, network_bytes=stored_bytes(self.network) + self._front_bytes(),
                probed=representation, alone=None if self.alone is None else self.alone.accuracy,
                alone_probed=None if self.alone is None else self.alone.probed, **measured,
            )  # fmt: skip
            if self.budget is not None:
                self.budget.check(step)
            self.result = self.result.with_step(step)
            self._finish(task)
            self.progress.note(
                f"step {task.number}: {100 * step.accuracy:.2f} % of {task.stop} classes, "
                f"{step.memory_bytes + sum(held_bytes.values()):,} bytes, {step.seconds:.0f} s"
            )
        return self.result

    def _share_budget(self) -> None:
        """Give the memory what of the whole budget network and method will leave it."""
        if self.budget is not None and self.recall is not None and not self.config.memory.counted:
            own = self.learner.final_bytes(len(self.scenario.tasks), self.scenario.classes)
            self.recall.budget = self.budget.left(own + self._front_bytes())

    def _memory_bytes(self, task: Task) -> int:
        """Return what is kept of the tasks so far: the memory's files, or for upper bounds the samples themselves."""
        if self.learner.rehearsal is Rehearsal.EVERYTHING:
            return self.scenario.train_until(task.number).spec.bytes
        return self.recall.memory.bytes if self.recall else 0

    def _step(self, task: Task) -> None:
        torch.manual_seed(1000 * self.config.seed + task.number)
        new = self.scenario.train(task.number)
        learner, first = self.learner, task.number == 0
        trained = first and self.given == task.stop
        if self.recall is not None and self.recall.takes_first and not first:
            self.recall.take(task.number, new, self._seeing())
        if self.network.classes < task.stop:
            self.network.grow(task.stop)
        if self.config.transfer and not first:
            self.network.transfer()
        learner.begin_step(task)
        learner.imprint(task, lambda count=None: self._batches(self._some(new, count)))
        if self._state("trained", task.number).exists():
            self._load(self._state("trained", task.number))
        elif not trained:
            training = self.config.base_training if first else self.config.training
            with torch.random.fork_rng():
                self.alone = self._learn_alone(task, new) if self.config.alone and not first else None
            stream, held_out = self._stream(task, new, training.batch_size)
            blocks = Blocks(self.network.body) if self.config.analyse else None
            self._train(task, training, stream, blocks=blocks)
            if blocks is not None:
                self._analyse(task, blocks)
            again = learner.prune(task)
            if again:
                self._train(task, shortened(training, again), stream)
            if held_out:
                learner.calibrate(lambda count=None: batches_held(held_out, self.prepare, self.device))
            self._save("trained", task.number)
        if self.config.features and first:
            self._cut()
            new = self.scenario.train(0)
        torch.manual_seed(1000 * self.config.seed + task.number)
        learner.end_step(task, lambda count=None: self._batches(self._some(new, count)))
        if self.recall is not None:
            self._share_budget()
            self.recall.take(task.number, new, self._seeing())
            self.recall.adjust(task, self._seeing)
            known = self.recall.memory.samples
            if self.config.finetuning is not None and not first:
                learner.begin_finetuning(task)
                self._train(task, self.config.finetuning, self._remembered(task, known), learner.exemplar_losses)
            learner.remember(lambda count=None: self._batches(known))

    def _cut(self) -> None:
        """Let what is frozen stand before the network, whose samples are its features from here on."""
        assert self.config.frozen_until is not None
        self.front, self.frozen = cut(self.network, self.config.frozen_until), []
        self.scenario = scenario_of(self.config, seen_through(self.dataset, self.front, self.prepare, self.device))
        self.prepare, self.augment = Tensor.float, Augmentation(self.config.flip, 0)
        if self.recall is not None:
            self.recall.scenario = self.scenario

    def _front_bytes(self) -> int:
        return 0 if self.front is None else stored_bytes(self.front)

    def _some(self, samples: Subset, count: int | None) -> Subset:
        """Return so many random samples; `None` for all."""
        if count is None or count >= samples.spec.samples:
            return samples
        ids = np.random.default_rng(self.config.seed).permutation(samples.spec.samples)[:count]
        return Subset(samples, np.sort(ids))

    def _seeing(self, scored: bool = False) -> nn.Module:
        """Return a frozen copy of the network, or of its body, for stored samples as they are."""
        assert self.recall is not None
        seen = self.network if scored or self.recall.scored else self.network.body
        return frozen(_Seeing(copy.deepcopy(seen), self.prepare))

    def _batches(self, source: Source) -> Iterator[tuple[Tensor, Tensor]]:
        return batches_of(source, self.prepare, self.device)

    def _stream(self, task: Task, new: Subset, batch_size: int) -> tuple[Stream, list[Replayable]]:
        """Return what an epoch shows, new samples and what the learner's rehearsal adds, and what is held out of it."""
        old, own = None, Samples(new, f"task {task.number}")
        shown: Any = own
        if task.number and self.learner.rehearsal is Rehearsal.EVERYTHING:
            shown = Samples(self.scenario.train_until(task.number), "all tasks")
        if task.number and self.recall is not None:
            if self.recall.takes_first:
                shown = self.recall.memory.samples
            else:
                old = self.recall.before(task)
                shown = self.recall.passed(task.number, new) if self.recall.through_codec else own
        seed, held_out = 1000 * self.config.seed + task.number, list[Replayable]()
        parts: list[Replayable] = [shown] if old is None else [shown, old]
        if task.number and self.learner.held_out:
            parts, held_out = hold_out(parts, task.first, self.learner.held_out, seed)
        kept = [held(part) for part in parts]
        stream = Stream(
            kept[0], kept[1] if len(kept) > 1 else None, first_new=task.first, batch_size=batch_size, seed=seed,
            prepare=self.prepare, augment=self.augment, device=self.device,
        )  # fmt: skip
        return stream, held_out

    def _remembered(self, task: Task, samples: Replayable) -> Stream:
        """Return the batches of what the memory holds."""
        assert self.config.finetuning is not None
        return Stream(
            held(samples), None, first_new=task.first, batch_size=self.config.finetuning.batch_size,
            seed=1000 * self.config.seed + task.number, prepare=self.prepare, augment=self.augment, device=self.device,
        )  # fmt: skip

    def _train(
        self, task: Task, training: Training, stream: Stream,
        losses: Callable[[Batch], dict[str, Tensor]] | None = None, blocks: Blocks | None = None,
    ) -> None:  # fmt: skip
        step = f"step {task.number} of {len(self.scenario.tasks) - 1}"
        self.trainer.train(
            self.learner, task, training, stream, step, self.frozen if task.number else (), losses, blocks
        )

    def _analyse(self, task: Task, blocks: Blocks) -> None:
        """Write what the blocks have done; feature maps are those of the first task's test samples."""
        found = blocks.measured(self.network.body, self._batches(self.scenario.test_until(0)))
        write_analysis(self.folder, {**read_analysis(self.folder), task.number: found})

    def _learn_alone(self, task: Task, new: Subset) -> Alone:
        """Return how well a network of random weights, trained on what the learner sees, does on a task's classes."""
        network = build_network(self.config.model, None, self._example, self.config.model_args).to(self.device)
        if self.front is not None:
            cut(network, str(self.config.frozen_until))
        network.grow(task.stop)
        learner = get_learner("finetune")({"logits": "all"}, network, self.config.seed)
        learner.begin_step(task)
        training = self.config.alone_training or self.config.training
        stream, _ = self._stream(task, new, training.batch_size)
        self.trainer.train(learner, task, training, stream, f"step {task.number}, alone")
        accuracy = evaluated(learner, self._test_batches(task), self.scenario.tasks[: task.number + 1])["by_task"][-1]
        return Alone(accuracy, self._probed(network.body, task)[-1] if self.config.probe else None)

    def _probed(self, body: nn.Module, task: Task) -> list[float]:
        train = self._batches(self.scenario.train_until(task.number))
        return probed(body, train, self._test_batches(task), self.scenario.tasks[: task.number + 1])

    def _test_batches(self, task: Task) -> Iterator[tuple[Tensor, Tensor]]:
        return self._batches(self.scenario.test_until(task.number))

    def _finish(self, task: Task) -> None:
        """Write what a step has come to; the files of what was before it go when that is done."""
        self._save("step", task.number + 1)
        save_result(self.folder, self.result)
        self._state("step", task.number).unlink(missing_ok=True)
        self._state("trained", task.number).unlink(missing_ok=True)

    def _save(self, kind: str, number: int) -> None:
        parts: dict[str, dict[str, Tensor]] = {
            "network": self.network.state_dict(), "learner": self.learner.state(),
            "front": {} if self.front is None else self.front.state_dict(),
        }  # fmt: skip
        if self.alone is not None:
            parts["alone"] = {"": torch.tensor([x for x in self.alone if x is not None], dtype=torch.float64)}
        save_state(self._state(kind, number), parts)

    def _load(self, path: Path) -> None:
        parts = load_state(path, self.device)
        self.alone = Alone(*parts["alone"][""].tolist()) if parts["alone"] else None
        self.learner.reshape(parts["network"])
        self.network.load_state_dict(parts["network"])
        if self.front is not None:
            self.front.load_state_dict(parts["front"])
        self.learner.load_state(parts["learner"])

    def _state(self, kind: str, number: int) -> Path:
        return self.folder / f"{kind}{number}.safetensors"


class _Seeing(nn.Module):
    """A network or a body, of stored samples (B, *shape)."""

    def __init__(self, network: nn.Module, prepare: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self._prepare = network, prepare

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.network(self._prepare(x)))


def _preparation(config: RunConfig, source: Source) -> Callable[[Tensor], Tensor]:
    """Return what brings stored samples to the network: images are normalised, features taken as they are."""
    if source.spec.dtype == "uint8" or config.mean is not None or config.std is not None:
        return Inputs.of(source.spec, "auto", config.mean, config.std)
    return lambda x: x.float()
