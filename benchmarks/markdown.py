"""What all tables share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["Document", "archive", "footer", "table"]

Document = dict[str, Any]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], text: int = 1) -> str:
    """Return a Markdown table; the first column, or so many of them, are text, the others are numbers."""
    ruler = [*["---"] * text, *["---:"] * (len(head) - text)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ruler, *rows))


def archive(document: Document) -> str:
    """Say what an archive is."""
    facts = document["archive"]
    shape = " x ".join(f"{n:,}" for n in facts["shape"])
    return f"Archive: {shape} {facts['dtype']}, {facts['bytes']:,} bytes."


def footer(document: Document) -> str:
    """Say which machine and packages it was."""
    machine = document["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    threads = f", OMP_NUM_THREADS={machine['threads']}" if machine["threads"] else ""
    processor = machine["processor"] or machine["system"]
    cores = f"{machine['cores']} core{'s' if machine['cores'] != 1 else ''}"
    return f"<sub>{processor}, {cores}{threads}; Python {machine['python']}, {versions}.</sub>"
