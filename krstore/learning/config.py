"""What a run is: typed, validated options."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from krstore.registry import get_sample_codec

__all__ = ["NO_EXEMPLARS", "Adjusting", "Finetuning", "MemoryConfig", "Options", "RunConfig", "Training"]

NO_EXEMPLARS = "none"

Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Named values of which each has a type."""


class Training(Options, frozen=True, kw_only=True):
    """SGD or Adam over some epochs.

    Attributes:
        milestones: epochs at whose end the rate is multiplied by `gamma`, where the schedule is ``"milestones"``; a
            ``"cosine"`` falls to 0.
    """

    epochs: Annotated[int, msgspec.Meta(ge=0)] = 160
    batch_size: Positive = 128
    optimiser: Literal["sgd", "adam"] = "sgd"
    learning_rate: NotNegative = 0.1
    schedule: Literal["milestones", "cosine"] = "milestones"
    milestones: tuple[int, ...] = (80, 120)
    gamma: NotNegative = 0.1
    momentum: NotNegative = 0.9
    nesterov: bool = False
    weight_decay: NotNegative = 5e-4


class Finetuning(Training, frozen=True, kw_only=True):
    """SGD or Adam over some epochs; the defaults are the mnemonics paper's."""

    epochs: Annotated[int, msgspec.Meta(ge=0)] = 50
    learning_rate: NotNegative = 0.01
    milestones: tuple[int, ...] = ()


class Adjusting(Options, frozen=True, kw_only=True):
    """How old exemplars are trained against each other (mnemonics paper, Eq. 10); see `krstore.bilevel`.

    Attributes:
        epochs: times that each half is trained against the other one.
        steps, inner_rate: of the temporary network, alpha_2.
        rate: of the exemplars, beta_2, in standard deviations; halved after every `halve` epochs.
    """

    epochs: Positive = 50
    steps: Positive = 5
    inner_rate: NotNegative = 0.01
    rate: NotNegative = 0.01
    halve: Positive = 10


class MemoryConfig(Options, frozen=True, kw_only=True):
    """How a learner with a memory keeps what it has seen.

    Attributes:
        codec, preset, settings: of the stores; default transform, and of exemplars what keeps them losslessly.
        ratio: bytes of the samples over those of the memory; or
        budget: bytes of the memory when all classes have come, in proportion before; without either, what the codec
            gives. Exemplars whose number is not said fill it at every step: old classes make room for new ones.
        exemplars: keep some samples of each class, chosen by a codec of exemplars (``"herding"``, ``"random"``, ...);
            default random where any of the next two, or a budget for a lossless codec, asks for some, and else all.
            ``"none"``: no memory, of a method that can do without, where a preset has one.
        exemplar_settings: options of that codec.
        per_class: exemplars of each class; default 20, or as many as ratio or budget allow.
        total: exemplars in all, equally many of each class seen: old classes make room for new ones.
        adjust: train old exemplars anew when a task has come, one half of each class against the other; `None` not.
        update: ``"append"`` a store a task, with the first one's decoder where the codec can; ``"merge"`` all into one
            store, a self-taught update (single KRNet); ``"double"`` does so with all but the first (double KRNet);
            ``"auto"`` does so where the codec says that it refits (krnet, autoencoder), and appends otherwise.
        task_model: codecs that look at what a task sees get the network as it is then (krnet's Eq. 3).
        through_codec: new samples pass through the codec too before they are learnt from, so that old and new ones
            are alike; default where the codec is lossy. Beside exemplars, they do so at the exemplars' rate.
    """

    codec: str | None = None
    preset: str | None = None
    settings: dict[str, Any] = {}
    ratio: Annotated[float, msgspec.Meta(gt=0)] | None = None
    budget: Positive | None = None
    exemplars: str | None = None
    exemplar_settings: dict[str, Any] = {}
    per_class: Positive | None = None
    total: Positive | None = None
    adjust: Adjusting | None = None
    update: Literal["auto", "append", "merge", "double"] = "auto"
    task_model: bool = True
    through_codec: bool | None = None

    @property
    def counted(self) -> bool:
        """Whether so many exemplars are kept as they are, so that there is nothing to fit to a budget."""
        exact = self.codec is None or get_sample_codec(self.codec).lossless
        return exact and (self.per_class is not None or self.total is not None)

    @property
    def asked_for(self) -> bool:
        """Whether anything says that there is to be a memory, or how large."""
        said = (self.codec, self.ratio, self.budget, self.exemplars, self.per_class, self.total)
        return self.exemplars != NO_EXEMPLARS and any(value is not None for value in said)


