"""Every error krstore raises on purpose.

    KrstoreError
    ├── UsageError              the request itself is wrong (an unknown name, an invalid option)
    │   ├── UnknownNameError    a codec, preset, layer or key nobody knows; lists the known ones
    │   ├── ConfigError         an option of a codec that its type or range refuses
    │   ├── DecoderMismatchError samples that a given decoder was not made for
    │   └── WrongKindError      a store of samples where one of a network's states is needed, or the reverse
    ├── ArchiveError            a source cannot be read as an archive, or its values cannot be encoded
    ├── OutputError             the target exists, or cannot be written
    ├── MissingExtraError       an optional dependency is needed and not installed
    ├── TargetUnreachableError  no setting of the codec honours the requested ratio, size or error
    └── CorruptStoreError       a `.krs` file is damaged, truncated, hostile, or too new

Every message says what was got, what was expected, and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ArchiveError",
    "ConfigError",
    "CorruptStoreError",
    "DecoderMismatchError",
    "KrstoreError",
    "MissingExtraError",
    "OutputError",
    "TargetUnreachableError",
    "UnknownNameError",
    "UsageError",
    "WrongKindError",
]


class KrstoreError(Exception):
    """Base of all errors that krstore raises on purpose."""


class UsageError(KrstoreError):
    """The request itself is wrong: contradictory or missing arguments."""


class UnknownNameError(UsageError):
    """A name nobody knows.

    The message lists the known names and suggests the nearest.
    """

    def __init__(self, what: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.known = sorted(known)
        close = difflib.get_close_matches(name, self.known, n=1)
        suggestion = f" Did you mean {close[0]!r}?" if close else ""
        listing = ", ".join(self.known) if self.known else "none"
        super().__init__(f"unknown {what} {name!r}.{suggestion} Known: {listing}.{' ' + hint if hint else ''}")


class ConfigError(UsageError):
    """A codec option that its type or range refuses."""


class DecoderMismatchError(UsageError):
    """Samples that a given decoder was not made for."""


class WrongKindError(UsageError):
    """A store of samples where one of a network's states is needed, or the reverse."""


class ArchiveError(KrstoreError):
    """A source cannot be read as an archive, or holds values that cannot be encoded."""


class OutputError(KrstoreError):
    """The target exists already, or cannot be written."""


class MissingExtraError(KrstoreError):
    """An optional dependency is needed and not installed."""

    def __init__(self, package: str, extra: str, why: str) -> None:
        super().__init__(f"{why} needs the package {package!r}: pip install 'krstore[{extra}]'")


class TargetUnreachableError(KrstoreError):
    """No setting of the codec honours the requested ratio, size or error; says what was reached."""


class CorruptStoreError(KrstoreError):
    """A `.krs` file is damaged, truncated, hostile, or written by a newer krstore."""
