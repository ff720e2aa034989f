"""PyTorch Lightning: a new task's batches with replayed samples in them, as a `LightningDataModule`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from krstore.errors import MissingExtraError, UsageError
from krstore.replay import Replay

try:
    from lightning import LightningDataModule
except ImportError:
    raise MissingExtraError("lightning", "lightning", "krstore.adapters.lightning") from None

__all__ = ["ReplayDataModule"]

Batch = tuple[Tensor, Tensor]


class ReplayDataModule(LightningDataModule):
    """Trains on a new task with a share of replayed samples; validates on what it is given.

    Batches are ``(x, y)``, the new task's samples first. The place in the replay is part of Lightning's checkpoints.
    Where the replay's codec is lossy, let the new task pass through it too: encode it, and replay both stores.

    Args:
        new: the new task's batches.
        replay: of a store or a memory.
        share: of replayed samples in a batch; see `krstore.replay.Replay.mix`.
        validation: batches to validate on.

    Raises:
        UsageError: a share out of range.
    """

    def __init__(
        self,
        new: DataLoader[Any],
        replay: Replay,
        share: float = 0.5,
        validation: DataLoader[Any] | list[DataLoader[Any]] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= share < 1:
            raise UsageError(f"share={share} is not in 0..1, 1 left out")
        self._new, self._replay, self._share, self._validation = new, replay, share, validation

    def train_dataloader(self) -> Any:
        """Return the mixed batches of an epoch of the new task."""
        return _Mixed(self._new, self._replay, self._share)

    def val_dataloader(self) -> Any:
        """Return the batches to validate on."""
        return [] if self._validation is None else self._validation

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the replay."""
        return self._replay.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on at a place in the replay."""
        self._replay.load_state_dict(state_dict)


class _Mixed:
    """An epoch each time that it is iterated."""

    def __init__(self, new: DataLoader[Any], replay: Replay, share: float) -> None:
        self._new, self._replay, self._share = new, replay, share

    def __len__(self) -> int:
        return len(self._new)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._replay.mix(self._new, self._share):
            yield batch.x, batch.y
