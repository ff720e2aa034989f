"""What a codec offers: its kind, options and presets, for people who choose one."""

from __future__ import annotations

import inspect
from typing import Any

from krstore.config import describe_options
from krstore.plugins import package_of
from krstore.registry import GROUP, get_codec

__all__ = ["describe_codec"]


def describe_codec(name: str) -> dict[str, Any]:
    """Return what a registered codec is; imports its code.

    Returns:
        ``name``, ``kind``, ``lossless``, ``package`` (the distribution that registers it), ``summary`` (the first
        line of its docstring), ``doc`` (its docstring and its module's), ``options`` as
        `krstore.config.describe_options` lists them, and ``presets``.

    Raises:
        UnknownNameError: no codec of that name is registered.
    """
    codec = get_codec(name)
    own, module = inspect.getdoc(codec) or "", inspect.getdoc(inspect.getmodule(codec)) or ""
    return {
        "name": name,
        "kind": str(codec.kind),
        "lossless": codec.lossless,
        "package": package_of(GROUP, name),
        "summary": own.partition("\n")[0],
        "doc": "\n\n".join(filter(None, (own, module))),
        "options": describe_options(codec.Config),
        "presets": {preset: dict(values) for preset, values in codec.presets.items()},
    }
