"""How far decoded samples are, as a whole, from being like their source: the shift that a network sees."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

__all__ = ["Shift"]

SAMPLES = 500
ROUNDING = 1e-12  # of a channel's mean square: what is left of a constant one

Values = NDArray[np.float64]


class Shift:
    """Compares a source with its decoding, piece by piece.

    Args:
        count: how many samples there are.
        channels: C.
    """

    def __init__(self, count: int, channels: int) -> None:
        self._picked = np.zeros(count, bool)
        self._picked[np.random.default_rng(0).permutation(count)[:SAMPLES]] = True
        self._moments = np.zeros((2, 3, channels))
        self._looks: list[tuple[Values, Values]] = []

    def add(self, rows: NDArray[np.int64], truth: Values, decoded: Values) -> None:
        """Take samples (n, C, positions) and what they decode to."""
        for moments, values in zip(self._moments, (truth, decoded), strict=True):
            moments += [
                np.full(moments.shape[1], values.shape[0] * values.shape[2]), values.sum((0, 2)),
                np.square(values).sum((0, 2)),
            ]  # fmt: skip
        chosen = self._picked[rows]
        if chosen.any():
            self._looks.append((_look(truth[chosen]), _look(decoded[chosen])))

    def variance_kept(self) -> float | None:
        """Return the mean over channels of decoded over true variance; `None` where all channels are dead."""
        count, total, squares = np.moveaxis(self._moments, 1, 0)
        truth, decoded = np.maximum(0, squares / count - np.square(total / count))
        alive = truth > ROUNDING * squares[0] / count[0]
        return float((decoded[alive] / truth[alive]).mean()) if alive.any() else None

    def discriminator(self) -> float | None:
        """Return the accuracy, on the other half of the samples, of a logistic regression on each sample's look.

        A look is each channel's mean, deviation and mean step between neighbouring positions. `None` for fewer than
        four samples.
        """
        truth, decoded = (np.concatenate(looks) for looks in zip(*self._looks, strict=True))
        half = len(truth) // 2
        if half < 2:
            return None
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        labels = np.repeat([0, 1], half)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(np.concatenate([truth[:half], decoded[:half]]), labels)
        return float(model.score(np.concatenate([truth[-half:], decoded[-half:]]), labels))


def _look(values: Values) -> Values:
    """Return what the discriminator sees of samples (n, C, positions)."""
    steps = np.abs(np.diff(values, axis=2)).mean(2) if values.shape[2] > 1 else np.zeros(values.shape[:2])
    return np.concatenate([values.mean(2), values.std(2), steps], axis=1)
