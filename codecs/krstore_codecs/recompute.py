"""recompute: keeps the images that features were computed from, and the part of the network that computes them.

Early layers have more numbers than the image, and then nothing that stores features can match an image with a network
beside it. The network's weights, up to the layer, are counted once; the images are stored by an image codec. What
comes back is what `krstore extract` computed, up to the rounding of another batch size, and to the images' own error.

A store names its network; reading it builds that one, so it must be one of `krstore.backbones`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_state
from safetensors.torch import save as state_bytes
from torch import Tensor, nn

from krstore import backbones
from krstore.codec import Codec, Decoder, FitContext, Kind, Knob, OpenContext, PayloadSink
from krstore.config import CodecConfig, build_config
from krstore.dtypes import cast, numpy_dtype
from krstore.errors import CorruptStoreError, KrstoreError, UsageError
from krstore.images import open_images
from krstore.inputs import Inputs
from krstore.layers import LayerOutputs
from krstore.modules import load_module, weights_hash
from krstore.registry import get_sample_codec
from krstore.source import Array, Ids, Source, SourceSpec, scan
from krstore.store.container import MemberReader
from krstore.tensors import as_array

__all__ = ["Recompute", "RecomputeConfig"]

NETWORK, WEIGHTS = "network/recompute", "network/recompute.safetensors"
LIBRARY = "krstore.backbones"
BATCH = 128
BLOCK_BYTES = 8  # of a block in an index
LOSSLESS = -1.0  # the knob's place before the lossy codec's first
AGREEMENT = 1e-3  # of the features' root mean square; float16 archives are within it


class RecomputeConfig(CodecConfig, frozen=True, kw_only=True):
    """Options of recompute."""

    images: Annotated[
        str | None, msgspec.Meta(description="archive or folder of the images, those of all samples in their order")
    ] = None
    images_key: Annotated[str | None, msgspec.Meta(description="their array in an archive; none: images")] = None
    weights: Annotated[str | None, msgspec.Meta(description="the network's, a safetensors file")] = None
    codec: Annotated[
        str | None,
        msgspec.Meta(description="stores the images; none: webp, lossless where the target allows it"),
    ] = None
    codec_settings: Annotated[dict[str, Any], msgspec.Meta(description="its options")] = msgspec.field(
        default_factory=dict
    )


_Argument = bool | Annotated[int, msgspec.Meta(ge=0, le=1 << 16)]
_Side = Annotated[int, msgspec.Meta(ge=1, le=1 << 14)]
_Numbers = Annotated[list[float], msgspec.Meta(max_length=1 << 14)]


class _Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a store says of the network and the images, beside the weights."""

    model: str
    model_args: dict[str, _Argument]
    layer: str
    layout: Literal["nhwc", "nchw", "nhw"]
    divisor: Annotated[int, msgspec.Meta(ge=1)]
    mean: _Numbers | None
    std: _Numbers | None
    codec: str
    shape: Annotated[tuple[_Side, ...], msgspec.Meta(min_length=2, max_length=3)]
    dtype: Literal["float16", "float32", "float64", "uint8"]
    channel_axis: Annotated[int, msgspec.Meta(ge=0, le=2)] | None


@dataclass(frozen=True)
class Recomputed:
    """Images and the network that they go through.

    Attributes:
        network: what the store says of it.
        weights: of the part of it that runs.
        codecs: encode the images, and what they fitted: one, or a lossless one and a lossy one.
    """

    network: _Network
    weights: Mapping[str, Tensor]
    codecs: list[tuple[Codec[Any, Any], Any]]


