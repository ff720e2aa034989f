"""Bytes of all that a run keeps between tasks: its network, what the method keeps beside it, and the memory."""

from __future__ import annotations

from dataclasses import dataclass

from krstore.errors import TargetUnreachableError
from krstore.learning.results import StepResult

__all__ = ["Budget"]


@dataclass(frozen=True)
class Budget:
    """A budget.

    Attributes:
        total: bytes.
        method: that must keep to it.
    """

    total: int
    method: str

    def left(self, own: int) -> int:
        """Return the bytes of a memory beside network and method, which come to `own` when all tasks have come.

        Raises:
            TargetUnreachableError: none.
        """
        if own >= self.total:
            raise TargetUnreachableError(
                f"budget={self.total}: the network of {self.method}, and what it keeps, come to {own:,} bytes without "
                "any memory; give more, or a smaller model"
            )
        return self.total - own

    def check(self, step: StepResult) -> None:
        """Make sure that no more is kept after a step.

        Raises:
            TargetUnreachableError: it is.
        """
        held = sum(step.held_bytes.values())
        kept = step.memory_bytes + step.network_bytes + held
        if kept > self.total:
            raise TargetUnreachableError(
                f"budget={self.total}: after {len(step.by_task)} tasks {kept:,} bytes are kept: network "
                f"{step.network_bytes:,}, {self.method} {held:,}, memory {step.memory_bytes:,}; give more"
            )
