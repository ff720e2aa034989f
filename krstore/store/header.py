"""`header.json`: everything about a store that is not payload, readable without the codec's code."""

from __future__ import annotations

import math
from typing import Annotated, Any

import msgspec

from krstore.dtypes import DTYPES
from krstore.errors import CorruptStoreError
from krstore.source import SourceSpec

__all__ = ["FORMAT_VERSION", "Header", "MemberInfo", "Quality", "SourceInfo", "decode_header", "encode_header"]

FORMAT_VERSION = 1

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Quality(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far decoded samples are from their source, measured by decoding the file's own bytes.

    Attributes:
        mse: mean squared error over all elements, raw units.
        mse_normalised: the same after scaling each channel linearly to [0, 1] over the source; a constant
            channel counts as 0. The KRNet paper's unit.
        nmse: `mse` over the variance of all source elements (0 where that is 0 and the error is too).
        psnr: 10 log10(range² / mse) in dB, with the range of the whole source; `None` when lossless.
        max_abs: the largest absolute error.
        cosine: mean over samples of the cosine similarity of a sample and its decoding, flattened.
        per_class: `mse` of each class, in ascending order of label; empty without labels.
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
    coverage_mse: float | None = None


class SourceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What was encoded; see `krstore.source.SourceSpec`."""

    samples: Annotated[int, msgspec.Meta(ge=1, le=1 << 48)]
    shape: tuple[Count, ...]
    dtype: str
    channel_axis: int | None
    bytes: Count
    sha256: Sha256
    features_key: str
    labels_key: str
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


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The header of a store."""

    krs_version: int
    min_reader: int
    flags: int
    kind: str
    codec: str
    config: dict[str, Any]
    source: SourceInfo
    kept: Count
    classes: Count | None
    quality: Quality
    members: dict[str, MemberInfo]


def encode_header(header: Header) -> bytes:
    """Return the header as JSON, keys in a fixed order."""
    return msgspec.json.encode(header, order="deterministic")


def decode_header(data: bytes) -> Header:
    """Parse and check a header.

    Raises:
        CorruptStoreError: it is not JSON, a field is missing or of the wrong type, a size contradicts another,
            or it asks for a newer reader.
    """
    try:
        raw = msgspec.json.decode(data)
        version = raw.get("min_reader") if isinstance(raw, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise CorruptStoreError(
                f"format version {version} is needed; this krstore reads up to {FORMAT_VERSION}: upgrade krstore"
            )
        header = msgspec.convert(raw, Header)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
        raise CorruptStoreError(f"the header is malformed: {error}") from error
    source = header.source
    if source.dtype not in DTYPES:
        raise CorruptStoreError(f"the header's element type {source.dtype!r} is none of {', '.join(DTYPES)}")
    if source.channel_axis is not None and not 0 <= source.channel_axis < len(source.shape):
        raise CorruptStoreError(f"channel axis {source.channel_axis} of samples of shape {source.shape}")
    if len(source.shape) > 32 or source.bytes != source.spec.bytes:
        raise CorruptStoreError(f"{source.samples} samples of shape {source.shape} are not {source.bytes} bytes")
    if header.flags or header.krs_version < 1 or header.min_reader < 1:
        raise CorruptStoreError(f"reserved flags {header.flags}, versions {header.krs_version}, {header.min_reader}")
    if not 1 <= header.kept <= source.samples or (header.kind == "dense" and header.kept != source.samples):
        raise CorruptStoreError(f"a {header.kind} store keeps {header.kept} of {source.samples} samples")
    if not all(math.isfinite(v) for v in (header.quality.mse, header.quality.nmse, header.quality.cosine)):
        raise CorruptStoreError("the header's quality is not finite")
    return header
