"""What a run is: typed, validated options, from defaults, a preset, a TOML file and single settings, in this order."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from krstore.errors import ConfigError, UnknownNameError, UsageError
from krstore.registry import get_sample_codec

__all__ = [
    "NO_EXEMPLARS",
    "PRESETS",
    "Adjusting",
    "Finetuning",
    "MemoryConfig",
    "RunConfig",
    "Training",
    "as_text",
    "build_run_config",
    "dotted",
    "preset_values",
]

PRESETS = ("fast", "paper", "small")
RATES = {"ratio", "budget"}
COUNTS = {"per_class", "total"}
SELECTION = {"exemplars", *COUNTS}
NO_EXEMPLARS = "none"

Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]


class _Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Training(_Options, frozen=True, kw_only=True):
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


class Adjusting(_Options, frozen=True, kw_only=True):
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


class MemoryConfig(_Options, frozen=True, kw_only=True):
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


class RunConfig(_Options, frozen=True, kw_only=True):
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


TABLES: dict[str, type[_Options]] = {
    "base_training": Training, "training": Training, "alone_training": Training, "finetuning": Finetuning,
    "memory": MemoryConfig, "adjust": Adjusting,
}  # fmt: skip


def build_run_config(
    method: str,
    settings: Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    file: str | Path | None = None,
) -> RunConfig:
    """Build a run's config.

    Args:
        method: the learner, by its name, or a class of one's own as ``"package.module:Class"`` (see
            `krstore.learning.get_learner`).
        settings: single values, typed or as text, those of a table by a dotted name (``{"training.epochs": 5}``);
            `None` is no value.
        preset: one of `PRESETS`: hyper-parameters of all methods, and what single methods have of their own. What it
            says of the memory holds for its codec; naming another leaves that out, as a ratio or a budget does with the
            preset's; where exemplars are ``"none"``, there is no memory, and nothing of the preset's to fine-tune on.
        file: a TOML file with the same names.

    Raises:
        UnknownNameError: no such preset or setting; the learner's own options are checked when it is made.
        ConfigError: a value of the wrong type or out of range.
        UsageError: the file cannot be read as TOML.
    """
    own = _given(file, settings or {})
    values: dict[str, Any] = {}
    if preset is not None:
        values = preset_values(preset, method)
        sized = {"budget": own["budget"]} if "budget" in own else {}
        said = own["memory"] if isinstance(own.get("memory"), Mapping) else {}
        values["memory"] = _left(values.get("memory", {}), {**said, **sized})
        if said.get("exemplars") == NO_EXEMPLARS:
            values = {name: value for name, value in values.items() if name not in ("memory", "finetuning")}
    _overlay(values, own)
    _check_names(values, RunConfig)
    try:
        return msgspec.convert({**values, "method": method}, RunConfig, strict=False)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at ")
        raise ConfigError(f"{place.strip('`$.') or 'the run'}: {what}") from None


def _check_names(values: Mapping[str, Any], kind: type[_Options], place: str = "") -> None:
    """Refuse settings that there are not, with the nearest one of the same table."""
    known = [f"{place}{field.name}" for field in msgspec.structs.fields(kind)]
    for name, value in values.items():
        if f"{place}{name}" not in known:
            raise UnknownNameError("setting of a run", f"{place}{name}", known)
        if name in TABLES and isinstance(value, Mapping):
            _check_names(value, TABLES[name], f"{place}{name}.")


def preset_values(preset: str, method: str) -> dict[str, Any]:
    """Return what a preset says of a method's runs, nested as a TOML file is.

    Raises:
        UnknownNameError: no such preset.
    """
    if preset not in PRESETS:
        raise UnknownNameError("preset", preset, PRESETS)
    values = tomllib.loads((resources.files("krstore.learning") / "presets" / f"{preset}.toml").read_text())
    own = values.pop("methods", {}).get(method, {})
    if "training" in own:
        values["alone_training"] = dict(values["training"])
    _overlay(values, own)
    return values


def dotted(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings under the names that `build_run_config` takes: ``{"training.epochs": 5}``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{inner}": own for inner, own in dotted(value).items()}
        else:
            found[name] = value
    return found


def as_text(value: Any) -> str:
    """Return a setting's value as text, as `build_run_config` takes it from a shell."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _left(preset: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a preset says of the memory, less what stands or falls with what is named instead."""
    if "codec" in preset and (own.get("codec", preset["codec"]) != preset["codec"] or own.keys() & SELECTION):
        return {}  # rate and settings are of the preset's codec
    left_out = {name for names in (RATES, COUNTS) if own.keys() & names for name in names}
    if own.keys() & RATES and ("codec" not in own or get_sample_codec(own["codec"]).lossless):
        left_out |= COUNTS  # as many exemplars as fit
    return {name: value for name, value in preset.items() if name not in left_out}


def _given(file: str | Path | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the file and single settings say."""
    values: dict[str, Any] = {}
    if file is not None:
        try:
            _overlay(values, tomllib.loads(Path(file).read_text()))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{file} cannot be read as TOML: {error}") from error
    for name, value in settings.items():
        if value is not None:
            _overlay(values, _nested(name.split("."), _literal(value) if name.startswith("model_args.") else value))
    return values


def merged(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a run with others over them; in a table name by name, as `build_run_config` takes presets."""
    found: dict[str, Any] = {}
    for part in (values, more):
        _overlay(found, _given(None, part))
    return found


def _overlay(values: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, Mapping) and isinstance(values.get(name), dict):
            _overlay(values[name], value)
        else:
            values[name] = dict(value) if isinstance(value, Mapping) else value


def _literal(value: Any) -> Any:
    """Return what a text says, if it is a number, true, false or null; a factory does not convert its arguments."""
    try:
        return msgspec.json.decode(value) if isinstance(value, str) else value
    except msgspec.DecodeError:
        return value


def _nested(names: list[str], value: Any) -> dict[str, Any]:
    return {names[0]: value if len(names) == 1 else _nested(names[1:], value)}
