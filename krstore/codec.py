"""The codec contract: what a codec is, in one screen.

A codec is a class with a ``name``, a ``kind``, a typed ``Config`` and three verbs::

    fit(source, context) -> fitted        expensive, once: a transform, a network, codebooks, a selection
    pack(fitted, knob, sink)              cheap, again and again: quantise and code at one setting
    open(payload, context) -> decoder     decoder.decode(rows) -> features, in the source's dtype

A codec of samples is a `Codec`, one of a network's states a `SnapshotCodec`; they differ in what goes in and comes out.

Rate control is not a codec's business. The store writer turns ``--ratio``, ``--max-bytes`` or ``--max-mse`` into a
byte budget, tells it to `fit` (`FitContext.budget`), and searches `pack` along the codec's `Knob`.

A codec registers under the entry-point group ``krstore.codecs``; `docs/codec-authors.md` walks through one, and
`krstore.testing.check_codec` puts any through the conformance suite. Payload members are named ``network/...``
(what all samples or states share) or ``latent/...`` (what each sample, group or state has), which is how sizes are
accounted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import msgspec

from krstore.checkpoint import Checkpoint
from krstore.config import CodecConfig
from krstore.progress import Progress
from krstore.snapshots import SnapshotSource, SnapshotSpec, SnapshotStats, State
from krstore.source import Array, Ids, Source, SourceSpec, SourceStats
from krstore.store.container import MemberReader

if TYPE_CHECKING:
    import torch

__all__ = [
    "AnyCodec",
    "Codec",
    "Decoder",
    "FitContext",
    "Kind",
    "Knob",
    "OpenContext",
    "PayloadSink",
    "SharedDecoder",
    "SnapshotCodec",
    "SnapshotDecoder",
    "SnapshotFitContext",
    "SnapshotOpenContext",
]


class Kind(StrEnum):
    """What a codec keeps.

    A dense codec decodes every sample; an exemplar codec keeps some and decodes only those (it names them with
    `PayloadSink.keep`); a snapshot codec keeps a network's states instead of samples (`SnapshotCodec`).
    """

    DENSE = "dense"
    EXEMPLAR = "exemplar"
    SNAPSHOT = "snapshot"


@dataclass(frozen=True)
class Knob:
    """The one setting that `pack` takes: a larger value makes a smaller file and a larger error.

    Attributes:
        low, start, high: its range, and where the search begins.
        integer: only whole values mean something (an index into a list of settings).
    """

    low: float
    start: float
    high: float
    integer: bool = False


class PayloadSink(Protocol):
    """Where `pack` writes. Names begin with ``network/`` or ``latent/``."""

    def write(self, name: str, data: bytes) -> None:
        """Write a whole member."""

    def write_blocks(self, name: str, block_samples: int, blocks: Iterable[bytes]) -> None:
        """Write per-sample data as blocks of `block_samples` samples (the last may hold fewer).

        `krstore.store.blocks.BlockReader` reads them back.
        """

    def keep(self, ids: Ids) -> None:
        """Say which source samples an exemplar codec keeps, in the order its decoder counts them."""


@dataclass(frozen=True, kw_only=True)
class _AnyFitContext:
    budget: int | None
    max_mse: float | None
    device: str
    seed: int
    progress: Progress
    checkpoint: Checkpoint


@dataclass(frozen=True)
class SharedDecoder:
    """The decoder of a store of the same codec, for samples of the same shape and dtype.

    Attributes:
        payload: of that store; the members that a codec writes again, unchanged, are what the stores share.
        sha256: of that store's network members.
    """

    payload: MemberReader
    sha256: str


@dataclass(frozen=True, kw_only=True)
class FitContext(_AnyFitContext):
    """What a fit is given beside the source.

    Attributes:
        budget: bytes the whole payload may take; `None` when the target is an error, or there is none.
        max_mse: the error that is the target, mean squared, raw units; `None` when it is not one.
        device: a torch device, for example ``"cpu"`` or ``"cuda"``.
        seed: of everything random.
        checkpoint: where to keep, and find again, the state of a long fit.
        stats: what one pass over the source told; all values are finite.
        task_model: a network on samples (n, *shape), for codecs that look at what a task sees: in eval mode, frozen, on
            the device, and the fit's own.
        decoder: another store's, to be used as it is; only for codecs that say so.
        together: all processes of `torch.distributed` do this same fit, and share what it costs where the codec can.
    """

    stats: SourceStats
    task_model: torch.nn.Module | None = None
    decoder: SharedDecoder | None = None
    together: bool = False


@dataclass(frozen=True, kw_only=True)
class SnapshotFitContext(_AnyFitContext):
    """What the fit of a snapshot codec is given beside the source; see `FitContext`."""

    stats: SnapshotStats


@dataclass(frozen=True, kw_only=True)
class OpenContext:
    """What opening a payload is given: the store's facts that are not payload.

    Attributes:
        spec: of the source; `kept` of its samples are in the payload.
        labels: of all samples in the payload, in its order; `None` without labels.
    """

    spec: SourceSpec
    kept: int
    labels: Ids | None
    device: str


@dataclass(frozen=True, kw_only=True)
class SnapshotOpenContext:
    """What opening the payload of a snapshot codec is given: the source's arrays, by step and name."""

    spec: SnapshotSpec
    device: str