class RunConfig(Options, frozen=True, kw_only=True):
    """One run of one method.

    Attributes:
        method: a learner's name, or ``"package.module:Class"``.
        options: the learner's own.
        data, test: see `krstore.learning.data.open_dataset`.
        order, base, steps, per_class, validation: see `krstore.learning.scenario.Scenario`.
        model, model_args, weights: see `krstore.learning.network.build_network`; a network whose weights have a
            classifier of as many classes as the first task is not trained on it.
        frozen_until: a module of the network's body; from the second task on it, and all that was registered before it,
            stays as it is and in eval mode: the KRNet paper's F1, where images are learnt from and replayed.
        features: learn from the features after `frozen_until` from the end of the first task on, and keep those in the
            memory instead of samples: the KRNet paper's F1 and F2. Of networks of `krstore.backbones`, or others whose
            body has `split`.
        resize: see `krstore.learning.data.open_dataset`.
        mean, std: of stored images, after uint8 has been divided by 255.
        flip, crop: see `krstore.learning.streams.Augmentation`; only images are cropped.
        base_training, training: of the first task, and of those that follow.
        finetuning: from the second task on, train once more, on what the memory holds alone: exemplars are balanced
            where a task is not (mnemonics paper, Sec. 4.3); `None` for not.
        transfer: from the second task on, leave the convolutions as the first one made them, and train a factor for
            each of their kernels instead, and all else (weight transfer, as in the mnemonics paper).
        memory: of learners that have one.
        budget: bytes of all that is kept between tasks: network, what the method keeps, and the memory, which gets what
            those will leave it when all tasks have come. `memory.budget` is of the memory alone.
        alone: train, from the second task on, a network of random weights beside, by cross-entropy on what the learner
            sees: forward transfer is measured against it. Takes as long again.
        alone_training: of that network, but for its epochs, which are the method's; default as `training`, but where a
            preset trains the method in a way of its own (GFR by Adam), as it trains others.
        probe: after each step, fit a linear classifier of the embeddings to training samples of all classes seen, which
            the learner does not have: backward and forward transfer of representations (DER, Table 5) are measured so.
        analyse: watch gradients, weights and feature maps of the network's blocks (see `krstore.learning.blocks`);
            ``krstore report`` draws them.
        precision: arithmetic of training; ``"auto"``: bfloat16 on CUDA, float32 elsewhere.
    """

    method: str
    data: str
    test: str | None = None
    options: dict[str, Any] = {}
    order: str = "lucir"
    base: Annotated[int, msgspec.Meta(ge=0)] = 50
    steps: Positive = 10
    per_class: Positive | None = None
    validation: Annotated[int, msgspec.Meta(ge=0)] = 0
    model: str = "krstore.backbones:resnet32"
    model_args: dict[str, Any] = {}
    weights: str | None = None
    frozen_until: str | None = None
    features: bool = False
    resize: Positive | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    flip: bool = True
    crop: Annotated[int, msgspec.Meta(ge=0)] = 4
    base_training: Training = Training()
    training: Training = Training()
    finetuning: Finetuning | None = None
    transfer: bool = False
    memory: MemoryConfig = MemoryConfig()
    budget: Positive | None = None
    alone: bool = False
    alone_training: Training | None = None
    probe: bool = False
    analyse: bool = False
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 0
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
