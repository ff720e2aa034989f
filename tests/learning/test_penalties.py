"""Terms of EWC, MAS, GFR, KRIL and of the cross-entropy, against values worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from krstore.learning import training
from krstore.learning.config import Training
from krstore.learning.learners import gfr
from krstore.learning.learners._importance import mean_over_samples, penalty
from krstore.learning.learners.base import cross_entropy
from krstore.learning.learners.ewc import EWC
from krstore.learning.learners.gfr import GFR, Generator, apart, critic_loss, generator_loss, gradient_penalty
from krstore.learning.learners.kril import KRIL, auxiliary_loss
from krstore.learning.learners.mas import MAS
from krstore.learning.network import Network
from krstore.learning.scenario import Task
from krstore.learning.streams import Batch
from krstore.progress import SILENT


def two_weights() -> Network:
    """A network without a body: logits are W x + b of two numbers."""
    network = Network(nn.Identity(), 2)
    network.grow(2)
    with torch.no_grad():
        network.head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        network.head.bias.zero_()
    return network


X, Y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])


def test_the_fisher_information_is_of_single_samples() -> None:
    """Gradient of sample i: (p_i - onehot) x_i^T; squared, then averaged, not the other way round."""
    fisher = mean_over_samples(
        two_weights(), lambda count=None: iter([(X, Y)]), lambda z, y: nn.functional.cross_entropy(z, y[None]),
        lambda g: g.square(), None,
    )  # fmt: skip
    p1, p2 = torch.softmax(torch.tensor([1.0, 0.0]), 0), torch.softmax(torch.tensor([0.0, 2.0]), 0)
    target = torch.tensor([1.0, 0.0])
    expected = (torch.outer(p1 - target, X[0]).square() + torch.outer(p2 - target, X[1]).square()) / 2
    torch.testing.assert_close(fisher["head.weight"], expected)
    torch.testing.assert_close(fisher["head.bias"], ((p1 - target).square() + (p2 - target).square()) / 2)


def test_mas_takes_the_absolute_gradient_of_the_squared_norm_of_each_sample() -> None:
    """Of ||W x + b||^2: 2 z x^T. The second sample's bias gradient has the other sign and must not cancel."""
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    omega = mean_over_samples(
        two_weights(), lambda count=None: iter([(x, Y)]), lambda z, y: z.square().sum(), lambda g: g.abs(), None
    )
    torch.testing.assert_close(omega["head.bias"], torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(omega["head.weight"], torch.tensor([[2.0, 0.0], [0.0, 0.0]]))


def test_penalties_and_how_importances_are_kept() -> None:
    weights = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]])}
    anchor, importance = {"w": torch.tensor([[0.0, 2.0], [1.0, 4.0]])}, {"w": torch.tensor([[1.0, 5.0], [0.5, 7.0]])}
    assert penalty(weights, anchor, importance).item() == 1 * 1 + 0.5 * 4
    task = Task(1, 3, 4, (9,))
    averaging, adding = EWC({"average": True}, two_weights(), 0), EWC({}, two_weights(), 0)
    for learner, before, own in ((averaging, 0.75, 0.25), (adding, 1, 1), (MAS({}, two_weights(), 0), 1, 1)):
        alone = learner.importance(Task(0, 0, 2, (1, 2)), lambda count=None: iter([(X, Y)]))
        learner.load_state({name: torch.ones_like(value) for name, value in alone.items()})
        again = learner.importance(task, lambda count=None: iter([(X, Y)]))
        torch.testing.assert_close(again["head.weight"], before + own * alone["head.weight"])
    assert EWC({"strength": 10}, two_weights(), 0).pull(torch.tensor(3.0)).item() == 15
    assert MAS({"strength": 10}, two_weights(), 0).pull(torch.tensor(3.0)).item() == 30
    ewc = EWC({"clamp": 0.01}, two_weights(), 0).importance(Task(0, 0, 2, (1, 2)), lambda count=None: iter([(X, Y)]))
    assert max(float(value.max()) for value in ewc.values()) == pytest.approx(0.01)


def test_the_fisher_information_is_not_limited_unless_asked_for() -> None:
    task = Task(0, 0, 2, (1, 2))
    measured = EWC({}, two_weights(), 0).importance(task, lambda count=None: iter([(X, Y)]))
    p = torch.softmax(torch.tensor([0.0, 2.0]), 0)  # of the second sample, whose label has the smaller score
    assert float(measured["head.weight"][0, 1]) == pytest.approx(float((1 - p[0]) ** 2) / 2)


