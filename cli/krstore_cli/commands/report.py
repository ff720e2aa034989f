"""krstore report: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from krstore_cli import output
from krstore_cli.options import Json, Quiet, Verbose, option

if TYPE_CHECKING:
    from krstore.learning.groups import Group

__all__ = ["EXAMPLE", "report"]

EXAMPLE = "Example: krstore report finetune kril joint -o report"


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or with runs below them.", show_default=False)],
    folder: Annotated[Path, option("--output", "-o", help="The report's folder.", show_default=False)],
    tsne: Annotated[
        bool, option("--tsne", help="Draw what memories replay beside the originals; reads the runs' data.")
    ] = False,
    names: Annotated[
        str | None, option("--names", help="What to call the methods, by commas, in the order of the folders.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Compare finished runs of krstore learn in one page: tables, accuracy curves, bytes, confusion matrices.

    Runs that differ in their seed alone are shown as mean and standard deviation.
    """
    out = output.begin(json, quiet, verbose)
    from krstore.learning.report import report as write

    called = [name.strip() for name in (names or "").split(",") if name.strip()]
    groups = write(runs, folder, tsne=tsne, names=called)
    columns = ("method", "seeds", "last %", "average %", "forgetting %", "bytes", "network")
    facts = [
        {
            "name": group.name, "seeds": len(group.runs), "bytes": group.bytes,
            "network_bytes": group.network_bytes,
            **{name: value for name, (value, _) in group.figures().items()},
        }
        for group in groups
    ]  # fmt: skip
    out.result(facts, output.table(columns, [_row(group) for group in groups]))
    out.status(f"wrote {folder / 'report.html'}")


def _row(group: Group) -> tuple[str, ...]:
    shown = [output.percent(*group.figures()[name]) for name in ("last", "average_incremental", "forgetting")]
    return (group.name, str(len(group.runs)), *shown, f"{group.bytes:,}", f"{group.network_bytes:,}")
