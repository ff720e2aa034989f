"""transform: a linear transform inside small trained networks, its coefficients entropy-coded.

    features -> [0, 1] a channel -> analysis (net, KLT, DCT) -> round(y / step) -> static tables, ANS -> blocks
                                                                     |
    features <- clipped to the channels' ranges <- synthesis (inverse DCT and KLT, net)

Analysis, step and synthesis are trained together on squared error plus lambda times the bits that a Laplacian a
coefficient would spend, with uniform noise in the rounding's place at first, then through it (Balle et al., "End-to-end
optimized image compression", ICLR 2017; Theis et al., "Lossy image compression with compressive autoencoders", ICLR
2017). The step follows the byte target while training, and lambda follows the step: at small errors a step of s costs
s^2 / 12 a coefficient, whence lambda is a multiple of s^2. Only the synthesis is stored, quantised. What comes out of
the entropy coder depends on integers alone.

On request the analysis is stored as well, so that later samples are encoded for the same decoder without a fit, and an
affine map a channel gives what is decoded the source's variance (`krstore_codecs._restore`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from krstore.codec import Codec, Decoder, FitContext, Knob, OpenContext, PayloadSink, SharedDecoder
from krstore.errors import TargetUnreachableError, UsageError
from krstore.source import Ids, Source
from krstore.store.container import MemberReader
from krstore_codecs._codes import encode_all
from krstore_codecs._latents import IntegerBlocks, SpilledRows, write_integer_blocks
from krstore_codecs._neural import DECODE_BATCH, NORMALISER, SIZES, WEIGHTS, NeuralDecoder, full_precision
from krstore_codecs._normalise import Normaliser
from krstore_codecs._ranges import check_ranges
from krstore_codecs._restore import Restoration
from krstore_codecs._training import BatchFeed, NeuralConfig, Positive, Trainer, feed
from krstore_codecs._transform import Analysis, RateModel, Synthesis
from krstore_codecs._transform_loss import RateDistortion
from krstore_codecs._transform_plan import FIXED_BYTES, Units, plan
from krstore_codecs._transform_stored import (
    COEFFICIENTS,
    ENCODER,
    RESTORE,
    SHARED,
    STEP,
    StoredSynthesis,
    TransformSizes,
    as_stored,
    pack_encoder,
    read_encoder,
)
from krstore_codecs._weights import WeightQuantiser, pack_weights, plain_state

__all__ = ["Transform", "TransformConfig"]

RESTORE_SAMPLES, RESTORE_BYTES = 2048, 512 << 20


class TransformConfig(NeuralConfig, frozen=True, kw_only=True):
    """Options of the transform codec; sizes that are none are chosen for the byte target."""

    batch_size: Annotated[int, msgspec.Meta(ge=1, description="samples an iteration")] = 50
    passes: Annotated[
        Annotated[float, msgspec.Meta(gt=0)] | None,
        msgspec.Meta(description="most passes over the samples where iterations is none; none: no limit"),
    ] = 150.0
    learning_rate: Annotated[float, msgspec.Meta(gt=0, description="Adam's rate in the first half")] = 4e-3
    plateau: Annotated[
        Annotated[float, msgspec.Meta(gt=0)] | None,
        msgspec.Meta(description="begin the decay once a tenth of the iterations gains less than this; none: never"),
    ] = None
    width: Annotated[
        Annotated[int, msgspec.Meta(ge=0, le=4096)] | None,
        msgspec.Meta(description="channels between the convolutions of each net; 0: no net"),
    ] = None
    tile: Annotated[
        Positive | None, msgspec.Meta(description="positions along each axis that the KLT takes together")
    ] = None
    channels: Annotated[Positive | None, msgspec.Meta(description="coefficients that the KLT keeps of a tile")] = None
    network_share: Annotated[
        float, msgspec.Meta(gt=0, lt=1, description="share of the target that the net may take")
    ] = 0.15
    weight_bits: Annotated[float, msgspec.Meta(ge=1, le=16, description="bits of a weight of the net")] = 4.0
    trade: Annotated[
        float, msgspec.Meta(gt=0, le=1, description="lambda, the error that a bit is worth, in squares of the step")
    ] = 0.08
    restore: Annotated[
        bool, msgspec.Meta(description="let each channel vary as the source's does: more error, less of a shift")
    ] = False
    encoder: Annotated[
        bool, msgspec.Meta(description="store the encoder too, so that this decoder takes other samples without a fit")
    ] = False


@dataclass(frozen=True)
class FittedTransform:
    """The members of a synthesis, and the coefficients of all samples, in steps."""

    sizes: TransformSizes
    network: dict[str, bytes]
    step: float
    rows: SpilledRows
    iterations: int


class Transform(Codec[TransformConfig, FittedTransform]):
    """KLT and DCT between two small convolutional nets, trained for rate and distortion together."""

    name = "transform"
    shares_decoder = True
    Config: ClassVar = TransformConfig
    presets: ClassVar = {"fast": {"iterations": 1000}, "linear": {"width": 0}}

    def fit(self, source: Source, context: FitContext) -> FittedTransform:
        """Plan, train, and transform every sample; for a given decoder, train the analysis alone."""
        if context.decoder is not None:
            return self._fit_to(context.decoder, source, context)
        config, normaliser = self.config, Normaliser.of(source.spec, context.stats)
        begin = plan(
            source, normaliser, context, share=config.network_share, weight_bits=config.weight_bits,
            width=config.width, tile=config.tile, channels=config.channels,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(context.seed)
            analysis = Analysis(begin.basis, begin.width, begin.tiles)
            synthesis = Synthesis(begin.units.layout.shape[0], len(begin.basis), begin.width, begin.tiles)
        synthesis.begin_at(begin.basis, begin.units.centre)
        encoder_bits = 8 * sum(p.numel() for p in analysis.parameters()) if config.encoder else 0
        sample_bits = max(begin.sample_bits - encoder_bits / source.spec.samples, begin.sample_bits / 8)
        rate = RateModel(tuple(begin.coefficients.shape[1:]), begin.step, sample_bits)
        rate.begin_at(begin.coefficients)
        context.progress.note(
            f"transform: {len(begin.basis)} channels of tiles {begin.tiles.shape}, width {begin.width}, "
            f"{sum(p.numel() for p in synthesis.parameters()):,} weights, {sample_bits / 8:.1f} bytes a sample"
        )
        quantiser = WeightQuantiser(synthesis, fine="basis") if config.weights == "quantised" else None
        iterations = 0
        if begin.width:
            network = nn.ModuleDict({"analysis": analysis, "synthesis": synthesis, "rate": rate}).to(context.device)
            loss = RateDistortion(begin.units, analysis, synthesis, rate, config.trade, context.seed)
            trainer = Trainer(
                config, context, network, self._batches(source, normaliser, context), loss, quantiser,
                begin.network_bytes,
            )  # fmt: skip
            loss.iterations = iterations = trainer.planned
            trainer.run()
            stored = as_stored(synthesis, quantiser)
            with_net, without = begin.errors(analysis.cpu(), stored, float(rate.step))
            said = f"transform: error {with_net:.3g} of the variance with the net, {without:.3g} in these bytes without"
            if config.width is None and without < with_net:
                context.progress.note(f"{said}; going without")
                return Transform(msgspec.structs.replace(config, width=0)).fit(source, context)
            context.progress.note(said)
        elif quantiser is not None:
            quantiser.set_bytes(begin.network_bytes)
        state = {name: value.cpu().numpy() for name, value in plain_state(synthesis).items()}
        sizes = TransformSizes(
            begin.units.layout.square, begin.tiles.side, len(begin.basis), begin.width, begin.spread, config.weights
        )
        members = {
            SIZES: msgspec.json.encode(sizes), NORMALISER: normaliser.to_bytes(),
            WEIGHTS: pack_weights(state, None if quantiser is None else quantiser.steps()),
        }  # fmt: skip
        step = float(rate.step)
        if config.encoder:
            members[ENCODER] = pack_encoder(analysis.cpu())
            analysis = read_encoder(members[ENCODER], analysis)
        analysis = analysis.to(context.device)
        if config.restore:
            restoration = _restoration(
                source, normaliser, begin.units, analysis, synthesis.to(context.device), step, context
            )
            members[RESTORE] = restoration.to_bytes()
        rows = _transform_all(source, normaliser, begin.units, analysis, context.device, step)
        return FittedTransform(sizes, members, step, rows, iterations)

    def _fit_to(self, decoder: SharedDecoder, source: Source, context: FitContext) -> FittedTransform:
        """Use the analysis stored beside a synthesis, or train one for it from its KLT's pseudo-inverse on."""
        config, opened = self.config, StoredSynthesis(decoder.payload, source.spec, context.device)
        sizes, synthesis, normaliser = opened.sizes, opened.network, opened.normaliser
        for name in ("width", "tile", "channels"):
            if getattr(config, name) not in (None, getattr(sizes, name)):
                raise UsageError(f"{name}={getattr(config, name)}: the decoder given has {name}={getattr(sizes, name)}")
        check_ranges(source, normaliser, context)
        units = Units(opened.layout, torch.from_numpy(normaliser.span / sizes.unit), synthesis.centre.detach().cpu())
        basis = torch.linalg.pinv(synthesis.basis().detach().cpu().T)
        with torch.random.fork_rng():
            torch.manual_seed(context.seed)
            analysis = Analysis(basis, sizes.width, opened.tiles).to(context.device)
        shared = [name for name in SHARED if name in decoder.payload.names()]
        members = {name: decoder.payload.read(name) for name in shared}
        if ENCODER in members:
            analysis = read_encoder(members[ENCODER], analysis).to(context.device)
        target = None
        if context.budget is not None:
            room = context.budget - sum(map(len, members.values())) - FIXED_BYTES
            if room <= 0:
                raise TargetUnreachableError(
                    f"transform: the decoder alone takes {context.budget - room:,} bytes; the target leaves "
                    f"{context.budget:,}. Ask for a larger file"
                )
            target = 8 * room / source.spec.samples
        rate = RateModel((sizes.channels, *opened.tiles.coefficients), opened.step, target).to(context.device)
        iterations = 0
        if sizes.width and ENCODER not in members:
            batches = self._batches(source, normaliser, context)
            with torch.no_grad():
                rate.begin_at(analysis(units.enter(next(batches.batches())[1])))
            network = nn.ModuleDict({"analysis": analysis, "rate": rate})
            loss = RateDistortion(units, analysis, synthesis.requires_grad_(False), rate, config.trade, context.seed)
            trainer = Trainer(config, context, network, batches, loss)
            loss.iterations = iterations = trainer.planned
            trainer.run()
        step = float(rate.step)
        rows = _transform_all(source, normaliser, units, analysis, context.device, step)
        return FittedTransform(sizes, members, step, rows, iterations)

    def _batches(self, source: Source, normaliser: Normaliser, context: FitContext) -> BatchFeed:
        return feed(source, normaliser, self.config, context)

    def settled(self, fitted: FittedTransform) -> TransformConfig:
        """Return the config with what was chosen filled in."""
        return msgspec.structs.replace(
            self.config, width=fitted.sizes.width, tile=fitted.sizes.tile, channels=fitted.sizes.channels,
            weights=fitted.sizes.weights, restore=RESTORE in fitted.network, encoder=ENCODER in fitted.network,
            iterations=fitted.iterations or self.config.iterations,
        )  # fmt: skip

    def knob(self, fitted: FittedTransform) -> Knob:
        """Return the factor on the step; 1 is what the networks were trained for."""
        return Knob(1 / 64, 1.0, 64.0)

    def pack(self, fitted: FittedTransform, knob: float, sink: PayloadSink) -> None:
        """Code synthesis and coefficients."""
        for name, data in fitted.network.items():
            sink.write(name, data)
        knob = max(knob, fitted.rows.finest)
        sink.write(STEP, np.float32(fitted.step * knob).astype("<f4").tobytes())
        write_integer_blocks(sink, COEFFICIENTS, fitted.rows, knob)

    @classmethod
    def open(cls, payload: MemberReader, context: OpenContext) -> Decoder:
        """Rebuild the synthesis."""
        return _TransformDecoder(payload, context)


