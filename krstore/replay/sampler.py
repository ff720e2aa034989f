"""The batches of a replay for a `DataLoader`, whose workers decode them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import Sampler

from krstore.errors import UsageError
from krstore.replay.course import Course

__all__ = ["Positions", "ReplaySampler"]


class Positions(list[int]):
    """A batch that a `ReplaySampler` has made, or a part of some."""

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return Positions(found) if isinstance(index, slice) else found

    def __add__(self, other: Any) -> Positions:  # type: ignore[override]
        return Positions([*self, *other])

    def __radd__(self, other: Any) -> Positions:
        return Positions([*other, *self])


class ReplaySampler(Sampler[list[int]]):
    """The positions of each batch of an epoch, in the order, of the size and in the balance of iterating the replay.

    Each iteration is the next epoch. A `DataLoader` asks for batches before they are used, so it is the loop that
    knows where it is: `set_epoch` begins there.

    Args:
        course: what the replay goes through.
        batch_size: of the replay.
        drop_last: whether it leaves out a smaller last batch.
    """

    def __init__(self, course: Course, batch_size: int, *, drop_last: bool) -> None:
        self._course, self._size, self._drop_last = course, batch_size, drop_last
        self._epoch, self._begin = 0, 0

    def __len__(self) -> int:
        """Return how many batches an epoch has, in this process, wherever the next iteration begins."""
        return self._course.batches(self._size, drop_last=self._drop_last)

    def set_epoch(self, epoch: int, batch: int = 0) -> None:
        """Let the next iteration be that of an epoch, without its first `batch` batches.

        Raises:
            UsageError: a number is negative.
        """
        if epoch < 0 or batch < 0:
            raise UsageError(f"epoch={epoch}, batch={batch}: neither can be negative")
        self._epoch, self._begin = epoch, batch

    def __iter__(self) -> Iterator[list[int]]:
        order, size, begin = self._course.order.epoch(self._epoch), self._size, self._begin
        self._epoch, self._begin = self._epoch + 1, 0
        for number in range(begin, len(self)):
            yield Positions(order[number * size : (number + 1) * size].tolist())
