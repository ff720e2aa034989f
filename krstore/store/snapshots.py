"""A snapshot store: a network's states in one immutable `.krs` file."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from krstore.errors import CorruptStoreError, UsageError
from krstore.snapshots import SnapshotSpec, State, check_state
from krstore.source import Array
from krstore.store.header import SnapshotHeader, SnapshotQuality
from krstore.store.opened import PayloadView, StoreFile

if TYPE_CHECKING:
    import torch

    from krstore.codec import SnapshotDecoder

__all__ = ["SnapshotStore"]


class SnapshotStore(StoreFile[SnapshotHeader]):
    """An open store of a network's states; see `krstore.store.opened.StoreFile`. It is a `SnapshotSource`, too."""

    _header_type = SnapshotHeader
    _last: tuple[int, State] | None = None

    def __len__(self) -> int:
        return len(self.header.source.steps)

    def __repr__(self) -> str:
        return f"SnapshotStore({str(self.path)!r}: {self.codec}, {len(self)} steps, ratio {self.ratio:.1f})"

    @property
    def spec(self) -> SnapshotSpec:
        """What was encoded."""
        return self.header.source.spec

    @property
    def quality(self) -> SnapshotQuality:
        """How far the decoded states are from the source, as measured when the store was written."""
        return self.header.quality

    def network(self, step: int) -> dict[str, torch.Tensor]:
        """Return the network's state after a step, for `torch.nn.Module.load_state_dict`.

        Raises:
            UsageError: there is no such step.
            CorruptStoreError: the payload is damaged.
        """
        from krstore.tensors import as_tensor

        return {name: as_tensor(array) for name, array in self.state(step).items()}

    def state(self, step: int) -> State:
        """Return the same as NumPy arrays."""
        if not 0 <= step < len(self):
            raise UsageError(f"{self.path} has no step {step}; its steps are 0 to {len(self) - 1}")
        decoder = self.decoder
        with self._reading():
            state = decoder.network(step)
            check_state(state, self.spec.steps[step])
        return state

    def read(self, step: int, name: str) -> Array:
        """Return one array of a step; the step last read is kept decoded."""
        if self._last is None or self._last[0] != step:
            self._last = step, self.state(step)
        return self._last[1][name]

    @functools.cached_property
    def decoder(self) -> SnapshotDecoder:
        """The open payload; imports the codec's code."""
        from krstore.codec import SnapshotOpenContext
        from krstore.registry import get_snapshot_codec
        from krstore.tensors import resolve_device

        self._check_installed()
        context = SnapshotOpenContext(spec=self.spec, device=resolve_device(self.device))
        with self._reading():
            return get_snapshot_codec(self.codec).open(PayloadView(self._container), context)

    @property
    def _source_bytes(self) -> int:
        return self.header.source.bytes

    def _check_columns(self, header: SnapshotHeader, columns: list[str]) -> None:
        if columns:
            raise CorruptStoreError(f"a snapshot store with columns {columns}")
