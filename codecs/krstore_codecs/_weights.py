"""Network weights as bytes: quantised to integers and entropy-coded, or as they are.

A weight tensor W is stored as round(W / step) with one step a tensor, through a frequency table of its own; vectors
(biases, norm parameters) as float16. In float mode, everything is float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from krstore.entropy import (
    MAX_SYMBOLS,
    Integers,
    Table,
    decode_runs,
    encode_runs,
    entropy_bytes,
    pack_tables,
    unpack_tables,
)
from krstore.errors import CorruptStoreError, KrstoreError

__all__ = ["FakeQuantise", "WeightQuantiser", "matrices", "pack_weights", "plain_state", "unpack_weights"]

FINEST = MAX_SYMBOLS // 2 - 2  # steps from zero to a tensor's largest weight
LARGEST_STEP = 1e28  # times any 32-bit integer, still finite in float32

Shapes = Mapping[str, tuple[int, ...]]


class FakeQuantise(nn.Module):
    """Rounds a weight to multiples of `step` in the forward pass, and lets gradients through."""

    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.zeros(()))
        self.enabled = False

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight as it will be decoded."""
        if not (self.enabled and self.training):
            return weight
        return weight + (torch.round(weight / self.step) * self.step - weight).detach()


class _Header(msgspec.Struct, frozen=True, array_like=True):
    steps: list[float]
    tables: bytes
    stream: bytes
    rest: bytes


def pack_weights(state: Mapping[str, NDArray[np.float32]], steps: Mapping[str, float] | None) -> bytes:
    """Pack a network's arrays in the order of their names; those in `steps` are quantised.

    Args:
        state: arrays by name, float32.
        steps: the quantiser's step of each quantised array; `None` stores all as float32.
    """
    if steps is None:
        return b"".join(state[name].astype("<f4").tobytes() for name in sorted(state))
    runs = [quantise(state[name], steps[name]) for name in sorted(steps)]
    tables = [Table.of(run) for run in runs]
    rest = b"".join(state[name].astype("<f2").tobytes() for name in sorted(state) if name not in steps)
    ordered = [steps[name] for name in sorted(steps)]
    return msgspec.msgpack.encode(_Header(ordered, pack_tables(tables), encode_runs(runs, tables), rest))


def unpack_weights(data: bytes, shapes: Shapes, quantised: Sequence[str] | None) -> dict[str, NDArray[np.float32]]:
    """Undo `pack_weights` for arrays of these shapes, of which `quantised` were quantised (`None`: all float32).

    Raises:
        CorruptStoreError: the bytes do not hold such arrays.
    """
    sizes = {name: int(np.prod(shape, dtype=np.int64)) for name, shape in shapes.items()}
    flat: dict[str, NDArray[np.float32]] = {}
    if quantised is None:
        return _split(data, "<f4", sizes, shapes)
    try:
        header = msgspec.msgpack.decode(data, type=_Header)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise CorruptStoreError(f"the network's weights are malformed: {error}") from error
    tables = unpack_tables(header.tables)
    if not len(tables) == len(header.steps) == len(quantised):
        raise CorruptStoreError(f"{len(tables)} weight tables for {len(quantised)} weight tensors")
    if not all(0 < step < LARGEST_STEP for step in header.steps):
        raise CorruptStoreError(f"steps of weights from {min(header.steps)} to {max(header.steps)}")
    runs = decode_runs(header.stream, [sizes[name] for name in sorted(quantised)], tables)
    for name, step, run in zip(sorted(quantised), header.steps, runs, strict=True):
        flat[name] = (run.astype(np.float32) * np.float32(step)).reshape(shapes[name])
    others = {name: size for name, size in sizes.items() if name not in quantised}
    return flat | _split(header.rest, "<f2", others, shapes)


def _split(data: bytes, dtype: str, sizes: Mapping[str, int], shapes: Shapes) -> dict[str, NDArray[np.float32]]:
    if len(data) != sum(sizes.values()) * np.dtype(dtype).itemsize:
        raise CorruptStoreError(f"{len(data)} bytes of weights; expected {sum(sizes.values())} values of {dtype}")
    values, arrays, start = np.frombuffer(data, dtype).astype(np.float32), {}, 0
    for name in sorted(sizes):
        arrays[name] = values[start : start + sizes[name]].reshape(shapes[name])
        start += sizes[name]
    return arrays


