"""Several processes at one piece of work, as `torchrun` starts them: shares of it, or one fit together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from datetime import timedelta

import torch
import torch.distributed
from torch import Tensor

__all__ = ["average", "barrier", "broadcast", "joined", "processes"]

PATIENCE = timedelta(days=30)  # how long a process waits for one whose share of a long fit is larger


def processes() -> tuple[int, int]:
    """Return this process' rank and the number of processes: (0, 1) where `torch.distributed` is not initialised."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def average(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their means over all processes; every process then has the same bits."""
    own = [tensor for tensor in tensors if tensor.is_floating_point()]
    world = processes()[1]
    if world == 1 or not own:
        return
    flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in own])
    torch.distributed.all_reduce(flat)
    for tensor, part in zip(own, torch.split(flat / world, [tensor.numel() for tensor in own]), strict=True):
        tensor.detach().copy_(part.view_as(tensor))


def broadcast(tensor: Tensor) -> None:
    """Replace a tensor by the first process'."""
    if processes()[1] > 1:
        sent = tensor.cuda() if torch.distributed.get_backend() == "nccl" else tensor
        torch.distributed.broadcast(sent, 0)
        tensor.copy_(sent)


def barrier() -> None:
    """Wait until all processes are here."""
    if processes()[1] > 1:
        torch.distributed.barrier()


@contextlib.contextmanager
def joined() -> Iterator[bool]:
    """Join the processes that `torchrun` has started, if it has; yield whether there are several.

    Each gets a GPU of its own, as far as there are any.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ
    if alone or torch.distributed.is_initialized():
        yield processes()[1] > 1
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield processes()[1] > 1
    finally:
        torch.distributed.destroy_process_group()
