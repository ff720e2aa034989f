"""The tensors of a run between two steps, by what they are of: network, learner, front, alone, time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from krstore.errors import UsageError
from krstore.tensors import write_tensors

__all__ = ["load_state", "save_state", "state_path"]

Parts = Mapping[str, Mapping[str, Tensor]]


def state_path(folder: Path, kind: str, number: int) -> Path:
    """Return the file of a run's state: of ``"step"``, after so many steps, or of ``"trained"``, within a step."""
    return folder / f"{kind}{number}.safetensors"


def save_state(path: Path, parts: Parts) -> None:
    """Write tensors by part and name, atomically."""
    write_tensors(path, {f"{part}/{name}": value for part, own in parts.items() for name, value in own.items()})


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
