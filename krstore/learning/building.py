"""Builds what a run is from defaults, a preset, a TOML file and single settings, in this order."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from krstore.errors import ConfigError, UnknownNameError, UsageError
from krstore.learning.config import NO_EXEMPLARS, Adjusting, Finetuning, MemoryConfig, Options, RunConfig, Training
from krstore.learning.learners import get_learner
from krstore.registry import get_sample_codec

__all__ = ["PRESETS", "as_text", "build_run_config", "dotted", "merged", "preset_values"]

PRESETS = ("fast", "paper", "small")
RATES = {"ratio", "budget"}
RATE_NAMES = {"budget", *(f"memory.{rate}" for rate in RATES)}
COUNTS = {"per_class", "total"}
SELECTION = {"exemplars", *COUNTS}
TABLES: dict[str, type[Options]] = {
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
        file: a TOML file with the same names. A ratio or budget of the settings stands in the place of any of its.

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
    _check_names(values, RunConfig, method=method)
    try:
        return msgspec.convert({**values, "method": method}, RunConfig, strict=False)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at ")
        raise ConfigError(f"{place.strip('`$.') or 'the run'}: {what}") from None


def _check_names(values: Mapping[str, Any], kind: type[Options], place: str = "", method: str | None = None) -> None:
    """Refuse settings that there are not, with the nearest one of the same table, or one of that name elsewhere."""
    known = [f"{place}{field.name}" for field in msgspec.structs.fields(kind)]
    for name, value in values.items():
        if f"{place}{name}" not in known:
            tables: dict[str, type[msgspec.Struct]] = {}
            if method is not None:
                tables = {**TABLES, "options": get_learner(method).Config}
            elsewhere = [f"{table}.{name}" for table, its in tables.items() if name in its.__struct_fields__]
            hint = f"There is {' and '.join(elsewhere)}." if elsewhere else ""
            raise UnknownNameError("setting of a run", f"{place}{name}", known, hint)
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
        if not Path(file).is_file():
            raise UsageError(f"{file} is not a file; expected a TOML file")
        try:
            _overlay(values, tomllib.loads(Path(file).read_text()))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{file} cannot be read as TOML: {error}") from error
    if any(settings.get(name) is not None for name in RATE_NAMES):
        values.pop("budget", None)
        if isinstance(values.get("memory"), dict):
            values["memory"] = {name: value for name, value in values["memory"].items() if name not in RATES}
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
