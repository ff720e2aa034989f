"""`header.json`: everything about a store that is not payload, readable without the codec's code."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec

from krstore.dtypes import DTYPES, STATE_DTYPES
from krstore.errors import CorruptStoreError, UsageError, WrongKindError
from krstore.snapshots import ArraySpec, SnapshotSpec
from krstore.source import SourceSpec

__all__ = [
    "FORMAT_VERSION",
    "CommonHeader",
    "Header",
    "HeaderT",
    "MemberInfo",
    "Quality",
    "SnapshotHeader",
    "SnapshotInfo",
    "SnapshotQuality",
    "SourceInfo",
    "decode_header",
    "encode_header",
]

FORMAT_VERSION = 1
MAX_SAMPLE_BYTES = MAX_ARRAY_BYTES = 1 << 32
MAX_STEPS = 4096

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 48)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}\Z")]
Key = Annotated[str, msgspec.Meta(max_length=1024, pattern=r"^[^\x00-\x1f\x7f]+\Z")]
MemberName = Annotated[str, msgspec.Meta(max_length=255)]


class Quality(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far decoded samples are from their source, measured by decoding the file's own bytes.

    Attributes:
        mse: mean squared error over all elements, raw units.
        mse_normalised: the same after scaling each channel linearly to [0, 1] over the source; a constant
            channel counts as 0. The KRNet paper's unit.
        nmse: `mse` over the variance of all source elements (0 where that is 0).
        psnr: 10 log10(range² / mse) in dB, with the range of the whole source; `None` when lossless.
        max_abs: the largest absolute error.
        cosine: mean over samples of the cosine similarity of a sample and its decoding, flattened.
        per_class: `mse` of each class, in ascending order of label; empty without labels.
        variance_kept: mean over channels of the decoded samples' variance over the source's; dead ones left out.
        discriminator: how often a small classifier tells a decoded sample from one of the source, of some it has not
            seen; 0.5 is by chance. Networks that meet both learn the difference.
        coverage_mse: exemplar stores only: mean over all source samples of the squared distance, per element,
            to the nearest kept exemplar of their class.
    """

    mse: float
    mse_normalised: float
    nmse: float
    psnr: float | None
    max_abs: float
    cosine: float
    per_class: tuple[float, ...] = ()
    variance_kept: float | None = None
    discriminator: float | None = None
    coverage_mse: float | None = None


class SourceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What was encoded; see `krstore.source.SourceSpec`."""

    samples: Positive
    shape: Annotated[tuple[Positive, ...], msgspec.Meta(max_length=32)]
    dtype: Name
    channel_axis: int | None
    bytes: Positive
    sha256: Sha256
    features_key: Key
    labels_key: Key
    attributes: dict[str, Any]

    @property
    def spec(self) -> SourceSpec:
        """The same, as the spec of a source."""
        return SourceSpec(
            samples=self.samples, shape=self.shape, dtype=self.dtype, channel_axis=self.channel_axis,
            features_key=self.features_key, labels_key=self.labels_key, attributes=self.attributes,
        )  # fmt: skip


class MemberInfo(msgspec.Struct, frozen=True):
    """Size and hash of a member other than the header."""

    bytes: Count
    sha256: Sha256


class CommonHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What the headers of all kinds of stores have."""

    krs_version: Positive
    min_reader: Positive
    flags: Literal[0]
    kind: str
    codec: Name
    config: dict[str, Any]
    members: dict[MemberName, MemberInfo]


class Header(CommonHeader, frozen=True, kw_only=True):
    """The header of a store of samples."""

    kind: Literal["dense", "exemplar"]
    source: SourceInfo
    kept: Positive
    classes: Positive | None
    quality: Quality


class SnapshotQuality(msgspec.Struct, frozen=True, kw_only=True):
    """How far decoded states are from their source, over floating-point arrays; all others are exact.

    Attributes:
        mse: mean squared error over all elements of all steps.
        nmse: `mse` over the variance of those elements (0 where that is 0).
        max_abs: the largest absolute error.
        per_step: `mse` of each step.
    """

    mse: float
    nmse: float
    max_abs: float
    per_step: tuple[float, ...]


class SnapshotInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What was encoded; see `krstore.snapshots.SnapshotSpec`."""

    steps: Annotated[tuple[dict[Key, ArraySpec], ...], msgspec.Meta(min_length=1, max_length=MAX_STEPS)]
    bytes: Positive
    sha256: Sha256
    attributes: dict[str, Any]

    @property
    def spec(self) -> SnapshotSpec:
        """The same, as the spec of a source."""
        return SnapshotSpec(steps=self.steps, attributes=self.attributes)


class SnapshotHeader(CommonHeader, frozen=True, kw_only=True):
    """The header of a store of a network's states."""

    kind: Literal["snapshot"]
    source: SnapshotInfo
    quality: SnapshotQuality


