"""The conformance suite of learners."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
import torch

from krstore.arrays import ArraySource
from krstore.errors import UsageError
from krstore.learning import Dataset, Learner, Rehearsal, RunConfig, RunResult, Task, build_run_config, learn
from krstore.learning.learners import get_learner

__all__ = ["check_learner", "example_dataset"]

TRAINING = {"epochs": 2, "milestones": (), "learning_rate": 0.02, "batch_size": 16}
RUN = {
    "data": "examples", "base": 0, "steps": 3, "crop": 0, "device": "cpu", "base_training": TRAINING,
    "training": TRAINING, "model": "krstore.backbones:ResNet",
    "model_args": {"blocks": [1, 1], "widths": [4, 8], "classes": 2, "shortcut": "A"},
}  # fmt: skip
KILLED = (("end_step", 0), ("begin_step", 1), ("end_step", 1))  # before and after the training of a task


def example_dataset(classes: int = 6, *, seed: int = 0) -> Dataset:
    """Return images (8, 8, 3), uint8, told apart by their colours: 20 of each class to learn from, 10 to test on."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(40, 216, (classes, 1, 1, 3))

    def images(each: int) -> ArraySource:
        labels = np.repeat(np.arange(classes), each)
        pixels = colours[labels] + rng.normal(0, 25, (len(labels), 8, 8, 3))
        return ArraySource(pixels.clip(0, 255).astype(np.uint8), labels)

    return Dataset.of(images(20), images(10))


def check_learner(learner: str | type[Learner], folder: Path, *, settings: Mapping[str, Any] | None = None) -> None:
    """Put a learner through everything the contract promises, in runs of three small tasks.

    Args:
        learner: the class, or its name as `krstore learn` takes it.
        folder: an empty folder to work in.
        settings: of the runs, as `krstore.learning.build_run_config` takes them, for example
            ``{"options.temperature": 3}``; a learner with a memory keeps five exemplars of each class by default.

    Raises:
        AssertionError: says what was promised and not kept.
        as `krstore.learning.learn`.
    """
    name = learner if isinstance(learner, str) else f"{learner.__module__}:{learner.__qualname__}"
    method = get_learner(name)
    exemplars = {"memory.per_class": 5} if method.rehearsal in (Rehearsal.MEMORY, Rehearsal.OPTIONAL) else {}
    given = {**RUN, **exemplars, **(settings or {})}
    dataset = example_dataset()
    _check_options(name, method, given, folder, dataset)
    config = build_run_config(name, given)
    with _seen(method, "hand_over") as ended:
        whole = learn(config, folder / "whole", dataset=dataset)
    assert len(ended) == 1, f"{name}: hand_over was called {len(ended)} times"
    _check_bytes(name, ended[0], whole)
    _check_resumed(name, method, config, folder, dataset)


def _check_options(name: str, method: type[Learner], given: Mapping[str, Any], folder: Path, dataset: Dataset) -> None:
    """Every option has a default and survives JSON; unknown ones are refused, before there is a run."""
    try:
        defaults = method.Config()
    except TypeError as error:
        raise AssertionError(f"{name}: every option needs a default ({error})") from None
    again = msgspec.json.decode(msgspec.json.encode(defaults), type=method.Config)
    assert again == defaults, f"{name}: the options do not survive JSON"
    wrong = {**given, "options": {"no such option": 1}}
    why = None
    try:
        learn(build_run_config(name, wrong), folder / "refused", dataset=dataset)
    except UsageError as error:
        why = str(error)
    assert why is not None, f"{name}: an unknown option was accepted"
    assert "no such option" in why, f"{name}: an unknown option was refused for another reason: {why}"
    assert not (folder / "refused").exists(), f"{name}: an unknown option was refused after the run had begun"


def _check_bytes(name: str, learner: Learner, whole: RunResult) -> None:
    """What is kept between steps is counted, comes back, and is no more than what was foretold."""
    state, held, last = learner.state(), learner.held(), whole.steps[-1]
    for key, value in state.items():
        assert isinstance(value, torch.Tensor), f"{name}: state() has {key!r}, a {type(value).__name__}; not a tensor"
    assert last.held_bytes == held, f"{name}: held() was {last.held_bytes} after the last step and is now {held}"
    held_bytes = sum(last.held_bytes.values())
    assert held_bytes or not any(value.nbytes for value in state.values()), (
        f"{name}: state() keeps {', '.join(state)} between steps, and held() counts none of it"
    )
    stops = list(itertools.accumulate(map(len, whole.tasks)))
    kept, foretold = last.network_bytes + held_bytes, learner.final_bytes(stops)
    assert foretold >= kept, f"{name}: final_bytes said {foretold:,} bytes, and {kept:,} are kept"
    copied = {key: value.detach().clone() for key, value in state.items()}
    learner.load_state(copied)
    again = learner.state()
    assert again.keys() == copied.keys(), (
        f"{name}: load_state takes up {list(copied)} and state() returns {list(again)}"
    )
    for key, value in copied.items():
        assert torch.equal(again[key].cpu(), value.cpu()), f"{name}: {key!r} of state() is another after load_state"


def _check_resumed(name: str, method: type[Learner], config: RunConfig, folder: Path, dataset: Dataset) -> None:
    """A run that is killed, and gone on with, ends as if it had not been."""
    for hook, number in KILLED:
        with _killed(method, hook, number), contextlib.suppress(KeyboardInterrupt):
            learn(config, folder / "killed", dataset=dataset)
            raise AssertionError(f"{name}: {hook} was not called for task {number}")
    killed, whole = (learn(config, folder / run, dataset=dataset) for run in ("killed", "whole"))
    ended = "is there in state() all that later steps and predict need?"
    for own, other in zip(killed.steps, whole.steps, strict=True):
        assert own.confusion == other.confusion, f"{name}: a run that was killed has learnt something else; {ended}"
    last = f"step{len(whole.steps)}.safetensors"
    states = [(folder / run / last).read_bytes() for run in ("killed", "whole")]
    assert states[0] == states[1], f"{name}: a run that was killed has ended with another state; {ended}"


@contextlib.contextmanager
def _seen(method: type[Learner], hook: str) -> Iterator[list[Learner]]:
    """Collect the learners whose hook is called meanwhile."""
    original, seen = getattr(method, hook), list[Learner]()

    def watched(self: Learner, *given: Any) -> Any:
        seen.append(self)
        return original(self, *given)

    with patch.object(method, hook, watched):
        yield seen


@contextlib.contextmanager
def _killed(method: type[Learner], hook: str, number: int) -> Iterator[None]:
    """Interrupt a run where it calls a hook for a task."""
    original = getattr(method, hook)

    def interrupted(self: Learner, task: Task, *rest: Any) -> Any:
        if task.number == number:
            raise KeyboardInterrupt
        return original(self, task, *rest)

    with patch.object(method, hook, interrupted):
        yield
