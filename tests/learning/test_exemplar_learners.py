"""Learners that live on exemplars: each term against values worked out by hand, and the traps of their public codes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from krstore.learning.learners import get_learner
from krstore.learning.learners._distillation import distillation
from krstore.learning.learners._nearest import exemplar_means
from krstore.learning.learners.base import Learner
from krstore.learning.learners.bic import corrected, fit_bias
from krstore.learning.learners.icarl import binary_loss
from krstore.learning.learners.lucir import less_forget, margin_ranking
from krstore.learning.learners.wa import aligned
from krstore.learning.network import CosineHead, Network
from krstore.learning.scenario import Task
from krstore.learning.streams import Batch, Samples, hold_out
from krstore.testing import ArraySource

FIRST, SECOND = Task(0, 0, 2, (0, 1)), Task(1, 2, 3, (2,))


def learner(name: str, **options: Any) -> Learner:
    """Return a learner of two classes whose embeddings are its samples (B, 2)."""
    torch.manual_seed(0)
    method = get_learner(name)
    network = Network(nn.Identity(), 2, method.cosine)
    network.grow(2)
    with torch.no_grad():
        network.head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        if isinstance(network.head, nn.Linear):
            network.head.bias.zero_()
    made = method(options, network, 0)
    made.begin_step(FIRST)
    return made


def second_task(made: Learner, row: tuple[float, float] = (0.5, 0.5)) -> None:
    """Go on to a third class, whose weights are `row`."""
    made.network.grow(3)
    with torch.no_grad():
        made.network.head.weight[2] = torch.tensor(row)
        if isinstance(made.network.head, nn.Linear):
            made.network.head.bias[2] = 0
    made.begin_step(SECOND)


def batch(x: list[list[float]], y: list[int]) -> Batch:
    labels = torch.tensor(y)
    return Batch(torch.tensor(x), labels, labels < 2)


def softmax(values: list[float]) -> list[float]:
    total = sum(map(math.exp, values))
    return [math.exp(value) / total for value in values]


def number(value: torch.Tensor) -> float:
    return float(value.detach())


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


# distillation


def test_distillation_is_a_cross_entropy_at_a_temperature() -> None:
    taught, said = [2.0, -1.0], [0.5, 0.25]
    wanted, got = softmax([v / 2 for v in taught]), softmax([v / 2 for v in said])
    expected = -sum(p * math.log(q) for p, q in zip(wanted, got, strict=True))
    both = torch.tensor([said, said]), torch.tensor([taught, taught])
    assert float(distillation(*both, 2.0)) == pytest.approx(expected)  # no factor of T^2


def test_lwf_takes_new_classes_alone_and_keeps_the_old_scores() -> None:
    made = learner("lwf", strength=3.0)
    assert made.losses(batch([[1.0, 0.0]], [0])).keys() == {"ce"}
    second_task(made, (3.0, 1.0))
    with torch.no_grad():
        made.network.head.weight[0] = torch.tensor([0.0, 1.0])  # moved since
    terms = made.losses(batch([[1.0, 2.0]], [2]))
    assert number(terms["ce"]) == pytest.approx(0)  # of one new class
    wanted, got = softmax([0.5, 2.0]), softmax([1.0, 2.0])  # half of 1 and 4, of 2 and 4
    expected = -3 * sum(p * math.log(q) for p, q in zip(wanted, got, strict=True))
    assert number(terms["kd"]) == pytest.approx(expected, rel=1e-5)
    with_old = made.losses(batch([[1.0, 2.0]], [0]))
    assert number(with_old["ce"]) == pytest.approx(-math.log(softmax([2.0, 4.0, 5.0])[0]), rel=1e-5)


# iCaRL


def test_icarls_targets_of_old_classes_are_the_teachers_for_every_sample() -> None:
    logits, taught = torch.tensor([[0.3, -0.2, 0.8]]), torch.tensor([[1.5, -2.0]])
    new = float(binary_loss(logits, torch.tensor([2]), taught))
    old = float(binary_loss(logits, torch.tensor([0]), taught))

    def term(logit: float, target: float) -> float:
        return -(target * math.log(sigmoid(logit)) + (1 - target) * math.log(1 - sigmoid(logit)))

    kept = term(0.3, sigmoid(1.5)) + term(-0.2, sigmoid(-2.0))
    assert new == pytest.approx(kept + term(0.8, 1), rel=1e-5)
    assert old == pytest.approx(kept + term(0.8, 0), rel=1e-5)  # its own label 0 does not count
    first = float(binary_loss(logits[:, :2], torch.tensor([1]), None))
    assert first == pytest.approx(term(0.3, 0) + term(-0.2, 1), rel=1e-5)


def test_means_are_of_unit_embeddings_and_of_mirror_images() -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(6, 2, bias=False))
    with torch.no_grad():
        body[1].weight.copy_(torch.tensor([[1.0, 0, 0, 0, 0, 0], [0, 0, 1.0, 0, 0, 0]]))
    x = torch.zeros(2, 1, 2, 3)
    x[0, 0, 0] = torch.tensor([3.0, 5.0, 4.0])  # (3, 4); mirrored (4, 3)
    x[1, 0, 0] = torch.tensor([0.0, 5.0, 7.0])
    means = exemplar_means(body, lambda count=None: iter([(x, torch.tensor([1, 0]))]), 2)
    torch.testing.assert_close(means, torch.full((2, 2), 1 / math.sqrt(2)))
    tall = torch.tensor([[[[1.0, 0, 0], [0, 0, 9.0]]]])  # mirrored left to right, not upside down
    for mirrored, expected in ((True, [1 / math.sqrt(2), 1 / math.sqrt(2)]), (False, [1.0, 0.0])):
        means = exemplar_means(body, lambda count=None: iter([(tall, torch.tensor([0]))]), 1, mirrored=mirrored)
        torch.testing.assert_close(means, torch.tensor([expected]))


def test_icarl_predicts_by_the_nearest_mean_and_tells_the_classifiers_accuracy_too() -> None:
    made = learner("icarl")
    made.remember(lambda count=None: iter([(torch.tensor([[5.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 0]))]))
    x = torch.tensor([[1.0, 0.1]])
    assert int(made.predict(x).argmax()) == 1
    assert int(made.also(x)["cnn"].argmax()) == 0
    other = learner("icarl", prediction="cnn", loss="ce")
    other.remember(lambda count=None: iter([(torch.tensor([[5.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 0]))]))
    assert int(other.predict(x).argmax()) == 0
    assert int(other.also(x)["nme"].argmax()) == 1
    assert other.losses(batch([[1.0, 0.0]], [0])).keys() == {"ce"}
    second_task(other)
    assert other.losses(batch([[1.0, 0.0]], [0])).keys() == {"ce", "kd"}


# BiC


def test_bics_terms_have_the_shares_of_old_and_new_classes_and_corrected_targets() -> None:
    made = learner("bic")
    made.load_state({"pairs": torch.tensor([[2.0, 0.5], [1.0, -1.0]])})
    second_task(made)
    terms = made.losses(batch([[1.0, 1.0]], [2]))
    logits = [2 * 1.0 + 0.5, 2.0 - 1.0, 1.0]
    assert number(terms["ce"]) == pytest.approx(-math.log(softmax(logits)[2]) / 3, rel=1e-5)
    wanted, got = softmax([2.5 / 2, 1.0 / 2]), softmax([2.5 / 2, 1.0 / 2])
    expected = -2 / 3 * sum(p * math.log(q) for p, q in zip(wanted, got, strict=True))
    assert number(terms["kd"]) == pytest.approx(expected, rel=1e-5)


def test_bias_is_fitted_to_logits_not_to_their_softmax() -> None:
    """The trap: softmax taken twice, which the optimum of a known problem would show."""
    logits = torch.tensor([[0.0, math.log(3.0)]]).repeat(4, 1)
    y = torch.tensor([0, 1, 0, 1])
    alpha, beta = fit_bias(logits, y, 1).tolist()
    assert alpha * math.log(3.0) + beta == pytest.approx(0, abs=1e-3)  # as likely one as the other
    torch.testing.assert_close(
        corrected(logits, torch.tensor([[1.0, 0], [alpha, beta]])), torch.zeros(4, 2), atol=1e-3, rtol=0
    )


def test_old_pairs_stay_and_only_new_ones_are_fitted() -> None:
    made = learner("bic")
    made.load_state({"pairs": torch.tensor([[2.0, 0.5], [1.0, -1.0]])})
    second_task(made)
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    made.calibrate(lambda count=None: iter([(x, torch.arange(60) % 3)]))
    pairs = made.state()["pairs"]
    torch.testing.assert_close(pairs[:2], torch.tensor([[2.0, 0.5], [1.0, -1.0]]))
    assert not torch.equal(pairs[2], torch.tensor([1.0, 0.0]))
    assert torch.equal(made.network.head.weight[:2], torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    expected = corrected(made.network(x), pairs)
    torch.testing.assert_close(made.predict(x), expected)
    assert made.held() == {"pairs": 3 * 2 * 4}


@pytest.mark.parametrize("apart", [True, False])
def test_what_is_held_out_is_balanced_and_not_trained_on(apart: bool) -> None:
    labels = np.repeat([0, 1, 2], (20, 30, 100))
    values = np.arange(150, dtype=np.float32)[:, None]
    whole = Samples(ArraySource(values, labels), "both")
    old, new = (Samples(ArraySource(values[rows], labels[rows]), "part") for rows in (labels < 2, labels == 2))
    left, taken = hold_out([new, old] if apart else [whole], 2, 0.1, 0)

    def content(parts: Any) -> tuple[list[float], list[int]]:
        x = [float(v) for part in parts for v in part.decode_tensor(np.arange(len(part))).flatten()]
        return x, sorted(int(label) for part in parts for label in part.labels)

    assert content(taken)[1] == [0, 0, 1, 1, 2, 2]  # a tenth of the smallest old class
    assert sorted(content(taken)[0] + content(left)[0]) == values[:, 0].tolist()
    one_new = Samples(ArraySource(values[:41], np.repeat([0, 1, 2], (20, 20, 1))), "one")
    assert hold_out([one_new], 2, 0.1, 0)[1] == []
    few = Samples(ArraySource(values[:2], np.array([0, 1])), "few")
    assert hold_out([few], 2, 0.1, 0)[1] == []


# WA


def test_weights_are_aligned_by_the_mean_norm_of_each_class() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0], [0.0, 2.0]])
    expected = torch.cat([weight[:2], weight[2:] * (5 + 1) / (10 + 2)])
    torch.testing.assert_close(aligned(weight, 2), expected)


def test_wa_aligns_after_a_task_clamps_after_a_step_and_leaves_biases() -> None:
    made = learner("wa")
    second_task(made, (4.0, -3.0))
    made.after_update()
    assert made.network.head.weight[2].tolist() == [4.0, 0.0]
    with torch.no_grad():
        made.network.head.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    made.end_step(SECOND, lambda count=None: iter([]))
    assert number(made.network.head.weight[2].norm()) == pytest.approx(1.5)  # the mean of 1 and 2
    assert made.network.head.bias.tolist() == [1.0, 2.0, 3.0]
    free = learner("wa", clamp=False)
    second_task(free, (4.0, -3.0))
    free.after_update()
    assert free.network.head.weight[2].tolist() == [4.0, -3.0]
    terms = free.losses(batch([[0.0, 0.0]], [2]))
    assert number(terms["kd"]) == pytest.approx(2 / 3 * math.log(2), rel=1e-5)
    assert number(terms["ce"]) == pytest.approx(1 / 3 * math.log(3), rel=1e-5)


# LUCIR


def test_cosines_times_a_learnt_scale() -> None:
    head = CosineHead(2, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0, 5.0], [3.0, 4.0]]))
        head.scale.fill_(10.0)
    torch.testing.assert_close(head(torch.tensor([[0.0, 7.0]])), torch.tensor([[10.0, 8.0]]))
    grown = Network(nn.Identity(), 2, cosine=True)
    grown.grow(2)
    with torch.no_grad():
        grown.head.scale.fill_(4.0)
    kept = grown.head.weight.detach().clone()
    grown.grow(3)
    torch.testing.assert_close(grown.head.weight[:2], kept)
    assert number(grown.head.scale) == 4.0


def test_less_forget_is_one_minus_the_cosine() -> None:
    f, f_old = torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 1.0], [3.0, 3.0]])
    assert float(less_forget(f, f_old)) == pytest.approx((1 - 0 + 1 - 1) / 2)


def test_margins_are_to_the_nearest_new_classes_only() -> None:
    cosines = torch.tensor([[0.6, 0.9, 0.3, 0.2, -0.5], [0.1, 0.2, 0.0, 0.4, 0.3]])
    y = torch.tensor([0, 1])
    expected = (0.5 - 0.6 + 0.3) + (0.5 - 0.6 + 0.2) + (0.5 - 0.2 + 0.4) + (0.5 - 0.2 + 0.3)
    assert float(margin_ranking(cosines, y, 2, margin=0.5, nearest=2)) == pytest.approx(expected / 4, rel=1e-5)


def test_lucirs_less_forget_grows_with_the_old_classes() -> None:
    made = learner("lucir")
    second_task(made)
    made.network.body = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        made.network.body.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))  # turns (1, 0) by a right angle
    terms = made.losses(batch([[1.0, 0.0]], [2]))
    assert terms.keys() == {"ce", "lf"}
    assert number(terms["lf"]) == pytest.approx(5 * math.sqrt(2))
    assert "mr" in made.losses(batch([[1.0, 0.0]], [0]))


def test_lucir_imprints_new_classes_and_leaves_the_old_ones_weights(tmp_path: Path) -> None:
    made = learner("lucir")
    second_task(made)
    x = torch.tensor([[3.0, 0.0], [0.0, 9.0]])
    made.imprint(SECOND, lambda count=None: iter([(x, torch.tensor([2, 2]))]))
    torch.testing.assert_close(made.network.head.weight[2], torch.tensor([1.5, 1.5]) / math.sqrt(2))  # length 1.5
    head, before = made.network.head.weight, made.network.head.weight.detach().clone()
    groups = made.parameter_groups(SECOND)
    assert sum(len(group["params"]) for group in groups) == 2  # weights and scale, once each
    optimiser = torch.optim.SGD([{"weight_decay": 0.1, **group} for group in groups], lr=0.5, momentum=0.9)
    for _ in range(3):
        loss = torch.stack(list(made.losses(batch([[1.0, 0.2], [0.3, 1.0]], [2, 0])).values())).sum()
        optimiser.zero_grad()
        loss.backward()
        made.after_backward()
        optimiser.step()
    assert torch.equal(head[:2], before[:2])
    assert not torch.equal(head[2], before[2])
