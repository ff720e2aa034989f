"""Between NumPy and torch: dtypes and devices; and files of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from krstore.errors import UsageError
from krstore.files import atomic_path
from krstore.source import Array

__all__ = ["as_array", "as_tensor", "resolve_device", "write_tensors"]


def resolve_device(device: str) -> str:
    """Return the torch device to use; ``"auto"`` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        UsageError: the device is not known, or not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if torch.empty(0, device=device).is_meta:
            raise RuntimeError("it has no data")
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device {device!r} is not available ({str(error).splitlines()[0]}); try auto or cpu"
        ) from None
    return device


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors by name into a safetensors file, atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        try:
            save_file({name: v.detach().contiguous().cpu() for name, v in tensors.items()}, temporary, metadata)
        except SafetensorError as error:  # how it tells of a disk that is full
            raise OSError(str(error)) from error


def as_tensor(values: Array) -> torch.Tensor:
    """Return an array as a CPU tensor of the same dtype, bfloat16 included; the memory is the tensor's own."""
    if values.dtype.name == "bfloat16":
        return torch.from_numpy(values.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(values, order="C"))


def as_array(tensor: torch.Tensor) -> Array:
    """Return a tensor as a NumPy array of the same dtype, bfloat16 included."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return np.asarray(tensor.numpy())