class _TransformDecoder(NeuralDecoder):
    def __init__(self, payload: MemberReader, context: OpenContext) -> None:
        super().__init__(payload, context)
        self._synthesis = StoredSynthesis(payload, context.spec, context.device)
        sizes = self._synthesis.sizes
        self._shape = (sizes.channels, *self._synthesis.tiles.coefficients)
        self._integers = IntegerBlocks(payload, COEFFICIENTS, context.kept, math.prod(self._shape))
        self._restoration = None
        if RESTORE in payload.names():
            self._restoration = Restoration.from_bytes(payload.read(RESTORE), context.spec.channels)
        span = torch.from_numpy(self.normaliser.span)
        self._unit = torch.where(span > 0, sizes.unit / span, 0).to(self.device).view(1, -1, 1, 1)

    def cache(self, limit: int) -> None:
        self._integers.cache(limit)

    def grids(self, rows: Ids) -> Tensor:
        return self._left(self._synthesis.network(self._coefficients(rows)))

    def decode_together(self, parts: Sequence[tuple[Decoder, Ids]]) -> Tensor:
        """Return samples (n, *shape) of stores that have this one's synthesis, on the device."""
        decoded = list[Tensor]()
        with torch.no_grad(), full_precision(self.device):
            for batch in _batches(cast("Sequence[tuple[_TransformDecoder, Ids]]", parts)):
                laid = self._synthesis.network(torch.cat([decoder._coefficients(rows) for decoder, rows in batch]))
                pieces = torch.split(laid, [len(rows) for _, rows in batch])
                decoded += [one.normaliser.decode(one._left(own)) for (one, _), own in zip(batch, pieces, strict=True)]
        return torch.cat(decoded) if decoded else self.decode_tensor(np.empty(0, np.int64))

    def _coefficients(self, rows: Ids) -> Tensor:
        integers = torch.from_numpy(self._integers.read(rows)).to(self.device)
        return integers.reshape(-1, *self._shape) * self._synthesis.step

    def _left(self, laid: Tensor) -> Tensor:
        """Return grids (n, C, H, W) in [0, 1] of what the synthesis has made."""
        grids = self._synthesis.layout.leave(laid) * self._unit
        return grids if self._restoration is None else self._restoration(grids)