class Once:
    """A stream of one batch."""

    batches = 1

    def epoch(self) -> Iterator[Batch]:
        yield Batch(X, torch.tensor([1, 2]), torch.tensor([True, False]))


def test_training_slows_krils_body_down_by_twenty(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(nn.Linear(2, 2), 2)
    network.grow(3)
    learner, task = KRIL({}, network, 0), Task(1, 2, 3, (0,))
    learner.begin_step(task)
    rates = []
    monkeypatch.setattr(
        training, "optimiser_of",
        lambda groups, given: (rates.extend(group["lr"] for group in groups), torch.optim.SGD(groups, 1.0))[1],
    )  # fmt: skip
    trainer = training.Trainer("cpu", "float32", SILENT)
    trainer.train(learner, task, Training(epochs=1, learning_rate=0.2, milestones=()), Once(), "step")  # type: ignore[arg-type]
    assert rates == pytest.approx([0.01, 0.2])


@pytest.mark.parametrize(("learner_type", "strength", "expected"), [(EWC, 10, 60.0), (MAS, 10, 120.0)])
def test_a_change_of_the_last_tasks_weights_is_pulled_back(
    learner_type: type[EWC | MAS], strength: float, expected: float
) -> None:
    """One weight moves by 2 with importance 3: 3 * 2^2 * strength, half of it for EWC; new classes are free."""
    network = two_weights()
    learner = learner_type({"strength": strength}, network, 0)
    learner.load_state({name: torch.full_like(value, 3.0) for name, value in network.named_parameters()})
    learner.begin_step(Task(1, 2, 3, (9,)))
    network.grow(3)
    batch = Batch(X, torch.tensor([2, 2]), torch.tensor([False, False]))
    assert learner.losses(batch)["pull"].item() == 0
    with torch.no_grad():
        network.head.weight[1, 0] += 2
        network.head.weight[2] += 5
    assert learner.losses(batch)["pull"].item() == pytest.approx(expected)


def test_a_cross_entropy_over_new_classes_leaves_old_ones_alone() -> None:
    logits = torch.tensor([[9.0, 1.0, 2.0], [9.0, 3.0, 1.0]])
    y = torch.tensor([1, 2])
    expected = nn.functional.cross_entropy(logits[:, 1:], y - 1)
    torch.testing.assert_close(cross_entropy(logits, y, 1, "new"), expected)
    torch.testing.assert_close(cross_entropy(logits, y, 1, "all"), nn.functional.cross_entropy(logits, y))
    mixed = torch.tensor([0, 2])
    torch.testing.assert_close(cross_entropy(logits, mixed, 1, "new"), nn.functional.cross_entropy(logits, mixed))


def test_the_auxiliary_loss_is_a_mean_of_squared_distances() -> None:
    assert auxiliary_loss(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 4.0]])).item() == 15


def test_kril_teaches_only_what_is_recited_and_slows_the_body_down() -> None:
    network = Network(nn.Linear(2, 2), 2)
    network.grow(3)
    learner = KRIL({"auxiliary": 3.0}, network, 0)
    learner.begin_step(Task(1, 2, 3, (0,)))
    before = network.body(X).detach()
    with torch.no_grad():
        network.body.bias += torch.tensor([0.0, 2.0])  # type: ignore[operator]
    x = torch.cat([X, 5 * X])
    batch = Batch(x, torch.tensor([0, 1, 2, 2]), torch.tensor([True, True, False, False]))
    terms = learner.losses(batch)
    assert terms["aux"].item() == pytest.approx(3 * 4)
    torch.testing.assert_close(terms["ce"], nn.functional.cross_entropy(network(x), batch.y))
    torch.testing.assert_close(before + torch.tensor([0.0, 2.0]), network.body(X).detach())
    groups = learner.parameter_groups(Task(1, 2, 3, (0,)))
    assert [group.get("rate", 1.0) for group in groups] == [0.05, 1.0]
    assert [group.get("rate", 1.0) for group in learner.parameter_groups(Task(0, 0, 2, (0, 1)))] == [1.0, 1.0]
    learner.begin_step(Task(0, 0, 2, (0, 1)))
    assert "aux" not in learner.losses(batch)


def test_the_gradient_penalty_of_a_linear_critic() -> None:
    """Its gradient is the same everywhere: (||w|| - 1)^2."""
    weight = torch.tensor([3.0, 4.0])
    critic = LinearCritic(weight)
    assert gradient_penalty(critic, torch.randn(5, 2), torch.randn(5, 2), torch.zeros(5)).item() == pytest.approx(16)


