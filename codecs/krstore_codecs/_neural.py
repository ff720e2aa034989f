"""What stores with a network have in common: their members, and decoding in batches."""

from __future__ import annotations

import contextlib
import math
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, TypeVar

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from krstore.codec import Decoder, OpenContext
from krstore.errors import CorruptStoreError
from krstore.source import Array, Ids
from krstore.store.container import MemberReader
from krstore_codecs._decoder import DecoderSizes
from krstore_codecs._normalise import Normaliser, grid_shape
from krstore_codecs._weights import matrices, plain_state, unpack_weights

__all__ = [
    "DECODE_BATCH",
    "NORMALISER",
    "SIZES",
    "WEIGHTS",
    "NeuralDecoder",
    "full_precision",
    "read_sizes",
    "unpack_network",
]

SIZES, NORMALISER, WEIGHTS = "network/sizes", "network/normaliser", "network/weights"
DECODE_BATCH = 256
_SWITCH = threading.RLock()


class _Sizes(Protocol):
    @property
    def decoder(self) -> DecoderSizes: ...


SizesT = TypeVar("SizesT", bound=_Sizes)


class NeuralDecoder(Decoder):
    """Decodes samples in batches, in float32, on the context's device."""

    def __init__(self, payload: MemberReader, context: OpenContext) -> None:
        self.device = context.device
        self.normaliser = Normaliser.from_bytes(context.spec, payload.read(NORMALISER))

    @abstractmethod
    def grids(self, rows: Ids) -> Tensor:
        """Decode at most `DECODE_BATCH` rows to grids (n, C, H, W) in [0, 1], on the device."""

    def decode(self, rows: Ids) -> Array:
        """Return samples (len(rows), *shape) in the source's dtype."""
        return self.normaliser.array(self.decode_tensor(rows))

    def decode_tensor(self, rows: Ids) -> Tensor:
        """Return samples (len(rows), *shape) on the device."""
        pieces = np.split(rows, range(DECODE_BATCH, len(rows), DECODE_BATCH))
        with torch.no_grad(), full_precision(self.device):
            return torch.cat([self.normaliser.decode(self.grids(piece)) for piece in pieces])


@contextlib.contextmanager
def full_precision(device: str) -> Iterator[None]:
    """Keep out what a training loop around may have switched on: autocast, and TF32 on CUDA.

    The latter's switches are the process's: one thread at a time.
    """
    kind = device.partition(":")[0]
    with torch.autocast(kind, enabled=False):
        if kind != "cuda":
            yield
            return
        cudnn, before = torch.backends.cudnn, torch.get_float32_matmul_precision()
        flags = {"enabled": True, "benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
        with _SWITCH, cudnn.flags(**flags, allow_tf32=False):
            torch.set_float32_matmul_precision("highest")
            try:
                yield
            finally:
                torch.set_float32_matmul_precision(before)


def read_sizes(payload: MemberReader, kind: type[SizesT], context: OpenContext) -> SizesT:
    """Read a network's sizes and check that its decoder makes samples of the source's shape.

    Raises:
        CorruptStoreError: the sizes are malformed, absurd, or of another shape.
    """
    try:
        sizes = msgspec.json.decode(payload.read(SIZES), type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise CorruptStoreError(f"the network's sizes are malformed: {error}") from error
    decoder = sizes.decoder
    made = (decoder.channels, decoder.height, decoder.columns)
    numbers = [value for value in msgspec.structs.astuple(decoder) if isinstance(value, int)]
    if (
        made != grid_shape(context.spec)
        or min(numbers) < 0
        or decoder.stride < 1
        or decoder.width < 1
        or decoder.c0 < 1
        or decoder.c1 < 1
        or decoder.direct > decoder.width
        or max(numbers) > 1 << 24
    ):
        raise CorruptStoreError(f"a network of sizes {decoder} does not make samples of shape {context.spec.shape}")
    return sizes


def unpack_network(
    build: Callable[[], nn.Module], members: Mapping[str, str], payload: MemberReader, *, quantised: bool, device: str
) -> nn.Module:
    """Build a network and fill it from payload members.

    Args:
        build: makes the module; on the meta device, so that absurd sizes cost nothing and nothing is initialised.
        members: the payload member of each prefix of parameter names; the longest prefix that fits counts.
    """
    try:
        with torch.device("meta"):
            network = build()
    except RuntimeError as error:  # sizes beyond what torch counts
        raise CorruptStoreError(f"the network's sizes are absurd: {error}") from error
    shapes = {name: tuple(value.shape) for name, value in plain_state(network).items()}
    stored = sum(payload.size(member) for member in members.values())
    if sum(math.prod(shape) for shape in shapes.values()) > 64 * stored + (1 << 16):
        raise CorruptStoreError(f"a network of {shapes} cannot come from {stored} bytes")
    arrays: dict[str, Array] = {}
    for prefix, member in members.items():
        others = [p for p in members if p.startswith(prefix) and p != prefix]
        own = {n: s for n, s in shapes.items() if n.startswith(prefix) and not n.startswith(tuple(others))}
        arrays |= unpack_weights(payload.read(member), own, matrices(own) if quantised else None)
    network.load_state_dict({name: torch.from_numpy(arrays[name].copy()) for name in shapes}, assign=True)
    return network.eval().to(device)
