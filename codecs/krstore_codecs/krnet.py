"""krnet: a network overfit so that a sample's ID decodes to its features (Zhang et al., KRNet, 2022).

    ID -> (group m, local n) -> [FC(v_s[m]), FC(roll(v_d[m], n))] = e -> feature decoder -> features

Samples of a class form groups of at most H. A group has a static vector, shared by its samples, and a dynamic vector,
of which each sample sees a rotation of its own (Eq. 1). There is no encoder, and almost nothing is stored by sample:
2 H numbers a group. Everything else is the network, so ours counts it: sized to the byte target, its weights
quantised (the last of the training runs through the quantiser) and entropy-coded. Its decoder keeps the paper's
stages but joins them as residuals (`krstore_codecs._residual`), and the vectors go into it without FC modules of their
own. With `latent` codes a sample, which an encoder makes and the decoder gets beside the ID's embedding, it is a family
from the paper's network to an autoencoder that is told which sample it decodes. The presets ``paper-cifar`` and
``paper-imagenet`` are the paper's own networks and training, stored as float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from krstore.codec import Codec, Decoder, FitContext, Knob, OpenContext, PayloadSink
from krstore.errors import CorruptStoreError, TargetUnreachableError, UsageError
from krstore.source import Ids, Source, SourceSpec
from krstore.store.container import MemberReader
from krstore.store.rate import DEFAULT_RATIO
from krstore_codecs._codes import CodeReader, encode_all, noisy, rounded, step_for, write_codes
from krstore_codecs._decoder import DecoderSizes
from krstore_codecs._krnet import Groups, KRNetModule, KRNetSizes, recitation_loss
from krstore_codecs._latents import SpilledRows
from krstore_codecs._networks import (
    DecoderConfig,
    build_encoder,
    coded_bytes,
    describe_network,
    largest,
)
from krstore_codecs._neural import NORMALISER, SIZES, WEIGHTS, NeuralDecoder, read_sizes, unpack_network
from krstore_codecs._normalise import Normaliser
from krstore_codecs._pca import principal_components
from krstore_codecs._residual import ResidualDecoder, ResidualEncoder
from krstore_codecs._training import PAPER_TRAINING, Trainer, feed
from krstore_codecs._weights import WeightQuantiser, pack_weights, plain_state

__all__ = ["FittedKRNet", "KRNet", "KRNetConfig", "choose_sizes"]

FEWEST = 8
EMBEDDING = "latent/embedding"
LATENT_PREFIX = "embedding.vectors."


class KRNetConfig(DecoderConfig, frozen=True, kw_only=True):
    """Options of krnet; sizes that are none are chosen for the byte target."""

    group_size: Annotated[
        Annotated[int, msgspec.Meta(ge=2)] | None,
        msgspec.Meta(description="H: samples a group, and length of its vectors"),
    ] = None
    latent: Annotated[
        int, msgspec.Meta(ge=0, description="codes a sample beside its ID, from an encoder that is not kept (paper: 0)")
    ] = 0
    latent_bits: Annotated[float, msgspec.Meta(ge=0.5, le=10, description="bits a code takes, about")] = 4.0
    gamma: Annotated[float, msgspec.Meta(ge=0, description="weight of Eq. 3's second term, with --task-model")] = 1e-3


@dataclass(frozen=True)
class FittedKRNet:
    """A trained network with its quantiser's steps, and the samples' codes with theirs, if any."""

    sizes: KRNetSizes
    normaliser: Normaliser
    state: dict[str, np.ndarray[Any, np.dtype[np.float32]]]
    quantiser: WeightQuantiser | None
    iterations: int
    codes: SpilledRows | None = None
    step: float = 0.0


class KRNet(Codec[KRNetConfig, FittedKRNet]):
    """A network that recites a sample's features from its ID."""

    name = "krnet"
    refits = True
    Config: ClassVar = KRNetConfig
    presets: ClassVar = {
        "paper-cifar": {
            "group_size": 512, "d0": 1024, "c0": 512, "stride": 1, "style": "paper", "gamma": 1e-3,
            **PAPER_TRAINING, "iterations": 40_000, "constant": 0.5,
        },
        "paper-imagenet": {
            "group_size": 512, "d0": 1536, "c0": 1024, "stride": 2, "style": "paper", "gamma": 5e-4,
            **PAPER_TRAINING, "iterations": 50_000, "constant": 0.4,
        },
        "fast": {"iterations": 400},
    }  # fmt: skip

    def validate(self, spec: SourceSpec) -> None:
        """Refuse options that contradict each other."""
        self.config.check(spec)
        if self.config.latent and self.config.weights == "float32":
            raise UsageError(f"latent={self.config.latent}: codes are quantised, and so must weights be, not float32")

    def fit(self, source: Source, context: FitContext) -> FittedKRNet:
        """Train the network on Eq. 3: L_kr1 in [0, 1] units, plus gamma L_kr2 when a task network is given."""
        budget = context.budget if context.budget is not None else int(source.spec.bytes / DEFAULT_RATIO)
        sizes = choose_sizes(self.config, source.spec, source.labels, budget)
        normaliser = Normaliser.of(source.spec, context.stats)
        groups = Groups.of(source.labels, source.spec.samples, sizes.group_size)
        group, local = (torch.from_numpy(v).to(context.device) for v in (groups.group, groups.local))
        with torch.random.fork_rng():
            torch.manual_seed(context.seed)
            network = KRNetModule(sizes)
            encoder = build_encoder(_encoder_sizes(sizes)) if sizes.latent else None
        if isinstance(network.decoder, ResidualDecoder):
            decoder = sizes.decoder
            count = decoder.d0 + decoder.direct
            components = principal_components(source, normaliser, decoder.c0, count, context.seed)
            if components is not None:
                network.decoder.begin_at(components, share=0.3)
                if isinstance(encoder, ResidualEncoder):
                    encoder.begin_at(components)
        quantiser = WeightQuantiser(network, fine=LATENT_PREFIX) if sizes.weights == "quantised" else None
        trained = nn.ModuleDict({"network": network} | ({"encoder": encoder} if encoder else {})).to(context.device)
        step = step_for(self.config.latent_bits)
        context.progress.note(
            f"krnet: {sizes.groups} groups of {sizes.group_size}, {describe_network(network, sizes.decoder)}"
        )

        def loss(ids: Tensor, grids: Tensor, iteration: int) -> tuple[Tensor, Tensor]:
            picked, codes = ids.to(context.device), None
            if encoder is not None:
                latents = encoder(grids).float()
                rounding = quantiser is not None and quantiser.enabled
                codes = rounded(latents, step) if rounding else noisy(latents, step, context.seed, iteration)
            recited = network(group[picked], local[picked], codes).float()
            total = recitation_loss(recited, grids, normaliser, context.task_model, self.config.gamma)
            return total, (recited - grids).square().mean()

        batches = feed(source, normaliser, self.config, context)
        room = budget - 8 * source.spec.channels - 400 - _code_bytes(self.config, source.spec)
        trainer = Trainer(self.config, context, trained, batches, loss, quantiser, room)
        trainer.run()
        state = {name: value.cpu().numpy() for name, value in plain_state(network).items()}
        codes = encode_all(source, normaliser, encoder, context.device, sizes.latent) if encoder else None
        return FittedKRNet(sizes, normaliser, state, quantiser, trainer.planned, codes, step)

    def settled(self, fitted: FittedKRNet) -> KRNetConfig:
        """Return the config with the network's sizes and the iterations filled in."""
        decoder = fitted.sizes.decoder
        return msgspec.structs.replace(
            self.config, group_size=fitted.sizes.group_size, d0=decoder.d0, c0=decoder.c0, c1=decoder.c1,
            iterations=fitted.iterations,
        )  # fmt: skip

    def knob(self, fitted: FittedKRNet) -> Knob | None:
        """Return the factor on the quantiser's steps; 1 is what the network was trained for."""
        return None if fitted.quantiser is None else Knob(0.25, 1.0, 4.0)

    def pack(self, fitted: FittedKRNet, knob: float, sink: PayloadSink) -> None:
        """Quantise and code network and embeddings."""
        steps = None if fitted.quantiser is None else fitted.quantiser.steps(knob)
        sink.write(SIZES, msgspec.json.encode(fitted.sizes))
        sink.write(NORMALISER, fitted.normaliser.to_bytes())
        for member, latent in ((WEIGHTS, False), (EMBEDDING, True)):
            part = {n: v for n, v in fitted.state.items() if n.startswith(LATENT_PREFIX) == latent}
            own = None if steps is None else {name: steps[name] for name in part if name in steps}
            sink.write(member, pack_weights(part, own))
        if fitted.codes is not None:
            write_codes(sink, fitted.codes, fitted.step * knob)

    @classmethod
    def open(cls, payload: MemberReader, context: OpenContext) -> Decoder:
        """Rebuild the network."""
        return _KRNetDecoder(payload, context)


