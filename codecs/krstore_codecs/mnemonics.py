"""mnemonics: exemplars that are trained, so that a network trained on them does well on the class's samples.

Liu et al., "Mnemonics training: multi-class incremental learning without forgetting", CVPR 2020, Sec. 4.3, Eqs. 7 to 9:
exemplars begin as a random subset, and follow the gradient of the loss that a temporary network, trained on them for a
few steps, has on all samples. What the paper trains in normalised pixels is trained in units of each channel's standard
deviation here, for images and feature maps alike, and kept within the source's range. Released code does otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from krstore.codec import FitContext
from krstore.dtypes import numpy_dtype
from krstore.errors import UsageError
from krstore.source import Array, Ids, Source, SourceSpec
from krstore.tensors import as_tensor
from krstore_codecs._bilevel import meta_gradient
from krstore_codecs._exemplars import Chosen, Embeddings, Exemplars, ExemplarsConfig

__all__ = ["Mnemonics", "MnemonicsConfig"]


class MnemonicsConfig(ExemplarsConfig, frozen=True, kw_only=True):
    """Options of mnemonics; the defaults are the paper's, but that it does not say how many steps a few are."""

    epochs: Annotated[int, msgspec.Meta(ge=0, description="times that all samples are seen (outer loop)")] = 50
    batch_size: Annotated[int, msgspec.Meta(ge=1, description="samples that an outer step's loss is of")] = 128
    steps: Annotated[int, msgspec.Meta(ge=1, description="of the temporary network (inner loop, Eq. 8)")] = 5
    inner_rate: Annotated[float, msgspec.Meta(gt=0, description="alpha_2, of those steps")] = 0.01
    rate: Annotated[float, msgspec.Meta(gt=0, description="beta_1, of the exemplars, in standard deviations")] = 0.01
    halve: Annotated[int, msgspec.Meta(ge=1, description="epochs after each of which that rate is halved")] = 10
    outer_steps: Annotated[
        Annotated[int, msgspec.Meta(ge=1)] | None, msgspec.Meta(description="stop after so many outer steps; none: no")
    ] = None


@dataclass(frozen=True)
class _Trained:
    """Exemplars as a source, once they are trained."""

    spec: SourceSpec
    values: Array
    labels: Ids | None
    task: Ids | None

    def read(self, ids: Ids) -> Array:
        """Return exemplars by their place."""
        return self.values[ids]


class Mnemonics(Exemplars):
    """Random exemplars, trained so that a network that learns from them knows the class."""

    name = "mnemonics"
    scored = True
    Config: ClassVar = MnemonicsConfig
    presets: ClassVar = {"fast": {"epochs": 2, "outer_steps": 20, "steps": 5, "halve": 1}}

    def rank(self, embeddings: Embeddings, count: int, seed: int) -> Ids:
        """Return random rows to begin with."""
        return np.random.default_rng(seed).permutation(len(embeddings))[:count]

    def fit(self, source: Source, context: FitContext) -> Chosen:
        """Choose exemplars and train them.

        Raises:
            UsageError: there is no network, or it does not tell the classes apart; or as `Exemplars.fit`.
        """
        if context.task_model is None:
            raise UsageError(
                "codec mnemonics trains exemplars for a network that maps samples to scores of the classes; name it "
                "(--task-model PACKAGE.MODULE:FACTORY, --task-weights)"
            )
        if context.budget is not None and self._codec(source.spec).lossless:
            raise UsageError("codec mnemonics trains a number of exemplars; give per_class or total, not a target")
        return super().fit(source, context)

    def kept(self, chosen: Chosen, ids: Ids) -> Source:
        """Return the exemplars that these samples have become."""
        source = chosen.source
        assert isinstance(self.config, MnemonicsConfig)
        assert chosen.context.task_model is not None
        trained = _train(self.config, chosen.context.task_model, source, ids, chosen.context)
        labels, task = (None if own is None else own[ids] for own in (source.labels, source.task))
        return _Trained(replace(source.spec, samples=len(ids)), trained, labels, task)


def _train(config: MnemonicsConfig, network: nn.Module, source: Source, ids: Ids, context: FitContext) -> Array:
    """Return what exemplars become of samples (len(ids), *shape), in the source's dtype and range."""
    if source.labels is None:
        raise UsageError("codec mnemonics trains exemplars for their classes, and there are no labels")
    spec, device, every = source.spec, context.device, torch.from_numpy(source.labels)
    exemplars = as_tensor(source.read(ids)).float()
    units = _Units.of(spec, exemplars, context)
    model, exemplars = _Scaled(network, units).to(device), units.scaled(exemplars).to(device)
    low, high = (units.scaled(value).to(device) for value in (units.low, units.high))
    _check_scores(model, exemplars[:1], int(every.max()))
    labels, batches = every[ids].to(device), -(-spec.samples // config.batch_size)
    total = min(config.epochs * batches, config.outer_steps or config.epochs * batches)
    rng, order = np.random.default_rng(context.seed), np.empty(0, np.int64)
    with context.progress.task("exemplars", total, "steps") as bar:
        for step in range(total):
            epoch, place = divmod(step, batches)
            order = order if place else rng.permutation(spec.samples)
            rows = np.sort(order[place * config.batch_size : (place + 1) * config.batch_size])
            x = units.scaled(as_tensor(source.read(rows)).float()).to(device)
            gradient, loss = meta_gradient(
                model, exemplars, labels, x, every[rows].to(device), steps=config.steps, rate=config.inner_rate
            )
            rate = config.rate * 0.5 ** (epoch // config.halve)
            exemplars = torch.clamp(exemplars - rate * gradient, low, high)
            bar.advance(1, loss=loss)
    values, dtype = units.raw(exemplars.cpu()).numpy(), numpy_dtype(spec.dtype)
    return (np.rint(values) if dtype.kind in "ui" else values).astype(dtype)


def _check_scores(model: nn.Module, x: Tensor, largest: int) -> None:
    with torch.inference_mode():
        shape = tuple(model(x).shape)
    if len(shape) != 2 or shape[1] <= largest:
        raise UsageError(
            f"the network maps a sample to {shape}; expected scores (1, C) of at least {largest + 1} classes, as a "
            "label is its score's place"
        )


@dataclass(frozen=True)
class _Units:
    """Mean and deviation of each channel, and its least and largest value, shaped to be broadcast over a sample."""

    mean: Tensor
    spread: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, spec: SourceSpec, samples: Tensor, context: FitContext) -> _Units:
        shape = [1] * len(spec.shape)
        if spec.channel_axis is not None:
            shape[spec.channel_axis] = spec.shape[spec.channel_axis]
        axes = [axis for axis in range(samples.ndim) if axis == 0 or axis - 1 != spec.channel_axis]
        spread = samples.std(axes, correction=0).reshape(shape)
        low, high = (
            torch.from_numpy(value.astype(np.float32)).reshape(shape)
            for value in (context.stats.minimum, context.stats.maximum)
        )
        if spec.dtype == "uint8":
            low, high = torch.zeros_like(low), torch.full_like(high, 255)
        return cls(samples.mean(axes).reshape(shape), torch.where(spread > 0, spread, 1.0), low, high)

    def scaled(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.spread

    def raw(self, scaled: Tensor) -> Tensor:
        return torch.clamp(scaled * self.spread + self.mean, self.low, self.high)


class _Scaled(nn.Module):
    """A network of samples in those units."""

    mean: Tensor
    spread: Tensor

    def __init__(self, network: nn.Module, units: _Units) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", units.mean)
        self.register_buffer("spread", units.spread)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.network(x * self.spread + self.mean))
