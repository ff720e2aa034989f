"""One protocol for all learners: the loop over tasks, epochs and batches, evaluation, bytes, and going on after a kill.

A run's folder holds ``run.json`` (config, code, and the results of each step so far), ``memory`` where the learner has
one, ``stepK.safetensors``, the network and what the learner keeps after the K steps that are finished, and meanwhile
``trainedK.safetensors``, the same when step K has been trained and not yet taken into the memory.
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from krstore.errors import OutputError, TargetUnreachableError, UsageError
from krstore.files import sole_writer
from krstore.learning.agreement import agreed_memory
from krstore.learning.alone import Alone, learn_alone, training_alone
from krstore.learning.blocks import ANALYSED, Blocks, read_analysis, write_analysis
from krstore.learning.budget import Budget
from krstore.learning.config import RunConfig, Training
from krstore.learning.data import Dataset, open_dataset
from krstore.learning.evaluation import evaluated, probed
from krstore.learning.feed import Feed, lent
from krstore.learning.front import cut, seen_through
from krstore.learning.learners import get_learner
from krstore.learning.learners.base import Rehearsal, frozen
from krstore.learning.network import CLASSIFIERS, build_network, leading_modules, left_classifier, stored_bytes
from krstore.learning.optimisation import shortened
from krstore.learning.recall import Recall
from krstore.learning.results import RESULT, RunResult, StepResult, load_result, save_result
from krstore.learning.scenario import Scenario, Task
from krstore.learning.state import RunState, state_path
from krstore.learning.streams import Batch, Stream
from krstore.learning.training import Trainer
from krstore.progress import SILENT, Progress
from krstore.source import Subset
from krstore.tensors import resolve_device

__all__ = ["MEMORY", "learn", "scenario_of"]

MEMORY = "memory"


def learn(
    config: RunConfig, folder: str | Path, *, dataset: Dataset | None = None, progress: Progress = SILENT
) -> RunResult:
    """Run one method over all tasks, or go on with a run that was stopped, and return its results.

    Args:
        config: the run; see `krstore.learning.building.build_run_config`.
        folder: of the run; made, or one that the same config has left unfinished or finished.
        dataset: the data; default what the config names.
        progress: shown how it goes.

    Raises:
        UsageError: the folder is of another run, or the config does not fit the data.
        OutputError: the folder cannot be made or written, or another process is at the same run.
        CorruptStoreError: what the folder has of the run is damaged.
        ArchiveError: the data cannot be read.
        TargetUnreachableError: the codec cannot honour the memory's ratio or budget; where that is in the first step,
            nothing of the run stays in the folder.
    """
    folder = Path(folder)
    run = _Run(config, folder, dataset or open_dataset(config.data, config.test, resize=config.resize), progress)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror}") from error
    with sole_writer(folder / RESULT):
        before = {*folder.iterdir()}
        try:
            run.begin()
            return run.finish()
        except TargetUnreachableError:
            if (folder / RESULT) not in before and not run.result.steps:  # with other options it is another run
                _remove({*folder.iterdir()} - before)
            raise


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def scenario_of(config: RunConfig, dataset: Dataset) -> Scenario:
    """Return the scenario of a run."""
    return Scenario(
        dataset, order=config.order, base=config.base, steps=config.steps, per_class=config.per_class,
        validation=config.validation, seed=config.seed,
    )  # fmt: skip


class _Run:
    """A run; what is asked for is checked before anything is written."""

    result: RunResult

    def __init__(self, config: RunConfig, folder: Path, dataset: Dataset, progress: Progress) -> None:
        self.config, self.folder, self.progress = config, folder, progress
        self.device = resolve_device(config.device)
        self.dataset, self.scenario = dataset, scenario_of(config, dataset)
        self.feed = Feed.of(config, dataset, self.scenario, self.device)
        torch.manual_seed(config.seed)
        self.trainer = Trainer(self.device, config.precision, progress)
        self._example = self.feed.example(dataset)
        method = get_learner(config.method)
        self.network = build_network(
            config.model, config.weights, self._example, config.model_args, cosine=method.cosine
        ).to(self.device)
        last = left_classifier(self.network.body)
        if last is not None:
            progress.note(
                f"{config.model} ends in a linear layer, {last}: if that is its classifier, its logits are what a new "
                f"one learns from; one that is named {', '.join(CLASSIFIERS)} is taken off"
            )
        until = config.frozen_until
        self.frozen = [] if until is None else leading_modules(self.network.body, until)
        self.learner = method(config.options, self.network, config.seed)
        self.learner.mirrored, self.learner.progress = config.flip, progress
        self.state = RunState(self.network, self.learner)
        memory = agreed_memory(config, self.learner)
        if self.learner.own_classifier:
            self.network.forget_classifier()
        self.given = self.network.classes
        if self.given not in (0, self.scenario.tasks[0].stop):
            raise UsageError(
                f"the weights have a classifier of {self.given} classes; the first task has "
                f"{self.scenario.tasks[0].stop}"
            )
        self.budget = None if config.budget is None else Budget(config.budget, config.method)
        self._began = 0.0
        self.recall: Recall | None = None
        if memory is not None:
            self.recall = Recall(
                memory, folder / MEMORY, self.scenario, seed=config.seed, device=self.device, progress=progress
            )

    def begin(self) -> None:
        """Make the memory, and take up what the folder has of the run."""
        config = self.config
        self.result = load_result(
            self.folder, config, self.scenario, self.dataset.fingerprint(), tuple(self._example.shape[1:]),
            self.progress,
        )  # fmt: skip
        if self.recall is not None:
            self.recall.open()
        elif (
            self.learner.rehearsal is Rehearsal.OPTIONAL
            and config.budget is not None
            and config.memory.exemplars is None
        ):
            self.progress.note(f"{config.method} keeps no samples in its budget; --exemplars herding gives it a memory")
        elif config.memory.asked_for:
            self.progress.note(f"{config.method} has no memory; what the options say of one is left aside")
        if self.learner.needs_front and self.feed.prepared and config.frozen_until is None:
            self.progress.note(
                f"{config.method} is of features that stay, and this run learns from images with the whole network: "
                "--set frozen_until=layer3.0 freezes what is up to that layer after the first task"
            )
        if not self.result.steps:
            save_result(self.folder, self.result)
        if self.recall is not None:
            self.recall.check(len(self.result.steps))
            self._share_budget()
        if self.result.steps and not self.result.finished:
            self.progress.note(f"{self.folder}: goes on after step {len(self.result.steps) - 1}")
            self.network.grow(self.scenario.tasks[len(self.result.steps) - 1].stop)
            if self.config.transfer and len(self.result.steps) > 1:
                self.network.transfer()
            if self.config.features:
                self._cut()
            self.state.load(self._path("step", len(self.result.steps)), self.device)
            self._share_budget()
        if self.recall is not None and self.recall.unlike:
            self.progress.note(
                "new samples do not pass through the lossy codec (through_codec=false): the network may learn to tell "
                "old from new by how sharp they are"
            )

    def finish(self) -> RunResult:
        """Do the steps that are left."""
        left = self.scenario.tasks[len(self.result.steps) :]
        with self.progress.task(self.config.method, len(left), "steps") as bar:
            for task in left:
                self._learn(task)
                bar.advance(1)
        return self.result

    def _learn(self, task: Task) -> None:
        """Do a step, measure what the learner knows then, and write it down."""
        self._began = time.monotonic()
        self._step(task)
        tasks = self.scenario.tasks[: task.number + 1]
        measured = evaluated(self.learner, self.feed.test(task), tasks)
        seconds = time.monotonic() - self._began
        representation = list[float]()
        if self.config.probe:
            representation = probed(self.network.body, self.feed.seen(task), self.feed.test(task), tasks)
        held_bytes, alone = self.learner.held(), self.state.alone
        step = StepResult(
            seconds=seconds, memory_bytes=self._memory_bytes(task),
            held_bytes=held_bytes, network_bytes=self.state.stored_bytes, parameters=self.state.parameters,
            probed=representation, alone=None if alone is None else alone.accuracy,
            alone_probed=None if alone is None else alone.probed, **measured,
        )  # fmt: skip
        if self.budget is not None:
            self.budget.check(step)
        self.result = self.result.with_step(step)
        if self.result.finished:
            self.learner.hand_over(self.folder)
        self._finish(task)
        self.progress.note(
            f"step {task.number}: {100 * step.accuracy:.2f} % of {task.stop} classes, "
            f"{step.memory_bytes + sum(held_bytes.values()):,} bytes, {step.seconds:.0f} s"
        )

    def _share_budget(self) -> None:
        """Give the memory what of the whole budget network and method will leave it."""
        if self.budget is not None and self.recall is not None and not self.config.memory.counted:
            own = self.learner.final_bytes([task.stop for task in self.scenario.tasks])
            if self.state.front is not None:
                own += stored_bytes(self.state.front)
            if self.config.transfer:
                own += self.network.scale_bytes
            self.recall.budget = self.budget.left(own)

    def _memory_bytes(self, task: Task) -> int:
        """Return what is kept of the tasks so far: the memory's files, or for upper bounds the samples themselves."""
        if self.learner.rehearsal is Rehearsal.EVERYTHING:
            return self.scenario.train_until(task.number).spec.bytes
        return self.recall.memory.bytes if self.recall else 0

    def _step(self, task: Task) -> None:
        new = self.scenario.train(task.number)
        learner, first = self.learner, task.number == 0
        if self.recall is not None and self.recall.takes_first and not first:
            self._draw_anew(task)
            self.recall.take(task.number, new, self._seeing())
        self._draw_anew(task)  # as if what is in the memory already had been taken again
        if self.network.classes < task.stop:
            self.network.grow(task.stop)
        if self.config.transfer and not first:
            self.network.transfer()
        learner.begin_step(task)
        with lent(self.feed.some(new)) as samples:
            learner.imprint(task, samples)
        trained = self._path("trained", task.number)
        if trained.exists():
            self._began -= self.state.load(trained, self.device)
        elif not (first and self.given == task.stop):
            self._learn_from(task, new)
            self.state.save(trained, seconds=time.monotonic() - self._began)
        if self.config.features and first:
            self._cut()
            new = self.scenario.train(0)
        self._draw_anew(task)
        with lent(self.feed.some(new)) as samples:
            learner.end_step(task, samples)
        if self.recall is not None:
            self._share_budget()
            self.recall.take(task.number, new, self._seeing())
            self.recall.adjust(task, self._seeing)
            known = self.recall.memory.samples
            if self.config.finetuning is not None and not first:
                self._draw_anew(task)
                learner.begin_finetuning(task)
                remembered = self.feed.remembered(task, known, self.config.finetuning.batch_size)
                self._train(task, self.config.finetuning, remembered, learner.exemplar_losses)
            with lent(lambda count=None: self.feed.batches(known)) as samples:
                learner.remember(samples)

    def _learn_from(self, task: Task, new: Subset) -> None:
        """Train on a task's samples and what is replayed beside them; all of them are let go of in the end."""
        training = self.config.training if task.number else self.config.base_training
        if self.config.alone and task.number:
            began = time.monotonic()
            self.state.alone = self._learn_alone(task, new)
            self._began += time.monotonic() - began
        stream, held_out = self.feed.stream(task, new, self.learner, self.recall, training.batch_size)
        blocks = Blocks(self.network.body) if self.config.analyse else None
        self._train(task, training, stream, blocks=blocks)
        if blocks is not None:
            self._analyse(task, blocks)
        again = self.learner.prune(task)
        if again:
            self._train(task, shortened(training, again), stream)
        if held_out:
            with lent(lambda count=None: self.feed.held_out(held_out)) as samples:
                self.learner.calibrate(samples)

    def _draw_anew(self, task: Task) -> None:
        """Seed what is drawn next by the task, whatever a resumed step has left out."""
        torch.manual_seed(1000 * self.config.seed + task.number)

    def _cut(self) -> None:
        """Let what is frozen stand before the network, whose samples are its features from here on."""
        assert self.config.frozen_until is not None
        front = cut(self.network, self.config.frozen_until)
        self.state.front, self.frozen = front, []
        self.scenario = scenario_of(self.config, seen_through(self.dataset, front, self.feed.prepare, self.device))
        self.feed = self.feed.beyond(self.scenario)
        if self.recall is not None:
            self.recall.scenario = self.scenario

    def _seeing(self, scored: bool = False) -> nn.Module:
        """Return a frozen copy of the network, or of its body, for stored samples as they are."""
        assert self.recall is not None
        seen = self.network if scored or self.recall.scored else self.network.body
        return frozen(_Seeing(copy.deepcopy(seen), self.feed.prepare))

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
        found = blocks.measured(self.network.body, self.feed.few(self.scenario.test_until(0), ANALYSED))
        write_analysis(self.folder, {**read_analysis(self.folder), task.number: found})

    def _learn_alone(self, task: Task, new: Subset) -> Alone:
        batch_size = training_alone(self.config).batch_size
        with torch.random.fork_rng():
            stream, _ = self.feed.stream(task, new, self.learner, self.recall, batch_size)
            return learn_alone(self.config, self.feed, self.trainer, task, stream, self._example, self.state.front)

    def _finish(self, task: Task) -> None:
        """Write what a step has come to; the files of what was before it go when that is done."""
        self.state.save(self._path("step", task.number + 1))
        save_result(self.folder, self.result)
        self._path("step", task.number).unlink(missing_ok=True)
        self._path("trained", task.number).unlink(missing_ok=True)

    def _path(self, kind: str, number: int) -> Path:
        return state_path(self.folder, kind, number)


class _Seeing(nn.Module):
    """A network or a body, of stored samples (B, *shape)."""

    def __init__(self, network: nn.Module, prepare: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self._prepare = network, prepare

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.network(self._prepare(x)))