class Recompute(Codec[RecomputeConfig, Recomputed]):
    """Images through an image codec, and the network up to the layer that the features are of."""

    name = "recompute"
    Config: ClassVar = RecomputeConfig

    def validate(self, spec: SourceSpec) -> None:
        """Refuse features that nobody said how to compute again."""
        if self.config.images is None or self.config.weights is None:
            raise UsageError(
                "codec recompute needs what the features were computed from: --set images=FILE --set weights=FILE"
            )
        missing = [name for name in ("model", "layer", "input_layout", "input_divisor") if name not in spec.attributes]
        if missing:
            raise UsageError(
                f"codec recompute: the archive's attributes lack {', '.join(missing)}; krstore extract writes them"
            )
        model, arguments = str(spec.attributes["model"]), spec.attributes.get("model_args", {})
        if not _is_known(model):
            raise UsageError(
                f"codec recompute: the network is {model}; a store may name only those of {LIBRARY}, because reading "
                "it builds them"
            )
        try:
            msgspec.convert(arguments, dict[str, _Argument])
        except msgspec.ValidationError as error:
            raise UsageError(f"codec recompute: the network's arguments {arguments}: {error}") from error

    def fit(self, source: Source, context: FitContext) -> Recomputed:
        """Check that the images give the features, and choose how they are stored.

        Raises:
            UsageError: they do not, or they and the samples are not equally many.
        """
        facts = source.spec.attributes
        assert self.config.images is not None
        images = open_images(
            self.config.images, images_key=self.config.images_key, resize=facts.get("resize"), crop=facts.get("crop")
        )
        if images.spec.samples != source.spec.samples:
            raise UsageError(
                f"images={self.config.images} holds {images.spec.samples:,}; the archive has {source.spec.samples:,} "
                "samples"
            )
        network = load_module(facts["model"], self.config.weights, facts.get("model_args", {})).to(context.device)
        if facts.get("weights_sha256") not in (None, weights_hash(network)):
            raise UsageError(f"weights={self.config.weights} are not those that the features were computed with")
        outputs = LayerOutputs(network, facts["layer"])
        inputs = Inputs(facts["input_layout"], facts["input_divisor"], facts.get("mean"), facts.get("std"))
        _check(source, images, outputs, inputs, context.device)
        weights = outputs.state(inputs.normalised(images.read(np.arange(1)), context.device))
        left = None if context.budget is None else context.budget - len(_weight_bytes(weights))
        own = replace(context, stats=scan(images), budget=left, max_mse=None, task_model=None, decoder=None)
        codecs = [(codec, codec.fit(images, own)) for codec in self._codecs(images.spec)]
        if left is not None and len(codecs) > 1:
            codecs = codecs[:1] if _size(*codecs[0]) <= left else codecs[1:]
        described = _Network(
            model=facts["model"], model_args=facts.get("model_args", {}), layer=facts["layer"],
            layout=facts["input_layout"], divisor=inputs.divisor, mean=inputs.mean, std=inputs.std, codec="",
            shape=images.spec.shape, dtype=images.spec.dtype,  # type: ignore[arg-type]
            channel_axis=images.spec.channel_axis,
        )  # fmt: skip
        return Recomputed(described, weights, codecs)

    def knob(self, fitted: Recomputed) -> Knob | None:
        """Return the image codec's; below it lies the lossless one, where there are two."""
        codec, images = fitted.codecs[-1]
        knob = codec.knob(images)
        return knob if len(fitted.codecs) == 1 or knob is None else replace(knob, low=LOSSLESS)

    def pack(self, fitted: Recomputed, knob: float, sink: PayloadSink) -> None:
        """Write the network, and the images at one setting."""
        codec, images = fitted.codecs[0 if knob == LOSSLESS else -1]
        sink.write(NETWORK, msgspec.json.encode(msgspec.structs.replace(fitted.network, codec=codec.name)))
        sink.write(WEIGHTS, _weight_bytes(fitted.weights))
        codec.pack(images, knob, sink)

    def settled(self, fitted: Recomputed) -> RecomputeConfig:
        """Return the config with the files' names alone, which say nothing of this machine."""
        images, weights = (Path(path or "").name for path in (self.config.images, self.config.weights))
        return msgspec.structs.replace(self.config, images=images, weights=weights)

    @classmethod
    def open(cls, payload: MemberReader, context: OpenContext) -> Decoder:
        """Build the network and open the images.

        Raises:
            CorruptStoreError: there is no such network, layer or codec, or the weights are not its own.
        """
        try:
            named = msgspec.json.decode(payload.read(NETWORK), type=_Network)
            state = parse_state(payload.read(WEIGHTS))
        except (msgspec.DecodeError, msgspec.ValidationError, SafetensorError) as error:
            raise CorruptStoreError(f"the network cannot be read: {error}") from error
        if not _is_known(named.model):
            raise CorruptStoreError(f"the network is said to be {named.model}; expected one of {LIBRARY}")
        try:
            outputs = LayerOutputs(_built(named, state, context.device), named.layer)
            inputs = Inputs(named.layout, named.divisor, named.mean, named.std)
            blank = inputs.normalised(np.zeros((1, *named.shape), named.dtype), context.device)
            if missing := outputs.state(blank).keys() - state.keys():
                raise UsageError(f"it lacks {min(missing)}")
            codec = get_sample_codec(named.codec)
        except (KrstoreError, RuntimeError, TypeError) as error:
            raise CorruptStoreError(f"the network {named.model} cannot be built again: {error}") from error
        if codec.kind is not Kind.DENSE or codec is cls:
            raise CorruptStoreError(f"images are said to be stored with {named.codec}, which stores no images")
        spec = SourceSpec(
            samples=context.spec.samples, shape=named.shape, dtype=named.dtype, channel_axis=named.channel_axis
        )
        images = codec.open(payload, replace(context, spec=spec))
        return _RecomputeDecoder(images, outputs, inputs, context)

    def _codecs(self, spec: SourceSpec) -> list[Codec[Any, Any]]:
        names = ["webp_lossless", "webp"] if self.config.codec is None else [self.config.codec]
        found = []
        for codec in map(get_sample_codec, names):
            if codec.kind is not Kind.DENSE or codec is type(self):
                raise UsageError(f"codec={codec.name} does not store images; name one that does, such as webp")
            config = build_config(codec.name, codec.Config, codec.presets, None, self.config.codec_settings)
            found.append(codec(config))
            found[-1].validate(spec)
        return found