HeaderT = TypeVar("HeaderT", bound=CommonHeader)


class _Version(msgspec.Struct):
    min_reader: int


class _Kind(msgspec.Struct):
    kind: str


_TYPES: dict[str, type[CommonHeader]] = {"dense": Header, "exemplar": Header, "snapshot": SnapshotHeader}
_READERS = {False: ("samples", "krstore.open"), True: ("a network's states", "krstore.SnapshotStore")}


def encode_header(header: CommonHeader) -> bytes:
    """Return the header as JSON, keys in a fixed order.

    Raises:
        UsageError: no reader would accept it: the source has a name, size or value that a store cannot hold.
    """
    data = msgspec.json.encode(header, order="deterministic")
    try:
        decode_header(data, type(header))
    except CorruptStoreError as error:
        raise UsageError(f"this source cannot be kept in a store: {error}") from None
    return data


def decode_header(data: bytes, expected: type[HeaderT]) -> HeaderT:
    """Parse and check a header.

    Raises:
        CorruptStoreError: it is not JSON, a field is missing or of the wrong type, a size contradicts another,
            or it asks for a newer reader.
        WrongKindError: it is the header of another kind of store.
    """
    try:
        needed = msgspec.json.decode(data, type=_Version).min_reader
        if needed > FORMAT_VERSION:
            raise CorruptStoreError(
                f"format version {needed} is needed; this krstore reads up to {FORMAT_VERSION}: upgrade krstore"
            )
        kind = msgspec.json.decode(data, type=_Kind).kind
        found = _TYPES.get(kind)
        if found is None:
            raise CorruptStoreError(f"a store of kind {kind[:80]!r}; known: {', '.join(_TYPES)}")
        if not issubclass(found, expected):
            what, reader = _READERS[kind == "snapshot"]
            raise WrongKindError(f"this store holds {what}; {reader} reads it")
        header = msgspec.json.decode(data, type=found)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptStoreError(f"the header is malformed: {error}") from error
    if isinstance(header, Header):
        _check_samples(header)
    elif isinstance(header, SnapshotHeader):
        _check_snapshots(header)
    return header


def _check_samples(header: Header) -> None:
    source = header.source
    if source.dtype not in DTYPES:
        raise CorruptStoreError(f"the header's element type {source.dtype!r} is none of {', '.join(DTYPES)}")
    if source.channel_axis not in (None, *range(len(source.shape))):
        raise CorruptStoreError(f"channel axis {source.channel_axis} of samples of shape {source.shape}")
    if source.bytes != source.spec.bytes or source.spec.sample_bytes > MAX_SAMPLE_BYTES:
        raise CorruptStoreError(
            f"{source.samples} samples of {source.dtype}, shape {source.shape}, in {source.bytes} bytes; expected "
            f"{source.spec.bytes} bytes, a sample of at most {MAX_SAMPLE_BYTES}"
        )
    for key in (source.features_key, source.labels_key):
        if {"", ".", ".."} & {*key.split("/")}:
            raise CorruptStoreError(f"{key[:80]!r} cannot name an array of an archive")
    if header.kept > source.samples or (header.kind == "dense" and header.kept != source.samples):
        raise CorruptStoreError(f"a {header.kind} store keeps {header.kept} of {source.samples} samples")
    if (header.classes or 0) > source.samples or len(header.quality.per_class) > (header.classes or 0):
        raise CorruptStoreError(
            f"{header.classes} classes and {len(header.quality.per_class)} errors by class for {source.samples} samples"
        )


def _check_snapshots(header: SnapshotHeader) -> None:
    steps, source = header.source.steps, header.source
    for step, arrays in enumerate(steps):
        for name, array in arrays.items():
            if array.dtype not in STATE_DTYPES or "/" in name or name in (".", ".."):
                raise CorruptStoreError(f"step {step} has an array {name[:80]!r} of element type {array.dtype!r}")
            if array.bytes > MAX_ARRAY_BYTES:
                raise CorruptStoreError(f"step {step}: array {name[:80]!r} of shape {array.shape} is too large")
    if source.bytes != source.spec.bytes:
        raise CorruptStoreError(f"states of {source.bytes} bytes; their arrays have {source.spec.bytes}")
    if len(header.quality.per_step) != len(steps):
        raise CorruptStoreError(f"{len(header.quality.per_step)} errors by step for {len(steps)} steps")
