"""The loop over epochs and batches, the same for every learner."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from krstore.errors import UsageError
from krstore.learning.blocks import Blocks
from krstore.learning.config import Training
from krstore.learning.learners.base import Learner
from krstore.learning.optimisation import optimiser_of, schedule_of
from krstore.learning.scenario import Task
from krstore.learning.streams import Batch, Stream
from krstore.progress import Progress

__all__ = ["Trainer"]


@dataclass(frozen=True)
class Trainer:
    """Trains a learner's network on a stream of batches.

    Attributes:
        device: where.
        precision: see `krstore.learning.config.RunConfig`.
        progress: shown how it goes.
    """

    device: str
    precision: str
    progress: Progress

    def train(
        self, learner: Learner, task: Task, training: Training, stream: Stream, label: str,
        frozen: Sequence[nn.Module] = (), losses: Callable[[Batch], dict[str, Tensor]] | None = None,
        blocks: Blocks | None = None,
    ) -> None:  # fmt: skip
        """Train, and leave the network in eval mode.

        Args:
            label: of the progress bar.
            frozen: modules that stay as they are, norm statistics too.
            losses: named terms of a batch's loss; default the learner's.
            blocks: watch the training.

        Raises:
            UsageError: the loss or the weights are no longer finite.
        """
        for module in frozen:
            module.requires_grad_(False)
        groups = [
            {
                "params": [p for p in group["params"] if p.requires_grad],
                "lr": training.learning_rate * group.get("rate", 1.0),
                "weight_decay": group.get("weight_decay", training.weight_decay),
            }
            for group in learner.parameter_groups(task)
        ]
        optimiser = optimiser_of(groups, training)
        schedule = schedule_of(optimiser, training, stream.batches)
        with self.progress.task(label, training.epochs * stream.batches, "batches") as bar:
            for _ in range(training.epochs):
                learner.train_mode()
                for module in frozen:
                    module.eval()
                for batch in stream.epoch():
                    terms = self._terms(losses or learner.losses, batch)
                    values = torch.stack(list(terms.values()))
                    loss, figures = values.sum(), dict(zip(terms, values.tolist(), strict=True))
                    if not math.isfinite(sum(figures.values())):
                        raise UsageError(f"{label}: the loss is no longer finite ({figures}); {_cure(batch)}")
                    optimiser.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    learner.after_backward()
                    if blocks is not None:
                        blocks.after_backward()
                    optimiser.step()
                    learner.after_update()
                    schedule.step()
                    bar.advance(1, **figures)
                if blocks is not None:
                    blocks.after_epoch()
        learner.network.eval()
        if not all(parameter.isfinite().all() for parameter in learner.network.parameters()):
            raise UsageError(f"{label}: weights are no longer finite; lower the learning rate")

    def _terms(self, losses: Callable[[Batch], dict[str, Tensor]], batch: Batch) -> dict[str, Tensor]:
        with self._arithmetic():
            terms = losses(batch)
        return {name: value.float() for name, value in terms.items()}

    def _arithmetic(self) -> contextlib.AbstractContextManager[object]:
        kind = self.device.partition(":")[0]
        wanted = self.precision == "bfloat16" or (self.precision == "auto" and kind == "cuda")
        return torch.autocast(kind, torch.bfloat16, enabled=wanted)


def _cure(batch: Batch) -> str:
    """Return what is to be done about a loss that is not finite."""
    finite = batch.x.isfinite().flatten(1).all(1)
    if finite.all():
        return "lower the learning rate"
    old = "replayed" if batch.replayed[~finite].any() else "training"
    return f"{int((~finite).sum())} {old} samples of the batch are not finite; look at the data"
