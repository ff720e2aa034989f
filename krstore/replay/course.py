"""What a process replays, epoch after epoch without end, and where it is in that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from krstore.distributed import processes
from krstore.replay.order import Order
from krstore.source import Ids

__all__ = ["Course", "Place"]


class Place(NamedTuple):
    """How far a replay has come: samples of an epoch, and of one more the part that rounding still owes a mix."""

    epoch: int
    offset: int
    owed: float = 0.0


class Course:
    """The positions of the samples that a process replays.

    Args:
        order: of each epoch.
        process: rank and number of processes that share each epoch; `None` for those of `torch.distributed` where it is
            initialised by the time that positions are asked for.
    """

    def __init__(self, order: Order, process: tuple[int, int] | None) -> None:
        self._order, self._process = order, process
        self._drawn: tuple[Order, int, Ids] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_drawn": None}

    @property
    def order(self) -> Order:
        """The order of each epoch, in this process."""
        rank, world = self._process or processes()
        if (rank, world) != (self._order.rank, self._order.world):
            self._order = replace(self._order, rank=rank, world=world)
        return self._order

    def batches(self, size: int, *, drop_last: bool) -> int:
        """Return how many batches of a size an epoch has."""
        full, rest = divmod(len(self.order), size)
        return full + bool(rest and not drop_last)

    def epoch(self, number: int) -> Ids:
        """Return the positions of an epoch, drawn once: a batch must not cost a permutation of all samples."""
        order, drawn = self.order, self._drawn
        if drawn is None or drawn[0] is not order or drawn[1] != number:
            self._drawn = drawn = order, number, order.epoch(number)
        return drawn[2]

    def after(self, place: Place, count: int) -> Ids:
        """Return the `count` positions that follow a place, of as many epochs as they take."""
        pieces, (epoch, offset, _) = [np.empty(0, np.int64)], place
        while count > 0:
            pieces.append(self.epoch(epoch)[offset : offset + count])
            count -= len(pieces[-1])
            epoch, offset = epoch + 1, 0
        return np.concatenate(pieces)

    def behind(self, place: Place, count: int) -> Place:
        """Return the place `count` samples behind another."""
        samples = len(self.order)
        epochs, offset = divmod(min(place.offset, samples) + count, samples)
        return place._replace(epoch=place.epoch + epochs, offset=offset)
