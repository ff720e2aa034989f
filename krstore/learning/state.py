"""What a run has learnt, and writes down between two steps: tensors by what they are of.

The parts are network, learner, front, alone and time.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor, nn

from krstore.errors import CorruptStoreError, UsageError
from krstore.learning.alone import Alone
from krstore.learning.learners.base import Learner
from krstore.learning.network import Network, stored_bytes
from krstore.tensors import write_tensors

__all__ = ["RunState", "load_state", "state_path"]


class RunState:
    """What a run has learnt.

    Args:
        network: with its classifier.
        learner: of the network.

    Attributes:
        front: the frozen layers before the network, where the run keeps their features; `None` elsewhere.
        alone: what a network that learnt the current task alone has come to; `None` where none was asked for.
    """

    def __init__(self, network: Network, learner: Learner) -> None:
        self.network, self.learner = network, learner
        self.front: nn.Module | None = None
        self.alone: Alone | None = None

    @property
    def parameters(self) -> int:
        """Of the network and its front."""
        return sum(parameter.numel() for part in self._modules() for parameter in part.parameters())

    @property
    def stored_bytes(self) -> int:
        """Of the network and its front, as they would be written."""
        return sum(map(stored_bytes, self._modules()))

    def save(self, path: Path, seconds: float | None = None) -> None:
        """Write it down, atomically, and how long the step has taken so far where it is not finished."""
        parts: dict[str, dict[str, Tensor]] = {
            "network": self.network.state_dict(), "learner": self.learner.state(),
            "front": {} if self.front is None else self.front.state_dict(),
        }  # fmt: skip
        if seconds is not None:
            parts["time"] = {"seconds": torch.tensor(seconds, dtype=torch.float64)}
        if self.alone is not None:
            parts["alone"] = {"": torch.tensor([x for x in self.alone if x is not None], dtype=torch.float64)}
        write_tensors(path, {f"{part}/{name}": value for part, own in parts.items() for name, value in own.items()})

    def load(self, path: Path, device: str) -> float:
        """Take up what was written, and return the seconds that the step had taken by then.

        Raises:
            UsageError: the file cannot be read.
            CorruptStoreError: it is of another network.
        """
        parts = load_state(path, device)
        self.alone = Alone(*parts["alone"][""].tolist()) if parts["alone"] else None
        try:
            self.learner.reshape(parts["network"])
            self.network.load_state_dict(parts["network"])
            if self.front is not None:
                self.front.load_state_dict(parts["front"])
        except (RuntimeError, KeyError) as error:
            raise CorruptStoreError(f"{path} is not of this run's network: {error}") from error
        self.learner.load_state(parts["learner"])
        return float(parts["time"].get("seconds", 0))

    def _modules(self) -> list[nn.Module]:
        return [self.network] if self.front is None else [self.front, self.network]


def state_path(folder: Path, kind: str, number: int) -> Path:
    """Return the file of a run's state: of ``"step"``, after so many steps, or of ``"trained"``, within a step."""
    return folder / f"{kind}{number}.safetensors"


def load_state(path: Path, device: str = "cpu") -> defaultdict[str, dict[str, Tensor]]:
    """Return what was written, on a device but for float64, which not all have; a part that is not there is empty.

    Raises:
        UsageError: the file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    parts: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    try:
        with safe_open(path, "pt") as file:
            for full in list(file.keys()):
                part, _, name = full.partition("/")
                value = file.get_tensor(full)
                parts[part][name] = value if value.dtype is torch.float64 else value.to(device)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} cannot be read ({error}); begin the run anew in another folder") from error
    return parts
