"""A network's states as training leaves them, a file a step, and the snapshot archive that is made of them."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from krstore.archives import open_snapshots
from krstore.archives.snapshots import write_snapshots
from krstore.dtypes import STATE_DTYPES
from krstore.errors import ArchiveError, UsageError
from krstore.files import check_target, encodable
from krstore.progress import SILENT, Progress
from krstore.snapshots import MAX_AXES, ArraySpec, SnapshotSource, SnapshotSpec, State
from krstore.tensors import as_array

__all__ = ["read_state", "snapshot"]

WRAPPERS = ("state_dict", "model_state_dict", "model", "network")


def snapshot(
    files: Sequence[str | Path], output: str | Path, *, force: bool = False, progress: Progress = SILENT
) -> SnapshotSource:
    """Write a snapshot archive of a network's states after steps 0, 1, ..., and open it.

    Negative zeros, which masks leave when they are multiplied with, become zeros. The archive's attributes say which
    files it is of.

    Args:
        files: a step each, in order; see `read_state`.
        output: the archive, ending in .h5 or .hdf5.
        force: replace an existing output.
        progress: shown how it goes.

    Raises:
        UsageError: no files, or the output is one of them.
        ArchiveError: a file cannot be read, or has an array that HDF5 cannot hold; another suffix.
        OutputError: the output exists or cannot be written.
    """
    paths, output = [Path(file) for file in files], Path(output)
    if not paths:
        raise UsageError("no states to keep; name a file for each step")
    check_target(output, force=force, inputs=paths)
    numbers = [re.findall(r"\d+", path.stem) for path in paths]
    if any([*map(int, before)] > [*map(int, after)] for before, after in pairwise(numbers)):
        progress.note(f"{', '.join(path.name for path in paths)}: steps 0, 1, ... are taken in this order")
    with progress.task("states", 2 * len(paths), "files") as task:
        steps = []
        for path in paths:
            steps.append({name: ArraySpec(a.shape, a.dtype.name) for name, a in read_state(path).items()})
            task.advance(1)
        attributes = {"files": [encodable(path.name) for path in paths], "krstore_version": version("krstore")}
        with write_snapshots(output, SnapshotSpec(steps=tuple(steps), attributes=attributes)) as writer:
            for path in paths:
                writer.append({name: _unsigned_zeros(array) for name, array in read_state(path).items()})
                task.advance(1)
    return open_snapshots(output)


def read_state(path: str | Path) -> State:
    """Read a network's state: arrays by name.

    Args:
        path: a safetensors file, or a checkpoint of `torch.save` (.pt, .pth, .ckpt, .bin): a state dict, or a dict with
            one as ``state_dict``, ``model_state_dict``, ``model`` or ``network``. Checkpoints are read with
            ``weights_only``: nothing in them is executed.

    Raises:
        ArchiveError: the file is missing, damaged, of another kind, or has an array of a type that is not supported,
            or one that is no plain tensor.
    """
    path = Path(path)
    if not path.is_file():
        raise ArchiveError(f"{path} is not a file")
    tensors = _safetensors(path) if path.suffix == ".safetensors" else _checkpoint(path)
    state = {}
    for name, tensor in tensors.items():
        if not name.strip(".") or "\0" in name or name != encodable(name):
            raise ArchiveError(f"{path}: {name!r} is no name of an array")
        if odd := _oddity(tensor):
            raise ArchiveError(f"{path}: {name!r} is {odd}; expected plain tensors of up to {MAX_AXES} axes")
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in STATE_DTYPES:
            raise ArchiveError(f"{path}: {name!r} is of type {dtype}; expected one of {', '.join(STATE_DTYPES)}")
        state[name] = as_array(tensor)
    if not state:
        raise ArchiveError(f"{path} holds no arrays")
    return state


def _oddity(tensor: torch.Tensor) -> str:
    """Return what keeps a tensor from being an array with a place for each of its elements; nothing for most."""
    if tensor.is_meta:
        return "empty"
    if tensor.is_nested:
        return "nested"
    if tensor.layout is not torch.strided:
        return "sparse"
    if tensor.ndim > MAX_AXES:
        return f"of {tensor.ndim} axes"
    if tensor.nbytes > (stored := tensor.untyped_storage().nbytes()):
        return f"expanded from {stored:,} bytes to {tensor.nbytes:,} (save tensor.contiguous())"
    return ""


def _safetensors(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ArchiveError(f"{path} cannot be read as safetensors: {error}") from error


def _checkpoint(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("\n")[0]
        raise ArchiveError(
            f"{path} holds more than weights, or is no checkpoint ({reason}); save network.state_dict() alone, best as "
            "safetensors"
        ) from error
    except Exception as error:  # a damaged checkpoint fails in any way
        raise ArchiveError(f"{path} cannot be read as a checkpoint of torch.save: {error}") from error
    wrapped = [loaded[name] for name in WRAPPERS if isinstance(loaded, Mapping) and name in loaded]
    state = wrapped[0] if wrapped and isinstance(wrapped[0], Mapping) else loaded
    if not isinstance(state, Mapping):
        raise ArchiveError(f"{path} holds a {type(state).__name__}; expected a state dict")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ArchiveError(
                f"{path}: {name!r} is a {type(value).__name__}; expected tensors by name, or a dict with them as "
                f"{', '.join(WRAPPERS)}"
            )
    return state


def _unsigned_zeros(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return an array with 0.0 for -0.0."""
    return array + np.zeros((), array.dtype) if array.dtype.kind == "f" else array
