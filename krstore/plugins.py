"""Code of others: what packages register as entry points, and what ``package.module:name`` names."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from krstore.errors import KrstoreError, UnknownNameError, UsageError

__all__ = ["current_folder", "imported", "loaded", "package_of", "registered"]


def registered(group: str) -> dict[str, list[EntryPoint]]:
    """Return the entry points of a group by name, without importing what they name; more than one is a mistake."""
    entries: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=group):
        known = entries.setdefault(entry.name, [])
        if all(entry.value != other.value for other in known):  # one distribution seen twice on sys.path is one
            known.append(entry)
    return entries


def loaded(what: str, name: str, entries: Sequence[EntryPoint]) -> Any:
    """Import what is registered under a name.

    Args:
        what: it is, for messages: ``"codec"``.
        name: the name.
        entries: all that are registered under it.

    Raises:
        KrstoreError: two packages register the name, or it cannot be imported.
    """
    if len(entries) > 1:
        raise KrstoreError(f"{what} {name!r} is registered more than once: {', '.join(e.value for e in entries)}")
    try:
        return entries[0].load()
    except KrstoreError:
        raise
    except Exception as error:  # another's code runs here, and may raise anything
        said = f"{type(error).__name__}: {error}"
        raise KrstoreError(f"entry point {name!r} = {entries[0].value!r} cannot be imported: {said}") from error


def package_of(group: str, name: str) -> str | None:
    """Return the distribution that registers a name; `None` where none does."""
    return next((entry.dist.name for entry in entry_points(group=group, name=name) if entry.dist is not None), None)


def imported(spec: str, what: str, example: str) -> Any:
    """Import what ``"package.module:name"`` names; modules of the current folder are found too, after installed ones.

    Args:
        spec: the module and the name in it.
        what: it is, for messages: ``"factory"``.
        example: of a spec, for messages.

    Raises:
        UsageError: the spec is malformed, or the module cannot be imported.
        UnknownNameError: the module has no such name.
    """
    path, colon, name = spec.partition(":")
    if not (path and colon and name):
        raise UsageError(f"{spec!r} names no {what}; expected package.module:{what}, as {example}")
    with current_folder():
        try:
            home = importlib.import_module(path)
        except Exception as error:  # another's code runs here, and may raise anything
            raise UsageError(f"{path!r} of {spec!r} cannot be imported: {error}") from error
    found = getattr(home, name, None)
    if found is None:
        public = getattr(home, "__all__", [n for n in vars(home) if not n.startswith("_")])
        raise UnknownNameError(f"{what} of {path}", name, [n for n in public if callable(getattr(home, n, None))])
    return found


@contextlib.contextmanager
def current_folder() -> Iterator[None]:
    """Search the current folder last: its modules are found, and shadow nothing."""
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        yield
    finally:
        del sys.path[len(sys.path) - 1 - sys.path[::-1].index(here)]
