"""What a learner is, in one screen; `docs/learner-authors.md` walks through one.

The harness (`krstore.learning.harness`) owns the loop, the optimiser and its schedule, augmentation, evaluation, the
memory and its bytes, checkpoints. A learner says what its paper adds, at these places of a step::

    begin_step(task)          keep a teacher; the classifier has grown already
    imprint(task, samples)    initialise new weights
    parameter_groups(task)    what is trained, at which multiple of the rate
    train_mode()              which parts stay in eval mode
    losses(batch)             named terms, as the paper writes them; the harness adds them up
    after_backward()          masks on gradients
    after_update()            limits on weights
    prune(task)               weights that are taken away, and how much is trained again then
    calibrate(samples)        what is fitted to samples that were held out
    end_step(task, samples)   importances, generators; with the task's samples for the last time
    begin_finetuning(task)    before training on what the memory holds alone, by `exemplar_losses`
    remember(samples)         look at what the memory holds then
    predict(x), also(x)       logits, and those of other ways to predict
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Protocol

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krstore.config import checked_options
from krstore.learning.network import Network, stored_bytes
from krstore.learning.scenario import Task
from krstore.learning.streams import Batch
from krstore.progress import SILENT, Progress

__all__ = ["Learner", "LearnerConfig", "Rehearsal", "SampleBatches", "cross_entropy", "frozen"]


class SampleBatches(Protocol):
    """Yields the samples of a task, (x, y), each time that it is called; all, or a random number of them.

    They are there while the learner's method that was given them runs, and a `UsageError` afterwards.
    """

    def __call__(self, count: int | None = None) -> Iterator[tuple[Tensor, Tensor]]: ...


class Rehearsal(Enum):
    """What of earlier tasks a learner sees: nothing, what its memory replays, or, as upper bounds do, all of it.

    With `OPTIONAL` it sees what a memory replays where the run asks for one, and nothing otherwise.
    """

    NOTHING = "nothing"
    OPTIONAL = "optional"
    MEMORY = "memory"
    EVERYTHING = "everything"


class LearnerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all learners' hyper-parameters; the defaults are the paper's."""


class Learner(ABC):
    """A method of class-incremental learning.

    Args:
        options: its hyper-parameters.
        network: what it trains; the harness grows its classifier.
        seed: of everything random that the learner does itself.

    Attributes:
        codec: of its memory, where it is what it is with that one alone.
        cosine: whether it needs a classifier of cosines.
        transferable: whether weights may be replaced by factors of them (`krstore.learning.network.Network.transfer`).
        rebuilds: whether it makes a body of its own of the network's, and says itself which parts of it stay.
        own_classifier: whether it cannot use a classifier that was trained by cross-entropy, so that the first task is
            trained even where such a one is given.
        needs_exemplars: whether it cannot do without a memory, as its options are.
        needs_front: whether its paper learns from features of layers that stay as the first task has left them.
        mirrored: whether training samples are mirrored; set by the harness.
        progress: shown how long work of the learner's own goes; set by the harness.
        held_out: this share of what the memory has of each old class, and as many samples of each new one, are not
            trained on but given to `calibrate`; from the second task on.

    Raises:
        UnknownNameError: an option that there is not.
        ConfigError: an option of the wrong type or out of range.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    rehearsal: ClassVar[Rehearsal] = Rehearsal.NOTHING
    codec: ClassVar[str | None] = None
    cosine: ClassVar[bool] = False
    transferable: bool = True
    rebuilds: ClassVar[bool] = False
    Config: ClassVar[type[LearnerConfig]] = LearnerConfig
    held_out: float = 0.0
    own_classifier: bool = False
    needs_exemplars: bool = False
    needs_front: ClassVar[bool] = False
    mirrored: bool = True
    progress: Progress = SILENT

    def __init__(self, options: Mapping[str, Any], network: Network, seed: int) -> None:
        self.config: Any = checked_options(f"method {self.name}", self.Config, options)
        self.network, self.seed = network, seed

    def begin_step(self, task: Task) -> None:
        """Prepare for a task, before any of its batches."""

    def imprint(self, task: Task, samples: SampleBatches) -> None:
        """Initialise new weights from a task's samples, before it is trained on."""

    def parameter_groups(self, task: Task) -> list[dict[str, Any]]:
        """Return groups for the optimiser; ``rate`` in one multiplies the learning rate of all."""
        return [{"params": list(self.network.parameters())}]

    def train_mode(self) -> None:
        """Put the network into training mode."""
        self.network.train()

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of the loss of a batch."""

    def after_backward(self) -> None:
        """Change gradients before the optimiser's step."""

    def after_update(self) -> None:
        """Change weights after the optimiser's step."""

    def prune(self, task: Task) -> float:
        """Take weights away when a task has been trained on; return the share of its epochs to train for once more."""
        return 0.0

    def calibrate(self, samples: SampleBatches) -> None:
        """Fit what is fitted to samples that were held out, when the task has been trained on."""

    def begin_finetuning(self, task: Task) -> None:
        """Prepare for fine-tuning on what the memory holds alone."""

    def exemplar_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of the loss of fine-tuning on what the memory holds alone."""
        return {"ce": F.cross_entropy(self.network(batch.x), batch.y)}

    def end_step(self, task: Task, samples: SampleBatches) -> None:
        """Draw from a task what later ones need, while its samples are there."""

    def remember(self, samples: SampleBatches) -> None:
        """Look at all that the memory holds when a task has been taken into it."""

    def predict(self, x: Tensor) -> Tensor:
        """Return logits (B, classes seen)."""
        return torch.as_tensor(self.network(x))

    def also(self, x: Tensor) -> dict[str, Tensor]:
        """Return logits (B, classes seen) of other ways to predict, by name; they are told beside the first."""
        return {}

    def hand_over(self, folder: Path) -> None:
        """Write what the method has for others into a run's folder, when all tasks have been learnt."""

    def held(self) -> dict[str, int]:
        """Return the bytes, by name, of what the method keeps between steps beside network and memory."""
        return {name: tensor.nbytes for name, tensor in self.state().items()}

    def final_bytes(self, stops: Sequence[int]) -> int:
        """Return the bytes that network and method will come to, where so many classes have come with each task.

        The most that they can, but for methods whose networks shrink, which learn it as tasks come.
        """
        classifier = 4 * stops[-1] * (self.network.width + 1)
        return stored_bytes(self.network.body) + classifier + sum(self.held().values())

    def reshape(self, state: Mapping[str, Tensor]) -> None:
        """Give the network the form of one whose state, by name, is to be loaded; its classes it has already."""

    def state(self) -> dict[str, Tensor]:
        """Return what the method keeps between steps beside the network."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` returned."""


def cross_entropy(logits: Tensor, y: Tensor, first: int, over: str) -> Tensor:
    """Return the cross-entropy of logits (B, C) over all classes seen, or over the ``"new"`` ones, from `first` on."""
    if over == "all" or int(y.min()) < first:
        return F.cross_entropy(logits, y)
    return F.cross_entropy(logits[:, first:], y - first)


def frozen(module: nn.Module) -> nn.Module:
    """Put a module into eval mode and train it no more."""
    return module.eval().requires_grad_(False)
