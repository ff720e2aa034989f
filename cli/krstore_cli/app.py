"""The application: which commands there are, and how a run of one ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.main import get_command

from krstore_cli import errors, output
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

__all__ = ["app", "main", "run"]

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


def run(args: Sequence[str]) -> int:
    """Run one command line, without the program's name, and return its exit code; nothing is raised."""
    output.begin()
    try:
        code = get_command(app).main(list(args) or ["--help"], prog_name="krstore", standalone_mode=False)
        sys.stdout.flush()
        if code == errors.INTERRUPTED:  # how Typer says it
            raise KeyboardInterrupt
    except SystemExit as stop:  # shell completion ends so
        return stop.code if isinstance(stop.code, int) else 0
    except BrokenPipeError:  # whoever read our output has seen enough; what is left of it goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return errors.FAILURE
    except BaseException as error:
        return errors.report(error)
    return code if isinstance(code, int) else errors.OK


def main() -> None:
    """Run the command line of this process."""
    sys.exit(run(sys.argv[1:]))
