"""In which order samples are replayed: by epoch, seed and balance, and which of them a process of several gets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from krstore.errors import UnknownNameError, UsageError
from krstore.source import Ids

__all__ = ["BALANCES", "Order"]

BALANCES = ("proportional", "classes", "stores")


@dataclass(frozen=True)
class Order:
    """The samples of each epoch, as positions 0..n-1.

    Attributes:
        groups: of each position (n,), the class or store whose turns are as frequent as any other's; `None` for each
            position once an epoch.
        samples: n.
        shuffle: in random order; without it, and without groups, ascending.
        seed: of that order.
        rank, world: this process among those that share an epoch; each gets as many samples.
    """

    samples: int
    groups: Ids | None
    shuffle: bool
    seed: int
    rank: int = 0
    world: int = 1

    @classmethod
    def of(
        cls, balance: str, labels: Ids, stores: Ids | None, *, shuffle: bool, seed: int, rank: int, world: int
    ) -> Order:
        """Return the order of samples with these labels (n,), of these stores (n,).

        Raises:
            UnknownNameError: no such balance.
            UsageError: a balance without shuffling, or a rank that is not in 0..world-1.
        """
        if balance not in BALANCES:
            raise UnknownNameError("balance", balance, BALANCES)
        if balance != "proportional" and not shuffle:
            raise UsageError(f"balance={balance!r} draws at random; it needs shuffle=True")
        if not 0 <= rank < world:
            raise UsageError(
                f"rank={rank} is not in 0..{world - 1}" if world > 0 else f"world_size={world} is not positive"
            )
        keys = {"proportional": None, "classes": labels, "stores": np.zeros_like(labels) if stores is None else stores}
        return cls(len(labels), keys[balance], shuffle, seed, rank, world)

    def __len__(self) -> int:
        """Return how many samples this process gets in an epoch."""
        return -(-self.samples // self.world)

    def epoch(self, number: int) -> Ids:
        """Return the positions of an epoch (len(self),)."""
        order = np.arange(self.samples)
        if self.shuffle:
            rng = np.random.default_rng([self.seed, number])
            order = rng.permutation(order) if self.groups is None else self._balanced(rng)
        return np.resize(order, len(self) * self.world)[self.rank :: self.world]

    def _balanced(self, rng: np.random.Generator) -> Ids:
        """Let groups take turns, in a new order each round; a group begins anew, reshuffled, when it is through."""
        groups = [np.flatnonzero(self.groups == key) for key in np.unique(self.groups)]  # type: ignore[arg-type]
        rounds = -(-self.samples // len(groups))
        columns = []
        for group in groups:
            passes = -(-rounds // len(group))
            columns.append(np.concatenate([rng.permutation(group) for _ in range(passes)])[:rounds])
        return np.asarray(rng.permuted(np.stack(columns, axis=1), axis=1).reshape(-1)[: self.samples])