class _RecomputeDecoder(Decoder):
    def __init__(self, images: Decoder, outputs: LayerOutputs, inputs: Inputs, context: OpenContext) -> None:
        self._images, self._outputs, self._inputs, self._context = images, outputs, inputs, context
        self._dtype = numpy_dtype(context.spec.dtype)

    def decode(self, rows: Ids) -> Array:
        parts = [cast(as_array(part), self._dtype) for part in self._features(rows)]
        return np.concatenate(parts) if parts else np.empty((0, *self._context.spec.shape), self._dtype)

    def decode_tensor(self, rows: Ids) -> Tensor:
        parts = list(self._features(rows))
        if self._dtype != np.float32 or not parts:
            return super().decode_tensor(rows)
        return torch.cat(parts)

    def cache(self, limit: int) -> None:
        self._images.cache(limit)

    def _features(self, rows: Ids) -> Iterator[Tensor]:
        for start in range(0, len(rows), BATCH):
            images = self._images.decode(rows[start : start + BATCH])
            try:
                features = self._outputs(self._inputs.normalised(images, self._context.device)).float()
            except (UsageError, RuntimeError) as error:
                raise CorruptStoreError(f"the network cannot take the images: {error}") from error
            if tuple(features.shape[1:]) != self._context.spec.shape:
                raise CorruptStoreError(
                    f"the layer answers {tuple(features.shape[1:])}; expected {self._context.spec.shape}"
                )
            yield features


def _is_known(model: str) -> bool:
    library, _, name = model.partition(":")
    return library == LIBRARY and name in backbones.__all__


def _built(named: _Network, state: Mapping[str, Tensor], device: str) -> nn.Module:
    """Return the network with these weights; those that the store does not have are of no memory, and of no use."""
    factory = getattr(backbones, named.model.partition(":")[2])
    with torch.device("meta"):
        network: nn.Module = factory(**named.model_args)
    found = network.load_state_dict(
        {name: value.to(device) for name, value in state.items()}, strict=False, assign=True
    )
    if found.unexpected_keys:
        raise UsageError(f"it has no {found.unexpected_keys[0]}")
    return network.eval().requires_grad_(False)


def _check(source: Source, images: Source, outputs: LayerOutputs, inputs: Inputs, device: str) -> None:
    """Compare a few samples, from all over the archive, with what their images give."""
    ids = np.unique(np.linspace(0, source.spec.samples - 1, 32).astype(np.int64))
    stored = source.read(ids).astype(np.float32)
    again = as_array(outputs(inputs.normalised(images.read(ids), device)).float())
    if again.shape != stored.shape:
        raise UsageError(f"the images give features {again.shape[1:]}; the archive has {stored.shape[1:]}")
    apart = np.abs(again - stored).reshape(len(ids), -1).max(axis=1)
    wrong = apart > AGREEMENT * max(1e-12, float(np.sqrt(np.square(stored).mean()))) + 1e-6
    if wrong.any():
        raise UsageError(
            f"image {ids[wrong][0]} does not give the features of sample {ids[wrong][0]} (they are up to "
            f"{apart[wrong][0]:.3g} apart); the images must be those of the archive's samples, in their order"
        )


def _weight_bytes(weights: Mapping[str, Tensor]) -> bytes:
    return state_bytes({name: tensor.cpu().contiguous() for name, tensor in weights.items()})


class _Counter:
    """A sink that only counts."""

    def __init__(self) -> None:
        self.total = 0

    def write(self, name: str, data: bytes) -> None:
        self.total += len(data)

    def write_blocks(self, name: str, block_samples: int, blocks: Iterable[bytes]) -> None:
        for block in blocks:
            self.total += len(block) + BLOCK_BYTES

    def keep(self, ids: Ids) -> None:
        return


def _size(codec: Codec[Any, Any], images: Any) -> int:
    """Return about how many bytes a codec without a setting takes for images."""
    sink = _Counter()
    codec.pack(images, 0.0, sink)
    return sink.total
