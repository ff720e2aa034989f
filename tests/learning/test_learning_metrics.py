"""Metrics against values worked out by hand, and the class orders against what the literature's code prints."""

from __future__ import annotations

import numpy as np
import pytest

from krstore.errors import UnknownNameError
from krstore.learning.metrics import (
    average_incremental,
    backward_transfer,
    forgetting,
    forward_transfer,
    initial_forgetting,
)
from krstore.learning.orders import ORDERS, class_order

NAN = np.nan
ACCURACY = np.array([[0.9, NAN, NAN], [0.7, 0.8, NAN], [0.75, 0.5, 0.6]])


def test_average_incremental_accuracy_with_and_without_the_first_step() -> None:
    curve = np.array([0.9, 0.7, 0.5])
    assert average_incremental(curve) == pytest.approx(0.7)
    assert average_incremental(curve, first=False) == pytest.approx(0.6)
    assert average_incremental(curve[:1], first=False) == 0.9


def test_forgetting_is_from_the_best_accuracy_a_task_ever_had() -> None:
    assert forgetting(ACCURACY) == pytest.approx(((0.9 - 0.75) + (0.8 - 0.5)) / 2)
    assert forgetting(ACCURACY[:1, :1]) == 0


def test_the_mnemonics_papers_f_is_of_the_first_classes() -> None:
    assert initial_forgetting(ACCURACY) == pytest.approx(0.15)


def test_backward_transfer_counts_the_zero_of_the_last_task() -> None:
    first = ((0.7 - 0.9) + 0) / 2
    second = ((0.75 - 0.9) + (0.5 - 0.8) + 0) / 3
    assert backward_transfer(ACCURACY) == pytest.approx((first + second) / 2)
    assert backward_transfer(ACCURACY[:1, :1]) == 0


def test_forward_transfer() -> None:
    assert forward_transfer(ACCURACY, np.array([NAN, 0.75, 0.7])) == pytest.approx((0.05 - 0.1) / 2)
    assert forward_transfer(ACCURACY[:1, :1], np.array([0.9])) == 0


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("lucir", [68, 56, 78, 8, 23, 84, 90]),
        ("icarl", [87, 0, 52, 58, 44, 91, 68]),
        ("gfr", [69, 23, 57, 12]),
        ("ascending", [0, 1, 2, 3]),
    ],
)
def test_the_orders_of_the_literature(name: str, first: list[int]) -> None:
    order = class_order(name, 100)
    assert order[: len(first)].tolist() == first
    assert sorted(order) == list(range(100))


def test_other_orders() -> None:
    assert class_order("7", 20).tolist() == class_order("7", 20).tolist() != class_order("8", 20).tolist()
    assert all(sorted(class_order(name, 10)) == list(range(10)) for name in ORDERS)
    with pytest.raises(UnknownNameError, match=r"Did you mean 'lucir'"):
        class_order("lucri", 100)
