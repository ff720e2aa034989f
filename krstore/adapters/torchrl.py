"""TorchRL: a store or a memory as the storage of a replay buffer, with TorchRL's samplers and transforms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from krstore.errors import MissingExtraError, UsageError
from krstore.replay import Replay

try:
    from tensordict import TensorDict
    from torchrl.data import ImmutableDatasetWriter, Storage, TensorDictReplayBuffer
except ImportError:
    raise MissingExtraError("torchrl", "torchrl", "krstore.adapters.torchrl") from None

__all__ = ["ReplayStorage", "replay_buffer"]


def replay_buffer(replay: Replay, **options: Any) -> TensorDictReplayBuffer:
    """Return a replay buffer of decoded samples.

    ``buffer.sample()`` is a TensorDict of ``features`` (B, *shape), ``labels`` (B,) and, as TorchRL adds it, ``index``.

    Args:
        replay: of a store or a memory; of it samples, classes, device, dtype and cache count. Its batch size is the
            buffer's, unless the options have another.
        options: of `torchrl.data.TensorDictReplayBuffer`: sampler, transform, prefetch, ...
    """
    storage = ReplayStorage(replay)
    given = {"batch_size": replay.batch_size, "writer": ImmutableDatasetWriter(), **options}
    return TensorDictReplayBuffer(storage=storage, collate_fn=_as_it_is, **given)


class ReplayStorage(Storage):  # type: ignore[misc]
    """What a replay shows, by index, decoded each time that it is asked for. It cannot be written to.

    Args:
        replay: of a store or a memory.
    """

    def __init__(self, replay: Replay) -> None:
        super().__init__(len(replay))
        self._replay = replay

    def get(self, index: Any) -> TensorDict:
        """Return samples of an index, a slice, or indices (B,), as a TensorDict of ``features`` and ``labels``.

        Raises:
            IndexError: out of range.
        """
        if isinstance(index, tuple) and len(index) == 1:
            (index,) = index
        wanted = torch.arange(len(self))[index].numpy()
        features, labels = self._replay.read(np.atleast_1d(wanted))
        found = TensorDict({"features": features, "labels": labels}, batch_size=[len(labels)])
        return found if wanted.ndim else found[0]

    def set(self, cursor: Any, data: Any, *, set_cursor: bool = True) -> None:
        """Not for stores.

        Raises:
            UsageError: always.
        """
        raise UsageError("stores are written once; append to the memory (krstore memory append), and replay it again")

    def __len__(self) -> int:
        return len(self._replay)

    def contains(self, item: int) -> bool:
        """Return whether there is such an index."""
        return -len(self) <= int(item) < len(self)

    def state_dict(self) -> dict[str, Any]:
        """Return how many samples there are; they themselves are in their files."""
        return {"samples": len(self)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Make sure that the samples are as many as they were.

        Raises:
            UsageError: they are not.
        """
        if state_dict["samples"] != len(self):
            raise UsageError(f"the checkpoint is of {state_dict['samples']} samples; the replay has {len(self)}")

    def _empty(self) -> None:
        self.set(0, None)


def _as_it_is(batch: TensorDict) -> TensorDict:
    return batch
