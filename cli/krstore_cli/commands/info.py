"""krstore info: what is in a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from krstore_cli import errors, output
from krstore_cli.options import Json, Quiet, Verbose, option
from krstore_cli.show import store_block, store_tables

__all__ = ["EXAMPLE", "info"]

EXAMPLE = "Example: krstore info features.krnet.krs --per-class"


def info(
    stores: Annotated[list[Path], typer.Argument(help="The .krs files.", show_default=False)],
    per_class: Annotated[bool, option("--per-class", help="Show the error of each class.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Say what stores hold: codec, sizes, quality.

    Several are listed as a table, those of samples apart from those of a network's states. Reads only the header, and
    needs neither the codec nor PyTorch.
    """
    out = output.begin(json, quiet, verbose)
    facts: list[dict[str, Any]] = []

    def add(path: Path) -> None:
        from krstore.store.opening import open_store
        from krstore.store.summary import summarise

        with open_store(path) as store:
            facts.append(summarise(store, per_class=per_class))

    code = max(errors.attempt(lambda path=path: add(path)) for path in stores)  # type: ignore[misc]
    if len(stores) > 1:
        out.result(facts, *([store_block(one) for one in facts] if per_class else store_tables(facts)))
    elif facts:
        out.result(facts[0], store_block(facts[0]))
    if code:
        raise typer.Exit(code)