class _KRNetDecoder(NeuralDecoder):
    def __init__(self, payload: MemberReader, context: OpenContext) -> None:
        super().__init__(payload, context)
        sizes = read_sizes(payload, KRNetSizes, context)
        self._groups = Groups.of(context.labels, context.kept, sizes.group_size)
        decoder = sizes.decoder
        if decoder.width != 2 * sizes.group_size + sizes.latent or decoder.direct not in (0, sizes.latent):
            raise CorruptStoreError(
                f"an embedding of {decoder.width} for groups of {sizes.group_size}, {sizes.latent} codes"
            )
        if self._groups.count != sizes.groups:
            raise ValueError(f"{sizes.groups} groups of {sizes.group_size} for samples that make {self._groups.count}")
        members = {"": WEIGHTS, LATENT_PREFIX: EMBEDDING}
        quantised = sizes.weights == "quantised"
        self._network = unpack_network(
            lambda: KRNetModule(sizes), members, payload, quantised=quantised, device=self.device
        )
        self._codes = CodeReader(payload, context.kept, sizes.latent) if sizes.latent else None

    def cache(self, limit: int) -> None:
        if self._codes is not None:
            self._codes.cache(limit)

    def grids(self, rows: Ids) -> Tensor:
        group, local = (torch.from_numpy(v[rows]).to(self.device) for v in (self._groups.group, self._groups.local))
        codes = None if self._codes is None else torch.from_numpy(self._codes.read(rows)).to(self.device)
        return torch.as_tensor(self._network(group, local, codes))


