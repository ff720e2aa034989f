"""pq: product quantisation of each position's channel vector, as REMIND stores features (Hayes et al., 2020).

    features (n, C, H, W) -> H W vectors of C channels -> [rotation, OPQ] -> M sub-vectors -> nearest of 2^b centroids

Stored are M codes of b bits for every position, bit-packed, and the codebooks as float32, 2^b x C numbers (and C x C
for the rotation). faiss trains and encodes. Sizes are known beforehand, so the target picks the setting (M, b): the
one of most code bits whose file stays under it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from krstore.codec import Codec, Decoder, FitContext, Knob, OpenContext, PayloadSink
from krstore.config import CodecConfig
from krstore.dtypes import cast, numpy_dtype
from krstore.errors import ArchiveError, CorruptStoreError, MissingExtraError, TargetUnreachableError, UsageError
from krstore.progress import Progress
from krstore.source import Array, Ids, Source, SourceSpec, chunks, from_channels_first, to_channels_first
from krstore.store.blocks import BlockReader, samples_per_block
from krstore.store.container import MemberReader

__all__ = ["PQ", "PQConfig", "PQSetting"]

SETTING, CODEBOOKS, ROTATION, CODES = "network/setting", "network/codebooks", "network/rotation", "latent/codes"
MAX_BITS = 12
LARGEST = 1e15
MEMBER_BYTES = 210  # that a payload member costs in the file's header and directory


class PQConfig(CodecConfig, frozen=True, kw_only=True):
    """Options of pq; M and bits that are none are chosen for the target."""

    subvectors: Annotated[
        Annotated[int, msgspec.Meta(ge=1)] | None, msgspec.Meta(description="M: codes a position; divides the channels")
    ] = None
    bits: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=MAX_BITS)] | None, msgspec.Meta(description="b: bits a code (REMIND: 8)")
    ] = None
    opq: Annotated[bool, msgspec.Meta(description="rotate the channels first (optimised product quantisation)")] = False
    train_points: Annotated[
        int, msgspec.Meta(ge=1, description="vectors a centroid that k-means sees at most (faiss: 256)")
    ] = 64
    iterations: Annotated[int, msgspec.Meta(ge=1, description="iterations of k-means")] = 20


class PQSetting(msgspec.Struct, frozen=True, order=True):
    """M sub-vectors of b bits each."""

    subvectors: int
    bits: int

    @property
    def code_bits(self) -> int:
        """Bits a position."""
        return self.subvectors * self.bits


@dataclass(frozen=True)
class FittedPQ:
    """The source, a sample of its vectors to train on, and the settings to choose among, largest file first."""

    source: Source
    points: NDArray[np.float32]
    settings: list[PQSetting]
    seed: int
    progress: Progress


class PQ(Codec[PQConfig, FittedPQ]):
    """Product quantisation of each position's channels, through faiss."""

    name = "pq"
    Config: ClassVar = PQConfig
    presets: ClassVar = {"remind": {"bits": 8, "subvectors": 32}, "fast": {"train_points": 39, "iterations": 8}}

    def validate(self, spec: SourceSpec) -> None:
        """Refuse a number of sub-vectors that does not divide the channels, and to go on without faiss."""
        _faiss()
        if self.config.subvectors is not None and spec.channels % self.config.subvectors:
            raise UsageError(f"subvectors={self.config.subvectors} does not divide the {spec.channels} channels")

    def fit(self, source: Source, context: FitContext) -> FittedPQ:
        """Draw the vectors to train on, and keep the settings that the budget allows.

        Raises:
            ArchiveError: values so large that faiss, which squares them as float32, would overflow.
        """
        largest = max(-context.stats.minimum.min(), context.stats.maximum.max())
        if largest > LARGEST:
            raise ArchiveError(f"values reach {largest:.3g}; pq takes at most {LARGEST:g}: scale the features first")
        settings = self.settings(source.spec)
        if context.budget is not None:
            allowed = [s for s in settings if payload_bytes(source.spec, s, self.config.opq) <= context.budget]
            if not allowed:
                smallest = min(payload_bytes(source.spec, s, self.config.opq) for s in settings)
                raise TargetUnreachableError(
                    f"pq: its smallest setting takes {smallest:,} bytes; the target leaves {context.budget:,}"
                )
            settings = allowed[:1]
        needed = self.config.train_points << max(setting.bits for setting in settings)
        points = _sample_vectors(source, needed, context.seed)
        return FittedPQ(source, points, settings, context.seed, context.progress)

    def settings(self, spec: SourceSpec) -> list[PQSetting]:
        """Return the settings open to the config, largest file first; of equal ones, more bits a code first."""
        wanted_m = [self.config.subvectors] if self.config.subvectors else _divisors(spec.channels)
        vectors = spec.samples * spec.elements // spec.channels
        enough = max(1, int(np.log2(max(2, vectors))))
        wanted_b = [self.config.bits] if self.config.bits else range(1, min(MAX_BITS, enough) + 1)
        found = [PQSetting(m, b) for m in wanted_m for b in wanted_b]
        return sorted(found, key=lambda s: (-s.code_bits, -payload_bytes(spec, s, self.config.opq)))

    def settled(self, fitted: FittedPQ) -> PQConfig:
        """Return the config with the setting that a budget has left filled in."""
        if len(fitted.settings) > 1:
            return self.config
        setting = fitted.settings[0]
        return msgspec.structs.replace(self.config, subvectors=setting.subvectors, bits=setting.bits)

    def knob(self, fitted: FittedPQ) -> Knob | None:
        """Return the index into the settings; a budget has left only one."""
        last = len(fitted.settings) - 1
        return Knob(0, last // 2, last, integer=True) if last else None

    def pack(self, fitted: FittedPQ, knob: float, sink: PayloadSink) -> None:
        """Train the codebooks of one setting and code every sample."""
        faiss, spec, setting = _faiss(), fitted.source.spec, fitted.settings[int(knob)]
        quantiser = faiss.ProductQuantizer(spec.channels, setting.subvectors, setting.bits)
        quantiser.cp.niter, quantiser.cp.seed = self.config.iterations, fitted.seed + 1
        quantiser.cp.min_points_per_centroid = 1
        quantiser.cp.max_points_per_centroid = self.config.train_points
        points = fitted.points[: self.config.train_points << setting.bits]
        if len(points) < 1 << setting.bits:  # k-means wants a point a centroid
            points = np.resize(points, (1 << setting.bits, spec.channels))
        rotation = None
        if self.config.opq:
            opq = faiss.OPQMatrix(spec.channels, setting.subvectors)
            opq.pq = quantiser
            opq.train(points)
            rotation = faiss.vector_to_array(opq.A).reshape(spec.channels, spec.channels)
            points = points @ rotation.T
        quantiser.train(np.ascontiguousarray(points))
        sink.write(SETTING, msgspec.json.encode(setting))
        sink.write(CODEBOOKS, faiss.vector_to_array(quantiser.centroids).astype("<f4").tobytes())
        if rotation is not None:
            sink.write(ROTATION, rotation.astype("<f4").tobytes())
        size = samples_per_block(_sample_code_bytes(spec, setting))
        sink.write_blocks(CODES, size, self._blocks(fitted, quantiser, rotation, size, setting))

    def _blocks(
        self, fitted: FittedPQ, quantiser: Any, rotation: NDArray[np.float32] | None, size: int, setting: PQSetting
    ) -> Iterator[bytes]:
        spec = fitted.source.spec
        rows = max(1, (4 << 20) // (spec.sample_bytes * size)) * size
        with fitted.progress.task("encode", spec.samples) as task:
            for ids, features in chunks(fitted.source, rows * spec.sample_bytes):
                vectors = _vectors(features, spec)
                codes = quantiser.compute_codes(
                    np.ascontiguousarray(vectors if rotation is None else vectors @ rotation.T)
                )
                bits = np.unpackbits(codes, axis=1, count=setting.code_bits, bitorder="little")
                for start in range(0, len(ids), size):
                    count = min(size, len(ids) - start)
                    positions = len(bits) // len(ids)
                    block = bits[start * positions : (start + count) * positions]
                    yield np.packbits(block, bitorder="little").tobytes()
                task.advance(len(ids))

    @classmethod
    def open(cls, payload: MemberReader, context: OpenContext) -> Decoder:
        """Load the codebooks; decoding needs NumPy only."""
        return _PQDecoder(payload, context)


class _PQDecoder(Decoder):
    def __init__(self, payload: MemberReader, context: OpenContext) -> None:
        try:
            self._setting = msgspec.json.decode(payload.read(SETTING), type=PQSetting)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise CorruptStoreError(f"the setting of a pq store is malformed: {error}") from error
        m, bits, channels = self._setting.subvectors, self._setting.bits, context.spec.channels
        if m < 1 or channels % m or not 1 <= bits <= MAX_BITS:
            raise CorruptStoreError(f"a pq store of {self._setting} for {channels} channels")
        self._spec = context.spec
        self._positions = context.spec.elements // channels
        self._books = np.frombuffer(payload.read(CODEBOOKS), "<f4").reshape(m, 1 << bits, channels // m)
        self._rotation = None
        if ROTATION in payload.names():
            self._rotation = np.frombuffer(payload.read(ROTATION), "<f4").reshape(channels, channels)
        self._blocks = BlockReader(payload, CODES, context.kept, self._unpack)

    def decode(self, rows: Ids) -> Array:
        out = np.empty((len(rows), *self._spec.shape), numpy_dtype(self._spec.dtype))
        for start in range(0, len(rows), 1024):
            codes = self._blocks.read(rows[start : start + 1024])
            vectors = np.concatenate([book[codes[..., m]] for m, book in enumerate(self._books)], axis=-1)
            if self._rotation is not None:
                vectors = vectors @ self._rotation
            values = from_channels_first(np.moveaxis(vectors, 2, 1), self._spec.shape, self._spec.channel_axis)
            out[start : start + 1024] = cast(values, out.dtype)
        return out

    def cache(self, limit: int) -> None:
        self._blocks.cache(limit)

    def _unpack(self, blocks: list[bytes], samples: list[int]) -> Array:
        m, bits = self._setting.subvectors, self._setting.bits
        weights = (1 << np.arange(bits)).astype(np.uint16)
        out = np.empty((sum(samples), self._positions, m), np.uint8 if bits <= 8 else np.uint16)
        start = 0
        for data, count in zip(blocks, samples, strict=True):
            need = count * self._positions * m * bits
            if len(data) != -(-need // 8):
                raise CorruptStoreError(f"a block of {count} samples has {len(data)} bytes of codes")
            if bits == 8:
                codes = np.frombuffer(data, np.uint8)
            else:
                codes = (
                    np.unpackbits(np.frombuffer(data, np.uint8), count=need, bitorder="little").reshape(-1, bits)
                    @ weights
                )
            out[start : start + count] = codes.reshape(count, self._positions, m)
            start += count
        return out


def payload_bytes(spec: SourceSpec, setting: PQSetting, opq: bool) -> int:
    """Return the bytes that a setting's codes, index, codebooks and rotation take."""
    size = samples_per_block(_sample_code_bytes(spec, setting))
    blocks, last = divmod(spec.samples, size)
    bits = setting.code_bits * (spec.elements // spec.channels)
    codes = blocks * -(-size * bits // 8) + -(-last * bits // 8)
    books = 4 * (spec.channels << setting.bits)
    index = 9 + (blocks + bool(last)) * (4 + (2 if -(-size * bits // 8) < 1 << 16 else 4))
    rotation = 4 * spec.channels**2 * opq
    members = (4 + opq) * MEMBER_BYTES
    return codes + books + rotation + index + members + len(msgspec.json.encode(setting))


def _sample_code_bytes(spec: SourceSpec, setting: PQSetting) -> float:
    return setting.code_bits * (spec.elements // spec.channels) / 8


def _vectors(features: Array, spec: SourceSpec) -> NDArray[np.float32]:
    """Bring features (n, *shape) to the vectors (n x positions, C)."""
    moved = np.moveaxis(to_channels_first(features, spec.channel_axis), 1, 2)
    return np.ascontiguousarray(moved.reshape(-1, spec.channels), np.float32)


def _sample_vectors(source: Source, count: int, seed: int) -> NDArray[np.float32]:
    """Draw about `count` vectors: all positions of randomly chosen samples, in random order."""
    spec = source.spec
    rng = np.random.default_rng(seed)
    positions = spec.elements // spec.channels
    chosen = np.sort(rng.permutation(spec.samples)[: max(1, min(spec.samples, -(-4 * count // positions)))])
    per_sample = min(positions, max(1, -(-count // len(chosen))))
    points = []
    for piece in np.array_split(chosen, max(1, len(chosen) * spec.sample_bytes // (16 << 20))):
        vectors = _vectors(source.read(piece), spec).reshape(len(piece), positions, spec.channels)
        picked = rng.permuted(np.tile(np.arange(positions), (len(piece), 1)), axis=1)[:, :per_sample]
        points.append(np.take_along_axis(vectors, picked[:, :, None], axis=1).reshape(-1, spec.channels))
    return rng.permutation(np.concatenate(points))[:count]


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("faiss-cpu", "pq", "encoding with codec pq") from None
    return faiss
