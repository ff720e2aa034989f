"""Several processes at one piece of work, as `torchrun` starts them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed

__all__ = ["barrier", "joined", "processes"]


def processes() -> tuple[int, int]:
    """Return this process' rank and the number of processes: (0, 1) where `torch.distributed` is not initialised."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def barrier() -> None:
    """Wait until all processes are here."""
    if processes()[1] > 1:
        torch.distributed.barrier()


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the processes that `torchrun` has started, if it has, and that have not been joined yet."""
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ
    if alone or torch.distributed.is_initialized():
        yield
        return
    torch.distributed.init_process_group("gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