def choose_sizes(config: KRNetConfig, spec: SourceSpec, labels: Ids | None, budget: int) -> KRNetSizes:
    """Return the given sizes, and for those left open the ones that spend the budget: d0 takes what H and c0 leave.

    Raises:
        TargetUnreachableError: the smallest network does not fit.
    """
    codes = _code_bytes(config, spec)
    if codes and codes >= budget:
        raise TargetUnreachableError(
            f"krnet: {config.latent} codes a sample take about {codes:,} bytes; the target leaves {budget:,}. "
            "Ask for a larger file, or fewer codes"
        )
    budget -= codes
    size = config.group_size or int(min(512, max(16, 2 ** np.floor(np.log2(np.sqrt(max(1, budget)) / 2.5)))))
    groups = Groups.of(labels, spec.samples, size).count
    while config.group_size is None and size > 16 and groups * size > budget / 8:  # vectors of many small classes
        size //= 2
        groups = Groups.of(labels, spec.samples, size).count

    def sizes(d0: int) -> KRNetSizes:
        decoder = config.decoder_sizes(spec, width=2 * size + config.latent, d0=d0, network_bytes=budget)
        decoder = msgspec.structs.replace(decoder, direct=config.latent if config.style == "residual" else 0)
        return KRNetSizes(groups, size, decoder, config.weights, config.latent)

    def estimate(d0: int) -> float:
        with torch.device("meta"):
            return coded_bytes(KRNetModule(sizes(d0)).parameters(), config)

    if config.d0 is not None:
        return sizes(config.d0)
    if estimate(FEWEST) > budget:
        raise TargetUnreachableError(
            f"krnet: its smallest network here takes about {estimate(FEWEST):,.0f} bytes; the target leaves "
            f"{budget:,}. Ask for a larger file, or try another codec"
        )
    return sizes(largest(lambda d0: estimate(d0) <= budget, FEWEST, 1 << 16) // 2 * 2)


def _code_bytes(config: KRNetConfig, spec: SourceSpec) -> int:
    return int(spec.samples * config.latent * config.latent_bits / 8)


def _encoder_sizes(sizes: KRNetSizes) -> DecoderSizes:
    """Return the sizes of the encoder: the decoder's mirror, from the features to the codes alone."""
    wide = sizes.decoder.d0 if sizes.decoder.style == "paper" else 0
    return msgspec.structs.replace(sizes.decoder, width=sizes.latent, d0=wide, direct=0)
