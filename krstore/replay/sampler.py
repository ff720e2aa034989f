"""The batches of a replay for a `DataLoader`, whose workers decode them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch.utils.data import Sampler

if TYPE_CHECKING:
    from krstore.replay.batches import Replay

__all__ = ["ReplaySampler"]


class ReplaySampler(Sampler[list[int]]):
    """The positions of each batch of an epoch, in the order, of the size and in the balance of iterating the replay.

    Each iteration is the next epoch. A `DataLoader` asks for batches before they are used, so it is the loop that
    knows where it is: `set_epoch` begins there.
    """

    def __init__(self, replay: Replay) -> None:
        self._replay, self._epoch, self._begin = replay, 0, 0
        replay.sampled = True

    def __len__(self) -> int:
        """Return how many batches an epoch has, in this process."""
        return self._replay.batches

    def set_epoch(self, epoch: int, batch: int = 0) -> None:
        """Let the next iteration be that of an epoch, without its first `batch` batches."""
        self._epoch, self._begin = epoch, batch

    def __iter__(self) -> Iterator[list[int]]:
        order, size = self._replay.order.epoch(self._epoch), self._replay.batch_size
        begin = self._begin
        self._epoch, self._begin = self._epoch + 1, 0
        for number in range(begin, len(self)):
            yield order[number * size : (number + 1) * size].tolist()
