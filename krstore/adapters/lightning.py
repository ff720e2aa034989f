"""PyTorch Lightning: a new task's batches with replayed samples in them, as a `LightningDataModule`."""

from __future__ import annotations

import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from krstore.adapters._loaders import passed, shared, sharper
from krstore.bars import Bars
from krstore.distributed import processes
from krstore.errors import MissingExtraError, UsageError
from krstore.progress import SILENT, Progress
from krstore.replay import Replay

try:
    from lightning import LightningDataModule
except ImportError:
    raise MissingExtraError("lightning", "lightning", "krstore.adapters.lightning") from None

__all__ = ["ReplayDataModule"]

Batch = tuple[Tensor, Tensor]


class ReplayDataModule(LightningDataModule):
    """Trains on a new task with a share of replayed samples; validates on what it is given.

    Batches are ``(x, y)``, the new task's samples first. The places in replays are part of Lightning's checkpoints.
    With several processes each gets its share of both, a `DataLoader` by a `DistributedSampler` as from Lightning.

    Beside what a lossy codec gives back, the new task passes through the codec too: a network that sees sharp new
    samples beside smooth old ones learns to tell the two apart instead of the classes. Samples of a `DataLoader`, or of
    a lossless store, are encoded as the last of the replay's lossy stores is, at its bytes a sample, into a temporary
    file of each process when training begins, and batches are what that decodes to. Those of the loader are in the
    replay's dtype and behind its ``transform`` then. So its dataset has to give samples as they are stored, the same
    each time: normalise and augment by ``transform``.

    Args:
        new: the new task's batches: of a `DataLoader`, or of a replay of its own.
        replay: of a store or a memory.
        share: of replayed samples in a batch; see `krstore.replay.Replay.mix`.
        validation: batches to validate on. They are shown as they are.
        through_codec: train on new samples as the codec gives them back; otherwise as they are, and beside a lossy
            codec's with a warning.
        progress: shows how far encoding has come, in the first process; default bars where the trainer has some.

    Raises:
        UsageError: a share out of range.
    """

    def __init__(
        self,
        new: DataLoader[Any] | Replay,
        replay: Replay,
        share: float = 0.5,
        validation: DataLoader[Any] | list[DataLoader[Any]] | None = None,
        *,
        through_codec: bool = True,
        progress: Progress | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= share < 1:
            raise UsageError(f"share={share} is not in 0..1, 1 left out")
        self._new, self._replay, self._share, self._validation = new, replay, share, validation
        self._progress = progress
        unlike = sharper(new, replay)
        self._passes = unlike and through_codec
        if unlike and not through_codec:
            warnings.warn(
                f"new samples are sharper than what {replay.samples.path} decodes to, and a network learns to tell "
                "them apart by that; leave through_codec on",
                stacklevel=2,
            )

    def train_dataloader(self) -> Any:
        """Return the mixed batches of an epoch of the new task, which passes through the codec if need be.

        Raises:
            UsageError: the new task's samples are not as they are stored, or there are several processes, and a loader
                that cannot be shared among them.
            KrstoreError: as `krstore.encode`.
        """
        if self._passes:
            folder = tempfile.mkdtemp()
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self._new = passed(self._new, self._replay, Path(folder) / "passed.krs", self._shown())
            self._passes = False
        if isinstance(self._new, DataLoader):
            return _Mixed(shared(self._new, *processes()), self._replay, self._share)
        return _MixedReplays(self._new, self._replay, self._share)

    def _shown(self) -> Progress:
        if processes()[0]:
            return SILENT
        trainer = self.trainer
        bars = trainer is not None and trainer.progress_bar_callback is not None
        return self._progress or (Bars() if bars else SILENT)

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


class _MixedReplays(_Mixed):
    """The same of two replays. That it has a state tells Lightning that it goes on where it was.

    The state itself is the module's, which Lightning loads before it asks for batches.
    """

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        return
