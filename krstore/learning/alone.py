"""What forward transfer is measured against: a network that learns a task alone, from random weights."""

from __future__ import annotations

from typing import NamedTuple

from msgspec.structs import replace
from torch import Tensor, nn

from krstore.learning.config import RunConfig, Training
from krstore.learning.evaluation import evaluated, probed
from krstore.learning.feed import Feed
from krstore.learning.front import cut
from krstore.learning.learners import get_learner
from krstore.learning.network import build_network
from krstore.learning.optimisation import shortened
from krstore.learning.scenario import Task
from krstore.learning.streams import Stream
from krstore.learning.training import Trainer

__all__ = ["Alone", "learn_alone", "training_alone"]


class Alone(NamedTuple):
    """Accuracy on a task's classes of a network that was trained alone, and that of a probe of its embeddings."""

    accuracy: float
    probed: float | None = None


def training_alone(config: RunConfig) -> Training:
    """Return how it is trained: in as many epochs as the method trains a task for."""
    own = config.alone_training or config.training
    return replace(shortened(own, config.training.epochs / max(1, own.epochs)), epochs=config.training.epochs)


def learn_alone(
    config: RunConfig,
    feed: Feed,
    trainer: Trainer,
    task: Task,
    stream: Stream,
    example: Tensor,
    front: nn.Module | None,
) -> Alone:
    """Return how well a network of random weights, trained on what a learner sees, does on a task's classes.

    Args:
        stream: what the learner sees of the task.
        example: a sample (1, *shape) as the whole network takes it.
        front: the part of the network that is cut off, if any.
    """
    network = build_network(config.model, None, example, config.model_args).to(feed.device)
    if front is not None:
        cut(network, str(config.frozen_until))
    network.grow(task.stop)
    learner = get_learner("finetune")({"logits": "all"}, network, config.seed)
    learner.begin_step(task)
    trainer.train(learner, task, training_alone(config), stream, f"step {task.number}, alone")
    tasks = feed.scenario.tasks[: task.number + 1]
    accuracy = evaluated(learner, feed.test(task), tasks)["by_task"][-1]
    found = probed(network.body, feed.seen(task), feed.test(task), tasks)[-1] if config.probe else None
    return Alone(accuracy, found)
