"""How a run of the command line begins and ends. Its modules are imported within, where an interrupt is answered."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["main", "run"]

GROUPS = ("memory",)  # of commands; alone they mean their help, as the program's name does


def run(args: Sequence[str]) -> int:
    """Run one command line, without the program's name, and return its exit code.

    Raises:
        KeyboardInterrupt: while modules are imported; any other error ends as a line on stderr.
    """
    from typer.main import get_command

    from krstore_cli import errors, output
    from krstore_cli.commands import app

    output.open_streams()
    output.begin()
    try:
        asked = [*args, "--help"] if list(args) in ([], *([name] for name in GROUPS)) else list(args)
        code = get_command(app).main(asked, prog_name="krstore", standalone_mode=False)
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
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        code = 130  # errors.INTERRUPTED, which may not be there yet
    sys.exit(code)
