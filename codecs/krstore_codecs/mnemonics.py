"""mnemonics: exemplars that are trained, so that a network trained on them does well on the class's samples.

Liu et al., "Mnemonics training: multi-class incremental learning without forgetting", CVPR 2020, Sec. 4.3, Eqs. 7 to 9:
exemplars begin as a random subset, and follow the gradient of the loss that a temporary network, trained on them for a
few steps, has on all samples (`krstore.bilevel`). The authors' released code does otherwise. Gradients of a mean loss
are small, and at the paper's rate exemplars move by little: choose one on a validation split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, ClassVar

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from krstore.bilevel import Units, as_stored, train_exemplars
from krstore.codec import FitContext
from krstore.dtypes import numpy_dtype
from krstore.errors import UsageError
from krstore.source import Array, Held, Ids, Source
from krstore.tensors import as_tensor
from krstore_codecs._exemplars import Chosen, ExemplarsConfig
from krstore_codecs.herding import Random

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


class Mnemonics(Random):
    """Random exemplars, trained so that a network that learns from them knows the class."""

    name = "mnemonics"
    scored = True
    Config: ClassVar = MnemonicsConfig
    presets: ClassVar = {"fast": {"epochs": 2, "outer_steps": 20, "steps": 5, "halve": 1}}

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
        return Held(replace(source.spec, samples=len(ids)), trained, labels, task)


def _train(config: MnemonicsConfig, network: nn.Module, source: Source, ids: Ids, context: FitContext) -> Array:
    """Return what exemplars become of samples (len(ids), *shape), in their dtype, and in the range that they had."""
    if source.labels is None:
        raise UsageError("codec mnemonics trains exemplars for their classes, and there are no labels")
    if source.labels.min() < 0:
        raise UsageError(f"codec mnemonics: label {source.labels.min()} is the place of no score")
    exemplars, labels = as_tensor(source.read(ids)).float(), torch.from_numpy(source.labels)
    _check_scores(network, exemplars[:1].to(context.device), int(labels.max()))
    trained = train_exemplars(
        network, exemplars.to(context.device), labels[ids].to(context.device),
        _batches(config, source, labels, context), Units.of(source.spec, exemplars), steps=config.steps,
        inner_rate=config.inner_rate,
    )  # fmt: skip
    return as_stored(trained, numpy_dtype(source.spec.dtype))


def _batches(
    config: MnemonicsConfig, source: Source, labels: Tensor, context: FitContext
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Yield samples, their labels and the outer rate, epoch by epoch."""
    count = -(-source.spec.samples // config.batch_size)
    total = min(config.epochs * count, config.outer_steps or config.epochs * count)
    rng, order = np.random.default_rng(context.seed), np.empty(0, np.int64)
    with context.progress.task("exemplars", total, "steps") as bar:
        for step in range(total):
            epoch, place = divmod(step, count)
            order = order if place else rng.permutation(source.spec.samples)
            rows = np.sort(order[place * config.batch_size : (place + 1) * config.batch_size])
            yield as_tensor(source.read(rows)).float(), labels[rows], config.rate * 0.5 ** (epoch // config.halve)
            bar.advance(1)


def _check_scores(network: nn.Module, x: Tensor, largest: int) -> None:
    with torch.inference_mode():
        shape = tuple(network(x).shape)
    if len(shape) != 2 or shape[1] <= largest:
        raise UsageError(
            f"the network maps a sample to {shape}; expected scores (1, C) of at least {largest + 1} classes, as a "
            "label is its score's place"
        )