class LinearCritic(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def test_gfr_weighs_its_terms_by_the_old_classes_of_each_new_one() -> None:
    network = Network(nn.Linear(2, 2), 2)
    network.grow(2)
    learner = GFR({"epochs": 1, "hidden": 4, "replayed": 6, "distillation": 0.5}, network, 0)
    learner.begin_step(Task(0, 0, 2, (0, 1)))
    batch = Batch(X, torch.tensor([0, 1]), torch.tensor([False, False]))
    assert learner.losses(batch).keys() == {"ce"}
    learner.end_step(Task(0, 0, 2, (0, 1)), lambda count=None: iter([(X, torch.tensor([0, 1]))]))
    network.grow(3)
    learner.begin_step(Task(1, 2, 3, (2,)))
    before = network.body(X).detach()
    with torch.no_grad():
        network.body.bias += torch.tensor([3.0, 0.0])  # type: ignore[operator]
    batch = Batch(X, torch.tensor([2, 2]), torch.tensor([False, False]))
    torch.manual_seed(0)
    terms = learner.losses(batch)
    k = 2.0
    assert terms["distillation"].item() == pytest.approx(0.5 * k * np.sqrt(2 * 9), rel=1e-5)
    torch.testing.assert_close(terms["ce"], nn.functional.cross_entropy(network(X), batch.y) / (k + 1))
    torch.manual_seed(0)
    features, labels = learner._generated(6, X.device)
    assert labels.max() < 2
    expected = k * nn.functional.cross_entropy(network.head(features), labels) / (k + 1)
    torch.testing.assert_close(terms["replay"], expected)
    learner.train_mode()
    assert not network.training
    state = {name: value.clone() for name, value in learner.state().items()}
    again = GFR({"epochs": 1, "hidden": 4}, network, 0)
    again.load_state(state)
    assert all(torch.equal(state[name], value) for name, value in again.state().items())
    assert before.shape == (2, 2)


def test_the_classifier_keeps_what_it_has_when_it_grows() -> None:
    network = two_weights()
    before = network(X).detach()
    network.grow(5)
    torch.testing.assert_close(network(X)[:, :2], before)
    assert network(X).shape == (2, 5)


def test_a_generator_stays_near_an_earlier_one() -> None:
    assert apart(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 0.0]])).item() == 1 + 4 + 9


def test_the_critic_and_the_generator_want_opposite_scores() -> None:
    """A critic that scores the first number times 1 + label: real (1, 2), generated (3, 5), of labels 0 and 1."""

    class Scores(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x[:, 0] * (1 + y)

    labels, real, fake = torch.tensor([0, 1]), torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [5.0]])
    slopes = ((1 - 1) ** 2 + (2 - 1) ** 2) / 2
    expected = (3 + 10) / 2 - (1 + 4) / 2 + 10 * slopes
    assert critic_loss(Scores(), real, fake, labels, 10.0).item() == pytest.approx(expected)
    assert generator_loss(Scores(), fake, labels).item() == pytest.approx(-(3 + 10) / 2)


def test_the_generator_is_held_to_the_last_one_by_k(monkeypatch: pytest.MonkeyPatch) -> None:
    """k, three old classes for a new one, times a thousandth of a distance of 5."""
    taken: dict[float, list[float]] = {}
    for alignment in (0.0, 1e-3):
        losses = taken.setdefault(alignment, [])
        monkeypatch.setattr(gfr, "_step", lambda optimiser, loss, losses=losses: losses.append(loss.item()))
        monkeypatch.setattr(gfr, "apart", lambda generated, wanted: torch.tensor(5.0))
        torch.manual_seed(0)
        network = Network(nn.Identity(), 2)
        network.grow(4)
        learner = GFR({"epochs": 1, "critic_steps": 1, "alignment": alignment, "latent": 3, "hidden": 4}, network, 0)
        for task in (Task(0, 0, 3, (0, 1, 2)), Task(1, 3, 4, (3,))):
            learner.begin_step(task)
            learner.end_step(task, lambda count=None, first=task.first: iter([(X, torch.full((2,), first))]))
    assert len(taken[0.0]) == len(taken[1e-3]) == 4, "a step of each, in each task"
    assert taken[1e-3][:3] == pytest.approx(taken[0.0][:3])
    assert taken[1e-3][3] - taken[0.0][3] == pytest.approx(3 * 1e-3 * 5)


def test_classes_that_a_generator_knows_keep_their_rows() -> None:
    generator = Generator(3, 16, 4)
    generator.grow(5)
    kept = generator.classes.weight.detach().clone()
    generator.grow(7)
    assert torch.equal(generator.classes.weight[:5], kept)
    assert len(generator.classes.weight) == 7
