"""In which order classes come. Three different orders go by "seed 1993" in the literature; here each has its name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from krstore.errors import UnknownNameError
from krstore.source import Ids

__all__ = ["ORDERS", "class_order"]

SEED = 1993
OWN = "seed"
IMAGES = 500  # of a class of CIFAR-100
DIGITS = 18  # of a seed


def _lucir(classes: int) -> Ids:
    """`RandomState(1993).permutation`: LUCIR, mnemonics, PyCIL, FACIL, MEMO. For 100: 68, 56, 78, 8, 23, ..."""
    return np.random.RandomState(SEED).permutation(classes)


def _icarl(classes: int) -> Ids:
    """iCaRL's, drawn after each class's 500 images have been shuffled; PODNet's and DER's. 87, 0, 52, 58, 44, ..."""
    state = np.random.RandomState(SEED)
    for _ in range(classes):
        state.shuffle(np.arange(IMAGES))
    return state.permutation(classes)


def _gfr(classes: int) -> Ids:
    """GFR's, which takes LUCIR's permutation as a map of labels, so that its inverse is the order. 69, 23, 57, ..."""
    return np.argsort(_lucir(classes))


ORDERS: dict[str, Callable[[int], Ids]] = {"lucir": _lucir, "icarl": _icarl, "gfr": _gfr, "ascending": np.arange}


def class_order(name: str, classes: int, seed: int = 0) -> Ids:
    """Return the order of a number of classes: element k is the class that is learnt k-th.

    Args:
        name: one of `ORDERS`, or a number: the seed of another random order, or ``"seed"``: the run's.
        seed: of the run.

    Raises:
        UnknownNameError: neither.
    """
    if name == OWN:
        name = str(seed)
    if name.isdecimal() and len(name) <= DIGITS:
        return np.random.default_rng(int(name)).permutation(classes)
    if name not in ORDERS:
        raise UnknownNameError(
            "class order", name, [*ORDERS, OWN], hint=f"A number of up to {DIGITS} digits is the seed of a random one."
        )
    return np.asarray(ORDERS[name](classes), np.int64)
