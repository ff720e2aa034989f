"""The state of a long fit, kept beside the target so that a killed run goes on where it was.

Tensors in a safetensors file, plain values as JSON in its metadata; nothing is pickled.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from krstore.errors import UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "Resume"]

Resume = bool | Literal["auto"]


class Checkpoint:
    """One file of a fit's state.

    Args:
        path: the file; `None` keeps nothing.
        fingerprint: names the fit (source hash, codec, config, seed, budget); another one's file is refused.
        resume: take up an earlier state; without it, `load` finds none. ``"auto"`` finds none either where the file is
            of another fit or damaged.
        every: seconds between savings.
    """

    def __init__(
        self, path: Path | None, fingerprint: str = "", *, resume: Resume = False, every: float = 60.0
    ) -> None:
        self.path, self.fingerprint, self._resume, self._every = path, fingerprint, resume, every
        self._saved_at = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to save again."""
        return self.path is not None and time.monotonic() - self._saved_at >= self._every

    def save(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """Replace the file by this state.

        Raises:
            OutputError: it cannot be written.
        """
        if self.path is None:
            return
        from krstore.tensors import write_tensors

        metadata = {"fingerprint": self.fingerprint, "values": json.dumps(dict(values))}
        write_tensors(self.path, tensors, metadata)
        self._saved_at = time.monotonic()

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Return the kept (tensors, values), or `None` when there are none or resuming was not asked for.

        Raises:
            UsageError: the file belongs to another fit, or is none.
        """
        try:
            return self._load()
        except UsageError:
            if self._resume != "auto":
                raise
            return None

    def _load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        if self.path is None or not self._resume or not self.path.exists():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{self.path} is no checkpoint ({error}); leave out --resume to begin anew") from error
        if metadata.get("fingerprint") != self.fingerprint:
            raise UsageError(
                f"{self.path} is the checkpoint of another fit (other data, options, target or seed); "
                "give the same options again, or leave out --resume to begin anew"
            )
        return tensors, json.loads(metadata["values"])

    def discard(self) -> None:
        """Remove the file: the fit is finished."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
