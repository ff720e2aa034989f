"""autoencoder: the KRNet paper's baseline (Sec. IV-A3), whose decoder is KRNet's and whose encoder is its mirror.

    features -> encoder -> latent y (n, L), standardised -> round(y / step) -> feature decoder -> features
                                                             entropy-coded

Stored are the decoder and the latents; the encoder is only needed once and dropped. In the paper's presets the
latents are L = 1024 floats a sample. Ours are sized to the byte target: the fit begins at the features' principal
components; latents are quantised (uniform noise while training, rounding with straight-through gradients at the end)
and entropy-coded, and so are the decoder's weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from krstore.codec import Codec, Decoder, FitContext, Knob, OpenContext, PayloadSink
from krstore.errors import TargetUnreachableError
from krstore.source import Array, Ids, Source, SourceSpec
from krstore.store.blocks import BlockReader
from krstore.store.container import MemberReader
from krstore.store.rate import DEFAULT_RATIO
from krstore_codecs._codes import LATENTS, CodeReader, encode_all, noisy, rounded, step_for, write_codes
from krstore_codecs._decoder import DecoderSizes
from krstore_codecs._latents import SpilledRows
from krstore_codecs._networks import DecoderConfig, build_decoder, build_encoder, coded_bytes, describe_network, largest
from krstore_codecs._neural import NORMALISER, SIZES, WEIGHTS, NeuralDecoder, read_sizes, unpack_network
from krstore_codecs._normalise import Normaliser
from krstore_codecs._pca import principal_components
from krstore_codecs._residual import ResidualDecoder, ResidualEncoder
from krstore_codecs._training import PAPER_TRAINING, Positive, Trainer, feed
from krstore_codecs._weights import WeightQuantiser, pack_weights, plain_state

__all__ = ["Autoencoder", "AutoencoderConfig"]

FEWEST = 4


class AutoencoderConfig(DecoderConfig, frozen=True, kw_only=True):
    """Options of the autoencoder; sizes that are none are chosen for the byte target."""

    latent: Annotated[Positive | None, msgspec.Meta(description="L: latents a sample (paper: 1024)")] = None
    latent_bits: Annotated[
        float, msgspec.Meta(ge=0.5, le=16, description="bits a latent, when their number is sized to the target")
    ] = 4.0
    network_share: Annotated[
        float, msgspec.Meta(gt=0, lt=1, description="share of the target that the network may take")
    ] = 0.35


class AutoencoderSizes(msgspec.Struct, frozen=True):
    """What rebuilds the decoder, and how weights and latents are stored."""

    decoder: DecoderSizes
    weights: Literal["quantised", "float32"]


@dataclass(frozen=True)
class FittedAutoencoder:
    """A trained decoder and the latents of all samples."""

    sizes: AutoencoderSizes
    normaliser: Normaliser
    state: dict[str, NDArray[Any]]
    steps: dict[str, float] | None
    latents: SpilledRows
    step: float
    iterations: int


class Autoencoder(Codec[AutoencoderConfig, FittedAutoencoder]):
    """An encoder and a decoder trained together; the encoder is dropped from the file."""

    name = "autoencoder"
    refits = True
    Config: ClassVar = AutoencoderConfig
    presets: ClassVar = {
        "paper-cifar": {
            "latent": 1024, "d0": 1024, "c0": 512, "stride": 1, "style": "paper",
            **PAPER_TRAINING, "iterations": 40_000, "constant": 0.5,
        },
        "paper-imagenet": {
            "latent": 1024, "d0": 1536, "c0": 1024, "stride": 2, "style": "paper",
            **PAPER_TRAINING, "iterations": 50_000, "constant": 0.4,
        },
        "fast": {"iterations": 400},
    }  # fmt: skip

    def validate(self, spec: SourceSpec) -> None:
        """Refuse sizes that contradict each other."""
        self.config.check(spec)

    def fit(self, source: Source, context: FitContext) -> FittedAutoencoder:
        """Train encoder and decoder on the mean squared error in [0, 1] units, then encode every sample."""
        budget = context.budget if context.budget is not None else int(source.spec.bytes / DEFAULT_RATIO)
        plan = self.plan(source.spec, budget)
        sizes, length = plan.sizes.decoder, plan.sizes.decoder.width
        normaliser = Normaliser.of(source.spec, context.stats)
        with torch.random.fork_rng():
            torch.manual_seed(context.seed)
            encoder, decoder = build_encoder(sizes), build_decoder(sizes)
        context.progress.note(f"autoencoder: {length} latents, {describe_network(decoder, sizes)}")
        if isinstance(encoder, ResidualEncoder) and isinstance(decoder, ResidualDecoder):
            components = principal_components(source, normaliser, sizes.c0, length, context.seed)
            if components is not None:
                encoder.begin_at(components)
                decoder.begin_at(components, share=1.0)
        quantiser = WeightQuantiser(decoder) if self.config.weights == "quantised" else None
        network = nn.ModuleDict({"encoder": encoder, "decoder": decoder}).to(context.device)

        def loss(ids: Tensor, grids: Tensor, iteration: int) -> tuple[Tensor, Tensor]:
            latents = encoder(grids).float()
            if quantiser is not None:
                latents = (
                    rounded(latents, plan.step)
                    if quantiser.enabled
                    else noisy(latents, plan.step, context.seed, iteration)
                )
            error = (decoder(latents).float() - grids).square().mean()
            return error * grids[0].numel(), error

        batches = feed(source, normaliser, self.config, context)
        trainer = Trainer(self.config, context, network, batches, loss, quantiser, plan.network_bytes)
        trainer.run()
        latents = encode_all(source, normaliser, encoder, context.device, length)
        state = {name: value.cpu().numpy() for name, value in plain_state(decoder).items()}
        return FittedAutoencoder(
            sizes=plan.sizes, normaliser=normaliser, state=state,
            steps=None if quantiser is None else quantiser.steps(), latents=latents, step=plan.step,
            iterations=trainer.planned,
        )  # fmt: skip

    def settled(self, fitted: FittedAutoencoder) -> AutoencoderConfig:
        """Return the config with the network's sizes and the iterations filled in."""
        decoder = fitted.sizes.decoder
        return msgspec.structs.replace(
            self.config, latent=decoder.width, d0=decoder.d0 or None, c0=decoder.c0, c1=decoder.c1,
            iterations=fitted.iterations,
        )  # fmt: skip

    def knob(self, fitted: FittedAutoencoder) -> Knob | None:
        """Return the factor on the latents' step; 1 is what the network was trained for."""
        return None if fitted.steps is None else Knob(1 / 8, 1.0, 64.0)

    def pack(self, fitted: FittedAutoencoder, knob: float, sink: PayloadSink) -> None:
        """Code decoder and latents."""
        sink.write(SIZES, msgspec.json.encode(fitted.sizes))
        sink.write(NORMALISER, fitted.normaliser.to_bytes())
        sink.write(WEIGHTS, pack_weights(fitted.state, fitted.steps))
        if fitted.steps is None:
            size = max(1, 4096 // (4 * fitted.latents.length))
            sink.write_blocks(LATENTS, size, (rows.astype("<f4").tobytes() for rows in fitted.latents.chunks(size)))
        else:
            write_codes(sink, fitted.latents, fitted.step * knob)

    @classmethod
    def open(cls, payload: MemberReader, context: OpenContext) -> Decoder:
        """Rebuild the decoder."""
        return _AutoencoderDecoder(payload, context)

    def plan(self, spec: SourceSpec, budget: int) -> Plan:
        """Return the given sizes, and for those left open the ones that spend the budget.

        The network takes `network_share` of it, and as many latents as its FC layer can then be wide, up to what the
        rest pays for at `latent_bits` each.

        Raises:
            TargetUnreachableError: the smallest network does not fit.
        """
        config = self.config
        network_bytes = int(config.network_share * budget)

        def sizes(latent: int) -> DecoderSizes:
            d0 = max(2 * FEWEST, latent) if config.style == "paper" else 0
            return config.decoder_sizes(spec, width=latent, d0=d0, network_bytes=network_bytes)

        def estimate(latent: int) -> float:
            with torch.device("meta"):
                return coded_bytes(build_decoder(sizes(latent)).parameters(), config)

        smallest = int(estimate(FEWEST))
        if config.latent is not None:
            latent = config.latent
        elif smallest > 0.9 * budget:
            raise TargetUnreachableError(
                f"autoencoder: its smallest network here takes about {smallest:,} bytes; the target leaves {budget:,}. "
                "Ask for a larger file, or try another codec"
            )
        else:
            network_bytes = max(network_bytes, smallest)
            wanted = max(FEWEST, int((budget - network_bytes) * 8 / config.latent_bits / spec.samples))
            latent = largest(lambda n: estimate(n) <= network_bytes, FEWEST, min(wanted, 4096))
        bits = (budget - network_bytes) * 8 / spec.samples / latent
        return Plan(AutoencoderSizes(sizes(latent), config.weights), network_bytes, step_for(bits))


@dataclass(frozen=True)
class Plan:
    """Sizes, what the network may take, and the latents' step (they have unit variance)."""

    sizes: AutoencoderSizes
    network_bytes: int
    step: float


class _AutoencoderDecoder(NeuralDecoder):
    def __init__(self, payload: MemberReader, context: OpenContext) -> None:
        super().__init__(payload, context)
        sizes = read_sizes(payload, AutoencoderSizes, context)
        quantised = sizes.weights == "quantised"
        self._network = unpack_network(
            lambda: build_decoder(sizes.decoder), {"": WEIGHTS}, payload, quantised=quantised, device=self.device
        )
        length = sizes.decoder.width
        self._latents: CodeReader | BlockReader
        if quantised:
            self._latents = CodeReader(payload, context.kept, length)
        else:
            self._latents = BlockReader(
                payload, LATENTS, context.kept, lambda blocks, samples: _floats(blocks, samples, length)
            )

    def cache(self, limit: int) -> None:
        self._latents.cache(limit)

    def grids(self, rows: Ids) -> Tensor:
        return torch.as_tensor(self._network(torch.from_numpy(self._latents.read(rows)).to(self.device)))


def _floats(blocks: list[bytes], samples: list[int], length: int) -> Array:
    return np.frombuffer(b"".join(blocks), "<f4").reshape(sum(samples), length).astype(np.float32)
