"""Which codecs exist: the entry points of the group ``krstore.codecs``, krstore's own among them."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from krstore.codec import AnyCodec, Codec, SnapshotCodec
from krstore.errors import KrstoreError, UnknownNameError, UsageError

__all__ = ["GROUP", "codec_names", "get_codec", "get_sample_codec", "get_snapshot_codec"]

GROUP = "krstore.codecs"


def codec_names() -> list[str]:
    """Return the names of all registered codecs, without importing them."""
    return sorted(_entries())


def get_codec(name: str) -> type[AnyCodec[Any, Any]]:
    """Import and return a codec class by name, a `Codec` or a `SnapshotCodec`.

    Raises:
        UnknownNameError: no codec of that name is registered; lists those that are.
        KrstoreError: two packages register the name, or what is registered is no codec of that name.
    """
    entries = _entries()
    if name not in entries:
        raise UnknownNameError("codec", name, entries, hint="A package adds one under the entry-point group "
                               f"{GROUP!r}.")  # fmt: skip
    found = entries[name]
    if len(found) > 1:
        raise KrstoreError(f"codec {name!r} is registered more than once: {', '.join(e.value for e in found)}")
    codec = found[0].load()
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
    entries: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        known = entries.setdefault(entry.name, [])
        if all(entry.value != other.value for other in known):  # one distribution seen twice on sys.path is one
            known.append(entry)
    return entries
