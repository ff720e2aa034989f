"""mnemonics: exemplars that are trained, so that a network trained on them does well on the class's samples.

Liu et al., "Mnemonics training: multi-class incremental learning without forgetting", CVPR 2020, Sec. 4.3, Eqs. 7 to 9:
exemplars begin as a random subset, and follow the gradient of the loss that a temporary network, trained on them for a
few steps, has on all samples (`krstore.bilevel`). Gradients of a mean loss are small, and at the paper's rate exemplars
move by little: choose one on a validation split.

mnemonics_released does what the authors' released code does instead: exemplars begin as herding chooses them, and their
mean embeddings, as prototypes, are trained to classify all samples by cosine. That code also trains them against
exemplars of earlier tasks, which no codec sees.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, ClassVar

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krstore.bilevel import Units, as_stored, train_exemplars
from krstore.codec import FitContext
from krstore.dtypes import numpy_dtype
from krstore.errors import UsageError
from krstore.source import Held, Ids, Source
from krstore.tensors import as_tensor
from krstore_codecs._exemplars import Chosen, Exemplars, ExemplarsConfig
from krstore_codecs.herding import Herding, Random

__all__ = ["Mnemonics", "MnemonicsConfig", "MnemonicsReleased", "MnemonicsReleasedConfig"]

_Batch = tuple[int, Tensor, Tensor]
"""The epoch, samples as they are stored, and their labels."""


class _TrainedConfig(ExemplarsConfig, frozen=True, kw_only=True):
    epochs: Annotated[int, msgspec.Meta(ge=0, description="times that all samples are seen (outer loop)")] = 50
    batch_size: Annotated[int, msgspec.Meta(ge=1, description="samples that an outer step's loss is of")] = 128
    rate: Annotated[float, msgspec.Meta(gt=0, description="beta_1, of the exemplars, in standard deviations")] = 0.01
    outer_steps: Annotated[
        Annotated[int, msgspec.Meta(ge=1)] | None, msgspec.Meta(description="stop after so many outer steps; none: no")
    ] = None


class MnemonicsConfig(_TrainedConfig, frozen=True, kw_only=True):
    """Options of mnemonics; the defaults are the paper's, but that it does not say how many steps a few are."""

    steps: Annotated[int, msgspec.Meta(ge=1, description="of the temporary network (inner loop, Eq. 8)")] = 5
    inner_rate: Annotated[float, msgspec.Meta(gt=0, description="alpha_2, of those steps")] = 0.01
    halve: Annotated[int, msgspec.Meta(ge=1, description="epochs after each of which the rate is halved")] = 10


class MnemonicsReleasedConfig(_TrainedConfig, frozen=True, kw_only=True):
    """Options of mnemonics_released; the defaults are the released code's."""

    epochs: Annotated[int, msgspec.Meta(ge=0, description="times that all samples are seen")] = 1
    rate: Annotated[float, msgspec.Meta(gt=0, description="of the exemplars, in standard deviations")] = 1e-5
    momentum: Annotated[float, msgspec.Meta(ge=0, lt=1, description="of their steps")] = 0.9
    weight_decay: Annotated[float, msgspec.Meta(ge=0, description="of the exemplars themselves")] = 5e-4