def quantise(values: NDArray[np.float32], step: float) -> Integers:
    """Return round(values / step) as integers."""
    return np.asarray(np.rint(values / np.float32(step)), np.int32)


def matrices(shapes: Shapes) -> list[str]:
    """Return the names of the arrays that are quantised: all of two or more axes."""
    return [name for name, shape in shapes.items() if len(shape) > 1]


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's parameters by their plain names, parametrised or not, and its buffers that are stored."""
    state = {}
    for name, tensor in network.state_dict().items():
        if name.endswith(".original"):
            state[name.replace("parametrizations.", "").removesuffix(".original")] = tensor
        elif not name.endswith(".step"):
            state[name] = tensor
    return state


class WeightQuantiser:
    """Quantises a network's matrices and kernels while it trains.

    All steps are one factor times the root mean square of their tensor, so that every tensor gets about the same
    bits a weight; `set_bytes` finds the factor at which the coded network has a given size.

    Args:
        network: whose parameters of two or more axes are parametrised.
        fine: prefix of the names of tensors that are few and matter, quantised four times as finely.
    """

    def __init__(self, network: nn.Module, fine: str = "") -> None:
        self._network, self._fine = network, fine
        self.names: list[str] = []
        self._fakes: list[FakeQuantise] = []
        self._weights: list[nn.Parameter] = []
        for prefix, module in list(network.named_modules()):
            for own, parameter in list(module.named_parameters(recurse=False)):
                if parameter.dim() > 1:
                    fake = FakeQuantise()
                    parametrize.register_parametrization(module, own, fake)
                    self.names.append(f"{prefix}.{own}" if prefix else own)
                    self._fakes.append(fake)
                    self._weights.append(parameter)

    def steps(self, scale: float = 1.0) -> dict[str, float]:
        """Return the current steps by name, times a factor, as float32 values; none finer than tables can hold."""
        finest = [float(weight.detach().abs().max()) / FINEST for weight in self._weights]
        return {
            name: float(np.float32(max(scale * float(fake.step), least)))
            for name, fake, least in zip(self.names, self._fakes, finest, strict=True)
        }

    def set_bytes(self, target: int) -> None:
        """Set the steps so that the packed network takes about `target` bytes.

        Raises:
            KrstoreError: a weight is not finite.
        """
        state = {name: value.cpu().numpy() for name, value in plain_state(self._network).items()}
        if not all(np.isfinite(value).all() for value in state.values()):
            raise KrstoreError("the fit diverged: a weight is not finite; try a smaller --set learning_rate=")
        fixed = sum(2 * value.size for name, value in state.items() if name not in self.names) + 64
        sizes = self._sizes()
        low, high = 1e-3, 16.0
        for _ in range(18):
            middle = float(np.sqrt(low * high))
            total = fixed + sum(_coded_bytes(state[name], middle * size) for name, size in sizes.items())
            low, high = (low, middle) if total <= target else (middle, high)
        self.set_factor(high)

    def set_factor(self, factor: float) -> None:
        """Set the steps to a factor times the root mean squares; a factor of 1/64 makes about a byte a weight."""
        for fake, size in zip(self._fakes, self._sizes().values(), strict=True):
            fake.step.fill_(factor * size)
        self.enable()

    @property
    def enabled(self) -> bool:
        """Whether the weights are being rounded."""
        return any(fake.enabled for fake in self._fakes)

    def enable(self) -> None:
        """Round the weights from now on."""
        for fake in self._fakes:
            fake.enabled = True

    def _sizes(self) -> dict[str, float]:
        """Return what the steps are in proportion to, by name."""
        sizes = {}
        for name, weight in zip(self.names, self._weights, strict=True):
            size = float(weight.detach().double().square().mean().sqrt()) or 1.0
            sizes[name] = size / 4 if self._fine and name.startswith(self._fine) else size
        return sizes


def _coded_bytes(values: NDArray[np.float32], step: float) -> float:
    integers = quantise(values, step).reshape(-1)
    counts = np.bincount(integers - integers.min())
    return entropy_bytes(counts) + 1.3 * np.count_nonzero(counts) + 12
