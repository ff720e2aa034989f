"""The commands of `krstore`, one module each, with the example that ends its help; and the application they make."""

from __future__ import annotations

from typing import Annotated

import typer

from krstore_cli import output
from krstore_cli.commands import (
    codecs,
    compare,
    decode,
    demo,
    encode,
    extract,
    frontier,
    info,
    learn,
    memory,
    report,
    show,
    snapshot,
    verify,
)

__all__ = ["app"]

app = typer.Typer(
    name="krstore",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 failure, 2 wrong usage, 3 target unreachable, 4 corrupt store, 130 interrupted.",
)
app.command(epilog=encode.EXAMPLE)(encode.encode)
app.command(epilog=info.EXAMPLE)(info.info)
app.command(epilog=verify.EXAMPLE)(verify.verify)
app.command(epilog=decode.EXAMPLE)(decode.decode)
app.command(epilog=codecs.EXAMPLE)(codecs.codecs)
app.command(epilog=learn.EXAMPLE)(learn.learn)
app.command(epilog=frontier.EXAMPLE)(frontier.frontier)
app.command(epilog=report.EXAMPLE)(report.report)
app.command(epilog=show.EXAMPLE)(show.show)
app.add_typer(memory.app, name="memory")
app.command(epilog=extract.EXAMPLE)(extract.extract)
app.command(epilog=snapshot.EXAMPLE)(snapshot.snapshot)
app.command(epilog=compare.EXAMPLE)(compare.compare)
app.command(epilog=demo.EXAMPLE)(demo.demo)


def _version(wanted: bool) -> None:
    if wanted:
        import krstore

        output.begin().result({"version": krstore.__version__}, krstore.__version__)
        raise typer.Exit


@app.callback()
def krstore(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Compress feature maps into small self-describing stores, and decode or replay them."""