def _batches(
    parts: Sequence[tuple[_TransformDecoder, Ids]],
) -> Iterator[list[tuple[_TransformDecoder, Ids]]]:
    """Yield the rows of all parts in batches of `DECODE_BATCH`."""
    batch: list[tuple[_TransformDecoder, Ids]] = []
    for decoder, rows in parts:
        while len(rows):
            room = DECODE_BATCH - sum(len(own) for _, own in batch)
            batch.append((decoder, rows[:room]))
            rows = rows[room:]
            if sum(len(own) for _, own in batch) == DECODE_BATCH:
                yield batch
                batch = []
    if batch:
        yield batch


def _restoration(
    source: Source, normaliser: Normaliser, units: Units, analysis: Analysis, synthesis: Synthesis, step: float,
    context: FitContext,
) -> Restoration:  # fmt: skip
    """Return what restores the variance of some random samples, decoded from what is coded of them."""
    size = min(source.spec.samples, RESTORE_SAMPLES, max(1, RESTORE_BYTES // (4 * source.spec.elements)))
    picked = np.sort(np.random.default_rng(context.seed).permutation(source.spec.samples)[:size])
    unit = torch.where(units.factor > 0, 1 / units.factor, 0).view(1, -1, 1, 1)
    wanted, decoded = [], []
    for ids in np.array_split(picked, -(-size // DECODE_BATCH)):
        grids = normaliser.scale(normaliser.to_grid(source.read(ids)))
        with torch.no_grad():
            coded = torch.round(analysis(units.enter(grids.to(context.device))) / step) * step
            decoded.append(units.layout.leave(synthesis(coded)).cpu() * unit)
        wanted.append(grids)
    return Restoration.of(torch.cat(decoded), torch.cat(wanted))


def _transform_all(
    source: Source, normaliser: Normaliser, units: Units, analysis: Analysis, device: str, step: float
) -> SpilledRows:
    length = len(analysis.basis.vectors) * math.prod(analysis.tiles.coefficients)
    return encode_all(source, normaliser, lambda grids: analysis(units.enter(grids)).flatten(1) / step, device, length)