class Decoder(ABC):
    """Decodes the samples of an open store."""

    @abstractmethod
    def decode(self, rows: Ids) -> Array:
        """Return samples (len(rows), *shape) in the source's dtype.

        Rows count what the payload holds: for a dense codec they are sample IDs, for an exemplar codec positions
        among the kept. Decoding few rows must not cost decoding all.

        Raises:
            CorruptStoreError: the payload is damaged.
        """

    def decode_tensor(self, rows: Ids) -> torch.Tensor:
        """Return the same as a tensor, on the device where it was computed; neural codecs override this."""
        from krstore.tensors import as_tensor

        return as_tensor(self.decode(rows))

    def decode_together(self, parts: Sequence[tuple[Decoder, Ids]]) -> torch.Tensor:
        """Return samples of several stores, one store's rows after another's, on the device.

        Codecs that share decoders override this, to run the network once for all.

        Args:
            parts: decoders of stores that have this one's network, and rows of each.
        """
        import torch

        return torch.cat([decoder.decode_tensor(rows) for decoder, rows in parts])

    def cache(self, limit: int) -> None:
        """Keep in memory, up to `limit` bytes, what has been read and entropy-decoded; 0 keeps nothing.

        A decoder that reads blocks hands this on to `krstore.store.blocks.BlockReader.cache`; one that has nothing
        worth keeping need not define it.
        """


class SnapshotDecoder(ABC):
    """Decodes the states of an open store."""

    @abstractmethod
    def network(self, step: int) -> State:
        """Return the state after a step: every array of the step's spec, by name.

        Raises:
            CorruptStoreError: the payload is damaged.
        """


ConfigT = TypeVar("ConfigT", bound=CodecConfig)
FittedT = TypeVar("FittedT")


class AnyCodec(ABC, Generic[ConfigT, FittedT]):
    """What codecs of all kinds have. A constructor only stores its config; equality and repr follow from it."""

    name: ClassVar[str]
    kind: ClassVar[Kind]
    lossless: ClassVar[bool] = False
    Config: ClassVar[type[CodecConfig]] = CodecConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.config == getattr(other, "config", None)

    def __hash__(self) -> int:
        return hash((type(self), msgspec.json.encode(self.config)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config!r})"

    @abstractmethod
    def pack(self, fitted: FittedT, knob: float, sink: PayloadSink) -> None:
        """Quantise and code what was fitted at one setting, streaming into the sink. Leaves `fitted` as it was."""

    def knob(self, fitted: FittedT) -> Knob | None:
        """Return the range of `pack`'s setting; `None` when `pack` has none and is called with 0."""
        return None

    def settled(self, fitted: FittedT) -> ConfigT:
        """Return the config with what the fit chose filled in; it goes into the store's header."""
        return self.config


class Codec(AnyCodec[ConfigT, FittedT]):
    """A way to encode samples into a payload, and to decode any of them."""

    kind: ClassVar[Kind] = Kind.DENSE
    shares_decoder: ClassVar[bool] = False
    """Whether `fit` can take another store's decoder (`FitContext.decoder`)."""
    refits: ClassVar[bool] = False
    """Whether a memory of it grows by fitting one network to all it has, rather than by a store a task."""
    scored: ClassVar[bool] = False
    """Whether `FitContext.task_model` has to give scores of the classes, rather than embeddings."""

    def validate(self, spec: SourceSpec) -> None:
        """Refuse, before any data moves, a source that this codec cannot encode.

        Raises:
            UsageError: says what is accepted.
        """

    @abstractmethod
    def fit(self, source: Source, context: FitContext) -> FittedT:
        """Learn from the source whatever decoding needs, within bounded memory, for `context.budget` bytes.

        Raises:
            TargetUnreachableError: no setting fits the budget.
        """

    @classmethod
    @abstractmethod
    def open(cls, payload: MemberReader, context: OpenContext) -> Decoder:
        """Open a payload for decoding. Needs nothing but the payload's bytes and the context."""


class SnapshotCodec(AnyCodec[ConfigT, FittedT]):
    """A way to encode a network's states into a payload, and to decode any of them."""

    kind: ClassVar[Kind] = Kind.SNAPSHOT

    @abstractmethod
    def fit(self, source: SnapshotSource, context: SnapshotFitContext) -> FittedT:
        """Find what the states share, for `context.budget` bytes.

        Raises:
            ArchiveError: the states are not what the codec can encode; names step, array and element.
            TargetUnreachableError: no setting fits the budget.
        """

    @classmethod
    @abstractmethod
    def open(cls, payload: MemberReader, context: SnapshotOpenContext) -> SnapshotDecoder:
        """Open a payload for decoding. Needs nothing but the payload's bytes and the context."""
