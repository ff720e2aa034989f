"""M2KD: its losses by hand, its masks, and that earlier networks come back as they were."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learning_runs import KilledAfter, body, config
from torch import nn

from krstore import SnapshotStore
from krstore.errors import ConfigError, UnknownNameError
from krstore.learning.harness import learn
from krstore.learning.learners import m2kd
from krstore.learning.learners._pruning import FREE, Masks
from krstore.learning.learners.m2kd import M2KD, Branched, auxiliary_loss
from krstore.learning.network import Network
from krstore.learning.results import RunResult
from krstore.learning.state import load_state
from krstore.learning.streams import Batch


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_the_auxiliary_loss_teaches_old_classes_and_classifies_all() -> None:
    logits, taught = torch.tensor([[0.3, -0.2, 0.8]]), torch.tensor([[1.5, -2.0]])
    loss = float(auxiliary_loss(logits, torch.tensor([2]), taught, 0.5))

    def term(logit: float, wanted: float) -> float:
        return -(wanted * math.log(sigmoid(logit)) + (1 - wanted) * math.log(1 - sigmoid(logit)))

    softmax = math.exp(0.8) / (math.exp(0.3) + math.exp(-0.2) + math.exp(0.8))
    expected = term(0.3, sigmoid(1.5)) + term(-0.2, sigmoid(-2.0)) - 0.5 * math.log(softmax)
    assert loss == pytest.approx(expected, rel=1e-6)
    first = float(auxiliary_loss(logits, torch.tensor([2]), None, 0.5))
    assert first == pytest.approx(-0.5 * math.log(softmax), rel=1e-6)


class Said(nn.Module):
    """Gives for any sample what it is told to, classifier and all."""

    def __init__(self, *rows: float) -> None:
        super().__init__()
        self.network, self.rows = nn.Module(), torch.tensor([rows])
        self.network.classes = len(rows)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.rows.expand(len(x), -1), -self.rows.expand(len(x), -1)


def test_each_earlier_network_teaches_its_own_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Network(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU()), 3)
    learner = M2KD({"layer": "1", "auxiliary": 0.7}, own, 0)
    own.grow(3)
    learner._stops, learner._teachers = [1, 2], {0: Said(0.4), 1: Said(-3.0, 1.1)}  # type: ignore[dict-item]
    logits, branch = torch.tensor([[0.3, -0.2, 0.8]]), torch.tensor([[0.1, 0.6, -0.5]])
    monkeypatch.setattr(Branched, "__call__", lambda self, x: (logits, branch))
    terms = learner.losses(Batch(torch.zeros(1, 4), torch.tensor([2]), torch.zeros(1, dtype=torch.bool), 0.0))

    def term(logit: float, wanted: float) -> float:
        return -(wanted * math.log(sigmoid(logit)) + (1 - wanted) * math.log(1 - sigmoid(logit)))

    mmd = term(0.3, sigmoid(0.4)) + term(-0.2, sigmoid(1.1)) + term(0.8, 1.0)
    assert float(terms["mmd"]) == pytest.approx(mmd, rel=1e-6)
    softmax = math.exp(-0.5) / (math.exp(0.1) + math.exp(0.6) + math.exp(-0.5))
    ad = term(0.1, sigmoid(-0.4)) + term(0.6, sigmoid(-1.1)) - 0.5 * math.log(softmax)
    assert float(terms["ad"]) == pytest.approx(0.7 * ad, rel=1e-6)


def test_masks_take_the_largest_of_each_layers_free_weights() -> None:
    layer = nn.Linear(4, 2)
    masks = Masks(layer)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -8.0, 3.0, 4.0], [-5.0, 6.0, -7.0, 2.0]]))
    masks.begin()
    masks.prune(0, 0.75)
    assert layer.weight.tolist() == [[0, -8, 0, 0], [0, 0, -7, 0]]
    with torch.no_grad():
        layer.weight += 1  # as momentum might
        layer.bias += 1
    masks.restore()
    assert layer.weight.tolist() == [[0, -7, 0, 0], [0, 0, -6, 0]]  # what was taken may still be trained
    masks.begin()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, 9.0, -0.1, 0.2], [0.3, 0.4, 9.0, -0.6]]))
    masks.restore()
    masks.prune(1, 0.5)
    expected = torch.tensor([[0.5, -7, 0, 0], [0, 0.4, -6, -0.6]])
    torch.testing.assert_close(layer.weight.detach(), expected)
    assert masks.index["weight"].tolist() == [[1, 0, FREE, FREE], [FREE, 1, 0, 1]]
    torch.testing.assert_close(masks.of_step(0)["weight"], torch.tensor([[0.0, -7, 0, 0], [0, 0, -6, 0]]))
    assert not torch.signbit(masks.of_step(1)["weight"][expected == 0]).any()


class Watched(M2KD):
    """Keeps what each network said of some samples when its step had ended."""

    said: list[torch.Tensor]

    def begin_step(self, task: Any) -> None:
        x = torch.randn(5, 4, 6, 6, generator=torch.Generator().manual_seed(0))
        self.network.eval()
        if task.number == 0:
            self.said = []
        else:
            with torch.no_grad():
                self.said.append(self.network(x)[:, : task.first])
        super().begin_step(task)
        for teacher, said in zip(self._teachers.values(), self.said, strict=True):
            torch.testing.assert_close(teacher(x)[0], said, rtol=0, atol=1e-6)


def run(data: Path, folder: Path, **settings: Any) -> RunResult:
    return learn(config(data, "m2kd", **{"options.layer": "2", **settings}), folder)


@pytest.mark.parametrize("settings", [{}, {"options.pruning": False}, {"memory.per_class": 4}])
def test_earlier_networks_come_back_as_they_were(
    data: Path, tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(m2kd, "M2KD", Watched)
    settings = {"memory.codec": None, "training.weight_decay": 0.1, **settings}
    result = run(data, tmp_path / "run", **settings)
    held = [step.held_bytes["snapshots"] for step in result.steps]
    assert result.steps[-1].held_bytes["auxiliary"] == 4 * 6 * (8 + 1)
    assert held == sorted(held)
    assert held[0] < held[1] < held[2]
    assert ("nme" in result.steps[-1].other_accuracy) == ("memory.per_class" in settings)


def test_a_run_leaves_a_store_of_the_networks_of_all_steps(data: Path, tmp_path: Path) -> None:
    result = run(data, tmp_path / "run")
    with SnapshotStore(tmp_path / "run" / "snapshots.krs") as store:
        assert (len(store), store.codec) == (len(result.tasks), "packnet")
        network = Network(body(), 8)
        for step, task in enumerate(np.cumsum([len(task) for task in result.tasks])):
            network.grow(int(task))
            named = {name: value for name, value in store.network(step).items() if not name.startswith("auxiliary.")}
            network.load_state_dict(named)
        saved = load_state(tmp_path / "run" / f"step{len(result.tasks)}.safetensors")["network"]
        assert all(torch.equal(value, saved[name]) for name, value in network.state_dict().items())
    run(data, tmp_path / "plain", **{"options.pruning": False})
    assert not (tmp_path / "plain" / "snapshots.krs").exists()


@pytest.mark.parametrize("settings", [{"options.multi_model": False}, {"options.skip": 1}])
def test_networks_that_teach_no_more_are_not_kept(data: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    settings = {"memory.codec": None, "options.pruning": False, **settings}
    whole = run(data, tmp_path / "run", **settings)
    snapshots = [step.held_bytes["snapshots"] for step in whole.steps]
    everyone = run(data, tmp_path / "all", **{**settings, "options.multi_model": True, "options.skip": 0})
    every = [step.held_bytes["snapshots"] for step in everyone.steps]
    assert snapshots == ([0, 0, 0] if "options.multi_model" in settings else [0, 0, every[2] - every[1]])
    with pytest.raises(KeyboardInterrupt):
        learn(config(data, "m2kd", **{"options.layer": "2", **settings}), tmp_path / "cut", progress=KilledAfter(1))
    again = run(data, tmp_path / "cut", **settings)
    assert [step.confusion for step in again.steps] == [step.confusion for step in whole.steps]


def test_a_run_that_is_interrupted_ends_as_if_it_had_not_been(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(data, tmp_path / "whole")
    for method in ("begin_step", "end_step"):
        original, calls = getattr(M2KD, method), []

        def fail(self: M2KD, task: Any, *rest: Any, calls: list[int] = calls, original: Any = original) -> None:
            calls.append(task.number)
            if task.number == 2 and calls.count(2) == 1:
                raise KeyboardInterrupt
            original(self, task, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(M2KD, method, fail)
            with pytest.raises(KeyboardInterrupt):
                run(data, tmp_path / method)
            again = run(data, tmp_path / method)
        assert [step.confusion for step in again.steps] == [step.confusion for step in whole.steps]
        assert [step.held_bytes for step in again.steps] == [step.held_bytes for step in whole.steps]


@pytest.mark.parametrize("settings", [{}, {"options.pruning": False}, {"options.pruning": False, "options.skip": 1}])
def test_exemplars_get_what_the_networks_leave_of_a_budget(
    data: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    budget = 36_000
    kept = [
        step.memory_bytes + step.network_bytes + sum(step.held_bytes.values())
        for step in run(data, tmp_path / "run", **{**settings, "memory.exemplars": "herding", "budget": budget}).steps
    ]
    assert max(kept) <= budget
    assert kept[-1] > budget - 5000  # one more of each class would not fit


def teachers_asked(made: M2KD, groups: int) -> list[int]:
    """Return which teacher speaks for each group of classes."""

    class Teacher:
        def __init__(self, number: int) -> None:
            self.number = number

        def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
            return torch.full((1, self.number + 1), float(self.number)), None

    made._stops = list(range(1, groups + 1))
    made._teachers = {number: Teacher(number) for number in set(made._asked(groups))}  # type: ignore[misc]
    taught, _ = made._taught(torch.zeros(1))
    assert taught is not None
    return [int(value) for value in taught[0]]


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({}, [0, 1, 2, 3]),
        ({"skip": 1}, [1, 1, 2, 3]),
        ({"skip": 2}, [2, 2, 2, 3]),
        ({"skip": 9}, [3, 3, 3, 3]),
        ({"multi_model": False}, [3, 3, 3, 3]),
    ],
)
def test_each_group_of_classes_is_taught_by_its_own_network(options: dict[str, Any], asked: list[int]) -> None:

    from krstore.learning.network import Network

    made = M2KD({"layer": "2", **options}, Network(body(), 8), 0)
    assert teachers_asked(made, 4) == asked


def test_options_that_cannot_be(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"options.layer of m2kd"):
        learn(config(data, "m2kd"), tmp_path / "a")
    with pytest.raises(ConfigError, match="options of m2kd need exemplars"):
        run(data, tmp_path / "b", **{"options.prediction": "nme", "memory.codec": None})
