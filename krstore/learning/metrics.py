"""What a class-incremental run is judged by.

All of them come from one matrix: ``accuracy[i, j]`` is the accuracy after step i on the test samples of the classes
that came with step j, both from 0; NaN for j > i.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "average_incremental",
    "backward_transfer",
    "forgetting",
    "forgetting_by_task",
    "forward_transfer",
    "initial_forgetting",
]

Matrix = NDArray[np.float64]


def average_incremental(curve: Matrix, *, first: bool = True) -> float:
    """Return the mean of the accuracies on all classes seen, over the steps (Rebuffi et al., CVPR 2017).

    Args:
        curve: the accuracy on all classes seen so far, after each step (T + 1,).
        first: step 0 counts too, as in LUCIR and mnemonics; iCaRL and KRIL leave it out.
    """
    return float(np.mean(curve if first or len(curve) == 1 else curve[1:]))


def forgetting(accuracy: Matrix) -> float:
    """Return the mean, over all tasks but the last, of the best accuracy a task ever had less its last one.

    As in Chaudhry et al., ECCV 2018, and PyCIL; 0 where there is one task.
    """
    return float(np.mean(forgetting_by_task(accuracy))) if len(accuracy) > 1 else 0.0


def forgetting_by_task(accuracy: Matrix) -> Matrix:
    """Return, of each task but the last (T,), the best accuracy that it ever had less its last one."""
    best: Matrix = np.nanmax(accuracy[:, :-1], axis=0)
    return best - accuracy[-1, :-1]


def initial_forgetting(accuracy: Matrix) -> float:
    """Return the forgetting rate F of the mnemonics paper: by how much the accuracy on the first classes has fallen."""
    return float(accuracy[0, 0] - accuracy[-1, 0])


def backward_transfer(accuracy: Matrix) -> float:
    """Return BWT as DER prints it (Yan et al., CVPR 2021): the mean over steps i >= 1 of what has changed since.

    For each such step, the mean over the tasks j <= i of ``accuracy[i, j] - accuracy[j, j]``, the 0 of j = i included.
    """
    steps = range(1, len(accuracy))
    own = np.diagonal(accuracy)
    return float(np.mean([np.mean(accuracy[i, : i + 1] - own[: i + 1]) for i in steps])) if len(accuracy) > 1 else 0.0


def forward_transfer(accuracy: Matrix, alone: Matrix) -> float:
    """Return FWT as DER prints it: the mean over steps i >= 1 of ``accuracy[i, i] - alone[i]``.

    Args:
        accuracy: the matrix.
        alone: (T + 1,), the accuracy on each task's classes of a network trained from random weights on that task and
            the memory; its first element is not used.
    """
    own = np.diagonal(accuracy)
    return float(np.mean(own[1:] - alone[1:])) if len(own) > 1 else 0.0
