"""Options of codecs and learners: typed, validated, JSON; from defaults, then a preset, then single settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from krstore.errors import ConfigError, UnknownNameError

__all__ = ["CodecConfig", "build_config", "checked_options", "describe_options"]


class CodecConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all codecs' options; subclasses add fields with ``Annotated[..., msgspec.Meta(...)]`` ranges."""


ConfigT = TypeVar("ConfigT", bound=msgspec.Struct)


def build_config(
    owner: str,
    config_type: type[ConfigT],
    presets: Mapping[str, Mapping[str, Any]],
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> ConfigT:
    """Build a config from its defaults, a preset and single settings (values may be strings, as from a shell).

    Raises:
        UnknownNameError: no such preset or option.
        ConfigError: a value of the wrong type or out of range; names option, value and what is expected.
    """
    if preset is not None and preset not in presets:
        raise UnknownNameError(f"preset of codec {owner}", preset, presets)
    values = dict(presets[preset]) if preset is not None else {}
    checked_options(f"codec {owner}", config_type, settings or {})
    return msgspec.convert({**values, **(settings or {})}, config_type, strict=False)


def checked_options(owner: str, config_type: type[ConfigT], settings: Mapping[str, Any]) -> ConfigT:
    """Build options from their defaults and single settings (values may be strings, as from a shell).

    Args:
        owner: whose they are, for messages: ``"codec pq"``.

    Raises:
        UnknownNameError: no such option.
        ConfigError: a value of the wrong type or out of range; names option, value and what is expected.
    """
    known = {f.name for f in msgspec.structs.fields(config_type)}
    for key, value in settings.items():
        if key not in known:
            raise UnknownNameError(f"option of {owner}", key, known)
        try:
            msgspec.convert({key: value}, config_type, strict=False)
        except msgspec.ValidationError as error:
            what = str(error).partition(" - at ")[0]
            raise ConfigError(f"option {key}={value} of {owner}: {what}") from None
    return msgspec.convert(settings, config_type, strict=False)


def describe_options(config_type: type[msgspec.Struct]) -> list[dict[str, Any]]:
    """Return each option's name, type, default and description."""
    schema = msgspec.json.schema(config_type)
    properties = schema["$defs"][config_type.__name__].get("properties", {})
    defaults = config_type()
    return [
        {
            "name": field.name,
            "type": _type_name(properties[field.encode_name]),
            "default": getattr(defaults, field.name),
            "description": properties[field.encode_name].get("description", ""),
        }
        for field in msgspec.structs.fields(config_type)
    ]


def _type_name(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type_name(option) for option in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    name = str(schema.get("type", "any"))
    low, high = (schema.get(bound, schema.get(f"exclusive{bound.capitalize()}")) for bound in ("minimum", "maximum"))
    if low is None and high is None:
        return name
    return f"{name} {'' if low is None else low}..{'' if high is None else high}"
