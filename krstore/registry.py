"""Which codecs exist: the entry points of the group ``krstore.codecs``, krstore's own among them."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

from krstore.codec import AnyCodec, Codec, SnapshotCodec
from krstore.errors import KrstoreError, UnknownNameError, UsageError
from krstore.plugins import loaded, registered

__all__ = ["GROUP", "codec_names", "get_codec", "get_sample_codec", "get_snapshot_codec"]

GROUP = "krstore.codecs"


def codec_names() -> list[str]:
    """Return the names of all registered codecs, without importing them."""
    return sorted(_entries())


def get_codec(name: str) -> type[AnyCodec[Any, Any]]:
    """Import and return a codec class by name, a `Codec` or a `SnapshotCodec`.

    Raises:
        UnknownNameError: no codec of that name is registered; lists those that are.
        KrstoreError: two packages register the name, or what is registered cannot be imported, or is no codec of that
            name.
    """
    entries = _entries()
    if name not in entries:
        raise UnknownNameError("codec", name, entries, hint="A package adds one under the entry-point group "
                               f"{GROUP!r}.")  # fmt: skip
    found = entries[name]
    codec = loaded("codec", name, found)
    if not (isinstance(codec, type) and issubclass(codec, Codec | SnapshotCodec) and codec.name == name):
        raise KrstoreError(f"entry point {name!r} = {found[0].value!r} is no codec of that name")
    return codec


def get_sample_codec(name: str) -> type[Codec[Any, Any]]:
    """Return a codec of samples by name.

    Raises:
        UsageError: it is a codec of a network's states; and as `get_codec`.
    """
    codec = get_codec(name)
    if not issubclass(codec, Codec):
        raise UsageError(f"codec {name} encodes a network's states (krstore.encode_snapshots), not samples")
    return codec


def get_snapshot_codec(name: str) -> type[SnapshotCodec[Any, Any]]:
    """Return a codec of a network's states by name.

    Raises:
        UsageError: it is a codec of samples; and as `get_codec`.
    """
    codec = get_codec(name)
    if not issubclass(codec, SnapshotCodec):
        raise UsageError(f"codec {name} encodes samples (krstore.encode), not a network's states")
    return codec


def _entries() -> dict[str, list[EntryPoint]]:
    return registered(GROUP)