class _Trained(Exemplars):
    """Exemplars that are trained for a network."""

    needs: ClassVar[str]

    def fit(self, source: Source, context: FitContext) -> Chosen:
        """Choose exemplars and train them.

        Raises:
            UsageError: there is no network, or it does not tell the classes apart; or as `Exemplars.fit`.
        """
        if context.task_model is None:
            raise UsageError(
                f"codec {self.name} trains exemplars for a network that maps samples to {self.needs}; name it "
                "(--task-model PACKAGE.MODULE:FACTORY, --task-weights)"
            )
        if context.budget is not None and self._codec(source.spec).lossless:
            raise UsageError(f"codec {self.name} trains a number of exemplars; give per_class or total, not a target")
        if source.labels is None:
            raise UsageError(f"codec {self.name} trains exemplars for their classes, and there are no labels")
        return super().fit(source, context)

    def kept(self, chosen: Chosen, ids: Ids) -> Source:
        """Return the exemplars that these samples have become, in their dtype, and in the range that they had."""
        source, network = chosen.source, chosen.context.task_model
        assert source.labels is not None
        assert network is not None
        exemplars = as_tensor(source.read(ids)).float()
        units, device = Units.of(source.spec, exemplars), chosen.context.device
        labels = torch.from_numpy(source.labels)
        trained = self.trained(
            network, exemplars.to(device), labels[ids].to(device), self._batches(source, labels, chosen.context), units
        )
        values = as_stored(trained, numpy_dtype(source.spec.dtype))
        task = None if source.task is None else source.task[ids]
        return Held(replace(source.spec, samples=len(ids)), values, source.labels[ids], task)

    @abstractmethod
    def trained(
        self, network: nn.Module, exemplars: Tensor, labels: Tensor, batches: Iterator[_Batch], units: Units
    ) -> Tensor:
        """Return what exemplars (M, *shape), as they are stored, of these labels (M,), become."""

    def _batches(self, source: Source, labels: Tensor, context: FitContext) -> Iterator[_Batch]:
        config = self.config
        assert isinstance(config, _TrainedConfig)
        count = -(-source.spec.samples // config.batch_size)
        total = min(config.epochs * count, config.outer_steps or config.epochs * count)
        rng, order = np.random.default_rng(context.seed), np.empty(0, np.int64)
        with context.progress.task("exemplars", total, "steps") as bar:
            for step in range(total):
                epoch, place = divmod(step, count)
                order = order if place else rng.permutation(source.spec.samples)
                rows = np.sort(order[place * config.batch_size : (place + 1) * config.batch_size])
                yield epoch, as_tensor(source.read(rows)).float(), labels[rows]
                bar.advance(1)


class Mnemonics(_Trained, Random):
    """Random exemplars, trained so that a network that learns from them knows the class."""

    name = "mnemonics"
    scored = True
    needs = "scores of the classes"
    Config: ClassVar = MnemonicsConfig
    presets: ClassVar = {"fast": {"epochs": 2, "outer_steps": 20, "steps": 5, "halve": 1}}

    def trained(
        self, network: nn.Module, exemplars: Tensor, labels: Tensor, batches: Iterator[_Batch], units: Units
    ) -> Tensor:
        """Follow the meta-gradient (Eqs. 8 and 9)."""
        config = self.config
        assert isinstance(config, MnemonicsConfig)
        _check_scores(network, exemplars[:1], labels)
        rated = ((x, y, config.rate * 0.5 ** (epoch // config.halve)) for epoch, x, y in batches)
        return train_exemplars(
            network, exemplars, labels, rated, units, steps=config.steps, inner_rate=config.inner_rate
        )


class MnemonicsReleased(_Trained, Herding):
    """Herded exemplars, trained so that their mean embeddings classify the samples: mnemonics' released code."""

    name = "mnemonics_released"
    needs = "embeddings"
    Config: ClassVar = MnemonicsReleasedConfig

    def trained(
        self, network: nn.Module, exemplars: Tensor, labels: Tensor, batches: Iterator[_Batch], units: Units
    ) -> Tensor:
        """Descend the cross-entropy of the samples' cosines with the classes' mean embeddings."""
        config = self.config
        assert isinstance(config, MnemonicsReleasedConfig)
        units = units.to(exemplars.device)
        classes, places = torch.unique(labels, return_inverse=True)
        members = F.one_hot(places, len(classes)).T.float()
        pixels = units.scaled(exemplars).requires_grad_(True)
        optimiser = torch.optim.SGD([pixels], config.rate, momentum=config.momentum, weight_decay=config.weight_decay)
        for _, x, y in batches:
            with torch.no_grad():
                wanted = F.normalize(network(x.to(exemplars.device)).flatten(1))
            means = members @ network(units.raw(pixels)).flatten(1)
            loss = F.cross_entropy(wanted @ F.normalize(means).T, torch.searchsorted(classes, y.to(classes.device)))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        return units.raw(pixels.detach())


def _check_scores(network: nn.Module, example: Tensor, labels: Tensor) -> None:
    if labels.min() < 0:
        raise UsageError(f"codec mnemonics: label {labels.min()} is the place of no score")
    with torch.inference_mode():
        shape = tuple(network(example).shape)
    if len(shape) != 2 or shape[1] <= labels.max():
        raise UsageError(
            f"the network maps a sample to {shape}; expected scores (1, C) of at least {labels.max() + 1} classes, as "
            "a label is its score's place"
        )
