"""Accuracies, probes and transfer, of small runs and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learning_runs import config
from torch import nn

from krstore.learning.evaluation import evaluated, probed
from krstore.learning.harness import learn
from krstore.learning.learners.finetune import Finetune
from krstore.learning.network import Network
from krstore.learning.recall import Recall
from krstore.learning.scenario import Task


def test_forward_transfer_is_against_a_network_of_random_weights(data: Path, tmp_path: Path) -> None:
    plain = learn(config(data, "replay"), tmp_path / "plain")
    beside = learn(config(data, "replay", alone=True), tmp_path / "beside")
    assert [step.confusion for step in beside.steps] == [step.confusion for step in plain.steps]
    alone = [step.alone for step in beside.steps]
    assert alone[0] is None
    own = np.diagonal(beside.matrix)
    expected = np.mean([own[1] - alone[1], own[2] - alone[2]])  # type: ignore[operator]
    assert beside.summary()["forward_transfer"] == pytest.approx(expected)
    assert "forward_transfer" not in plain.summary()


def test_forward_transfer_of_a_task_that_is_not_trained_on(data: Path, tmp_path: Path) -> None:
    untrained = {"epochs": 0, "milestones": ()}
    steps = learn(config(data, "finetune", alone=True, training=untrained), tmp_path).steps
    assert all(step.alone is not None for step in steps[1:])


def test_top_5_by_hand() -> None:
    class Fixed(Finetune):
        def predict(self, x: torch.Tensor) -> torch.Tensor:
            return x

    network = Network(nn.Identity(), 7)
    network.grow(7)
    scores = torch.tensor([[7.0, 6, 5, 4, 3, 2, 1]] * 4)  # the classes' ranks are their numbers
    found = evaluated(Fixed({}, network, 0), [(scores, torch.tensor([0, 4, 5, 6]))], [Task(0, 0, 7, ())])
    assert (found["accuracy"], found["top5"]) == (0.25, 0.5)


def test_a_confusion_matrix_by_hand() -> None:
    class Fixed(Finetune):
        def predict(self, x: torch.Tensor) -> torch.Tensor:
            return x

    network = Network(nn.Identity(), 3)
    network.grow(3)
    said, truth = torch.tensor([0, 2, 2, 1, 2, 2, 0]), torch.tensor([0, 0, 0, 1, 1, 2, 2])
    tasks = [Task(0, 0, 2, (7, 8)), Task(1, 2, 3, (9,))]
    found = evaluated(Fixed({}, network, 0), [(nn.functional.one_hot(said, 3).float(), truth)], tasks)
    assert found["confusion"] == [[1, 0, 2], [0, 1, 1], [1, 0, 1]], "a row a true class"
    assert found["by_task"] == [2 / 5, 1 / 2]
    assert found["accuracy"] == 3 / 7


def test_a_probe_judges_representations_by_training_samples_of_all_classes() -> None:
    class Known(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x[:, 0], x[:, 1]], 1)

    tasks = [Task(0, 0, 2, (0, 1)), Task(1, 2, 4, (2, 3))]
    y = torch.arange(4).repeat(20)
    x = torch.stack([y % 2, y // 2, torch.zeros_like(y)], 1).float()
    assert probed(Known(), [(x, y)], [(x, y)], tasks) == [1.0, 1.0]
    assert probed(Known(), [(x, y)], [(x, y)], [Task(0, 0, 1, (0,))]) == [1.0]
    wrong = torch.where(y < 2, y, 5 - y)  # 2 and 3 for one another
    assert probed(Known(), [(x, y)], [(x, wrong)], tasks) == [1.0, 0.0]


def test_transfer_of_representations_is_told_apart_from_that_of_predictions(data: Path, tmp_path: Path) -> None:
    settings = config(data, "finetune", alone=True, probe=True)
    plain = learn(config(data, "finetune"), tmp_path / "plain")
    result = learn(settings, tmp_path / "run")
    assert [step.confusion for step in result.steps] == [step.confusion for step in plain.steps]
    (first,), (a, b), (c, d, e) = (step.probed for step in result.steps)
    one, two = (step.alone_probed for step in result.steps[1:])
    assert one is not None
    assert two is not None
    summary = result.summary()
    assert summary["representation_backward_transfer"] == pytest.approx(((a - first) / 2 + (c - first + d - b) / 3) / 2)
    assert summary["representation_forward_transfer"] == pytest.approx((b - one + e - two) / 2)
    assert c > result.steps[-1].by_task[0]  # forgotten by the classifier, not by the embeddings
    assert "representation_backward_transfer" not in plain.summary()


def test_what_was_trained_alone_is_kept_with_a_step_that_was_not_taken(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(data, "replay", alone=True, probe=True)
    whole = learn(settings, tmp_path / "whole")
    real = Recall.take

    def killed(self: Recall, number: int, *given: Any) -> None:
        if number == 1:
            raise KeyboardInterrupt
        real(self, number, *given)

    monkeypatch.setattr(Recall, "take", killed)
    with pytest.raises(KeyboardInterrupt):
        learn(settings, tmp_path / "cut")
    monkeypatch.undo()
    again = learn(settings, tmp_path / "cut")
    assert [step.alone_probed for step in again.steps] == [step.alone_probed for step in whole.steps]
