"""Networks by name: a factory to import, and weights from a safetensors file; nothing is unpickled."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from krstore.errors import UsageError
from krstore.plugins import current_folder, imported
from krstore.tensors import as_array

__all__ = ["evaluating", "load_module", "weights_hash"]


def load_module(
    spec: str, weights: str | Path | None = None, arguments: Mapping[str, Any] | None = None
) -> torch.nn.Module:
    """Build a network, load its weights by name, and freeze it in eval mode.

    Args:
        spec: ``"package.module:factory"``, a callable that returns a `torch.nn.Module`, for example
            ``"krstore.backbones:resnet32"``. Modules of the current folder are found too, after installed ones.
        weights: a safetensors file. Names that the network does not have are ignored, so that the weights of a whole
            network load into a part of it; `None` keeps what the factory initialised.
        arguments: of the factory, by name; without any it is called with none.

    Raises:
        UsageError: the spec is malformed, its import or its call fails, it returns no module, or the file cannot be
            read, lacks a name of the network, or has it in another shape.
    """
    module = _build(spec, arguments or {})
    if weights is not None:
        _load(module, Path(weights), spec)
    return module.eval().requires_grad_(False)


@contextlib.contextmanager
def evaluating(network: torch.nn.Module) -> Iterator[None]:
    """Put a network into eval mode as long as the block lasts; then each of its modules has its own mode again."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def weights_hash(network: torch.nn.Module) -> str:
    """Return the SHA-256 of a network's state: names, shapes and values, without batch norm's counts of batches."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if isinstance(tensor, torch.Tensor) and not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(as_array(tensor).tobytes())
    return digest.hexdigest()


def _build(spec: str, arguments: Mapping[str, Any]) -> torch.nn.Module:
    with current_folder():
        factory = imported(spec, "factory", "krstore.backbones:resnet32")
        try:
            module = factory(**arguments)
        except Exception as error:  # another's code runs here, and may raise anything
            given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            raise UsageError(f"{spec} called as ({given}) failed: {type(error).__name__}: {error}") from error
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"{spec} returned a {type(module).__name__}; expected a torch.nn.Module")
    return module


def _load(module: torch.nn.Module, path: Path, spec: str) -> None:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UsageError(f"{path} is not a file; expected weights in safetensors format")
    # batch norm counts its training batches; no output in eval mode depends on it, and many files leave it out
    wanted = {name: tensor for name, tensor in module.state_dict().items() if not name.endswith("num_batches_tracked")}
    try:
        with safe_open(path, "pt") as file:
            present = set(file.keys())
            missing = sorted(wanted.keys() - present)
            if missing:
                raise UsageError(
                    f"{path} lacks {len(missing)} of the {len(wanted)} weights of {spec}: {_some(missing)}"
                )
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in wanted}
            odd = [f"{n} is {shapes[n]}, expected {tuple(t.shape)}" for n, t in wanted.items() if shapes[n] != t.shape]
            if odd:
                raise UsageError(
                    f"{path} does not fit {spec}: {_some(odd)}; is the factory's argument, such as classes, another?"
                )
            loaded: dict[str, Any] = {name: file.get_tensor(name) for name in wanted}
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} cannot be read as safetensors: {error}") from error
    module.load_state_dict(loaded, strict=False)


def _some(items: list[str], most: int = 8) -> str:
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")
