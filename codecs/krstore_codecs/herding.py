"""herding, and two selections to compare it with: the real samples that stand for their class.

Herding is iCaRL's (Rebuffi et al., CVPR 2017, Alg. 4): the next exemplar is the one that brings the mean of those
chosen nearest to the class mean. Samples are compared as vectors of length 1: of a network, of an archive of
embeddings, or their own elements.
"""

from __future__ import annotations

import warnings

import numpy as np

from krstore.source import Ids
from krstore_codecs._exemplars import Embeddings, Exemplars

__all__ = ["Herding", "KMeans", "Random"]


class Herding(Exemplars):
    """The samples whose running mean follows the class mean best."""

    name = "herding"

    def rank(self, embeddings: Embeddings, count: int, seed: int) -> Ids:
        """Return p_k = argmin ||mu - (phi(x) + sum of those chosen) / k|| over those left, k = 1 to `count`."""
        mean, chosen = embeddings.mean(0, dtype=np.float64), np.zeros(embeddings.shape[1])
        squares, left = np.square(embeddings).sum(1, dtype=np.float64), np.full(len(embeddings), True)
        order = np.empty(count, np.int64)
        for k in range(count):
            # ||(k + 1) mu - chosen - phi||^2, without what is the same for all
            wanted = ((k + 1) * mean - chosen).astype(np.float32)
            with np.errstate(invalid="ignore"):  # OpenBLAS sets this flag now and then, of numbers that are all finite
                distances = squares - 2 * (embeddings @ wanted)
            order[k] = np.argmin(np.where(left, distances, np.inf))
            left[order[k]] = False
            chosen += embeddings[order[k]]
        return order


class Random(Exemplars):
    """Samples drawn at random, without replacement."""

    name = "random"
    embeds = False

    def rank(self, embeddings: Embeddings, count: int, seed: int) -> Ids:
        """Return `count` random rows."""
        return np.random.default_rng(seed).permutation(len(embeddings))[:count]


class KMeans(Exemplars):
    """The samples nearest to the centres of as many clusters, those of large clusters first."""

    name = "kmeans"
    compression = 4  # fewer clusters are not the first of more

    def rank(self, embeddings: Embeddings, count: int, seed: int) -> Ids:
        """Return the row nearest to each centre; where two share one, the next nearest that is left."""
        from sklearn.cluster import KMeans as Clustering
        from sklearn.exceptions import ConvergenceWarning

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of samples that are the same
            found = Clustering(count, n_init=1, random_state=seed).fit(embeddings)
        left, order = np.full(len(embeddings), True), []
        for centre in np.argsort(-np.bincount(found.labels_, minlength=count), kind="stable"):
            distances = np.square(embeddings - found.cluster_centers_[centre]).sum(1)
            order.append(int(np.argmin(np.where(left, distances, np.inf))))
            left[order[-1]] = False
        return np.array(order, np.int64)
