"""A memory: stores in a folder, which grow by archives, are encoded anew, and are replayed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krstore.memory.collection import Collection

if TYPE_CHECKING:
    from krstore.memory.manifest import Entry
    from krstore.replay import Replay

__all__ = ["Memory"]


class Memory(Collection):
    """An open memory, as it was when it was opened, last reloaded, or last changed through this object.

    Args:
        path: the folder; `create` makes one.
        device: where its stores decode.

    Attributes:
        folder: where its files lie.
        manifest: its stores, the oldest first.

    Raises:
        UsageError: the folder is no memory.
        CorruptStoreError: its manifest is damaged. Stores are opened when they are first needed.
    """

    def replay(self, batch_size: int = 128, **options: Any) -> Replay:
        """Return batches of (features, labels) of all its samples; see `krstore.replay.Replay`."""
        from krstore.replay import Replay

        return Replay(self.samples, batch_size=batch_size, **options)

    def extend(self, archives: Sequence[str | Path], codec: str = "transform", **options: Any) -> list[Entry]:
        """Encode archives into stores, several processes sharing the work; see `krstore.memory.parallel.extend`."""
        from krstore.memory.parallel import extend

        return extend(self, archives, codec, **options)

    def merge(self, codec: str | None = None, **options: Any) -> Entry:
        """Encode all samples into one store, which takes the others' place; see `krstore.memory.reshape.merge`."""
        from krstore.memory.reshape import merge

        return merge(self, codec, **options)

    def shrink(self, budget: int, codec: str | None = None, **options: Any) -> None:
        """Encode every store into fewer bytes, `budget` in all; see `krstore.memory.reshape.shrink`."""
        from krstore.memory.reshape import shrink

        shrink(self, budget, codec, **options)

    def trim(self, per_class: int, **options: Any) -> None:
        """Keep at most so many samples of each class, the first of its stores; see `krstore.memory.reshape.trim`."""
        from krstore.memory.reshape import trim

        trim(self, per_class, **options)
