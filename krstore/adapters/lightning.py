"""PyTorch Lightning: a new task's batches with replayed samples in them, as a `LightningDataModule`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, SequentialSampler

from krstore.distributed import processes
from krstore.errors import MissingExtraError, UsageError
from krstore.replay import Replay

try:
    from lightning import LightningDataModule
except ImportError:
    raise MissingExtraError("lightning", "lightning", "krstore.adapters.lightning") from None

__all__ = ["ReplayDataModule"]

Batch = tuple[Tensor, Tensor]

KEPT = (
    "batch_size", "collate_fn", "drop_last", "generator", "multiprocessing_context", "num_workers",
    "persistent_workers", "pin_memory", "prefetch_factor", "timeout", "worker_init_fn",
)  # fmt: skip


class ReplayDataModule(LightningDataModule):
    """Trains on a new task with a share of replayed samples; validates on what it is given.

    Batches are ``(x, y)``, the new task's samples first. The places in replays are part of Lightning's checkpoints.
    With several processes each gets its share of both, a `DataLoader` by a `DistributedSampler` as from Lightning.

    Where the replay's codec is lossy, let the new task pass through it too: encode it, and give that store's replay as
    the new task. A network that sees sharp new samples beside smooth old ones learns to tell the two apart instead of
    the classes; there is a warning.

    Args:
        new: the new task's batches: of a `DataLoader`, or of a replay of its own.
        replay: of a store or a memory.
        share: of replayed samples in a batch; see `krstore.replay.Replay.mix`.
        validation: batches to validate on.

    Raises:
        UsageError: a share out of range.
    """

    def __init__(
        self,
        new: DataLoader[Any] | Replay,
        replay: Replay,
        share: float = 0.5,
        validation: DataLoader[Any] | list[DataLoader[Any]] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= share < 1:
            raise UsageError(f"share={share} is not in 0..1, 1 left out")
        if isinstance(new, DataLoader) and not replay.samples.exact:
            warnings.warn(
                f"new samples are sharper than what {replay.samples.path} decodes to; encode them too, and give their "
                "store's replay as the new task",
                stacklevel=2,
            )
        self._new, self._replay, self._share, self._validation = new, replay, share, validation

    def train_dataloader(self) -> Any:
        """Return the mixed batches of an epoch of the new task.

        Raises:
            UsageError: there are several processes, and a loader that cannot be shared among them.
        """
        new = shared(self._new, *processes()) if isinstance(self._new, DataLoader) else self._new
        return _Mixed(new, self._replay, self._share)

    def val_dataloader(self) -> Any:
        """Return the batches to validate on."""
        return [] if self._validation is None else self._validation

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the replay, and in the new task's where that is one too."""
        new = {"new": self._new.state_dict()} if isinstance(self._new, Replay) else {}
        return self._replay.state_dict() | new

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on at a place in the replay, and in the new task's, whose next epoch it is where one is through."""
        self._replay.load_state_dict(state_dict)
        if isinstance(self._new, Replay) and "new" in state_dict:
            self._new.load_state_dict(state_dict["new"])
            self._new.skip_ended()


def shared(loader: DataLoader[Any], rank: int, world: int) -> DataLoader[Any]:
    """Return a loader of one process' share of the samples.

    Raises:
        UsageError: its sampler is of its own kind.
    """
    if world == 1 or isinstance(loader.sampler, DistributedSampler):
        return loader
    if loader.batch_size is None or not isinstance(loader.sampler, (RandomSampler, SequentialSampler)):
        raise UsageError(
            f"{world} processes: the new task's loader has a sampler of its own; give it one that takes a share for "
            "each process, as torch.utils.data.DistributedSampler does"
        )
    sampler = DistributedSampler[Any](
        loader.dataset, world, rank, shuffle=isinstance(loader.sampler, RandomSampler),
        seed=int(os.environ.get("PL_GLOBAL_SEED", "0")),
    )  # fmt: skip
    return DataLoader(loader.dataset, sampler=sampler, **{name: getattr(loader, name) for name in KEPT})


class _Mixed:
    """An epoch each time that it is iterated.

    Attributes:
        sampler: of the new task's loader; Lightning tells it the epoch.
    """

    def __init__(self, new: DataLoader[Any] | Replay, replay: Replay, share: float) -> None:
        self._new, self._replay, self._share = new, replay, share
        self.sampler = new.sampler if isinstance(new, DataLoader) else None

    def __len__(self) -> int:
        return len(self._new) if isinstance(self._new, DataLoader) else self._new.batches

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._replay.mix(self._new, self._share):
            yield batch.x, batch.y
