"""How what the library raises becomes one line on stderr and an exit code.

0    done
1    a failure: an archive that cannot be read, an output that exists, a full disk
2    wrong usage: an unknown option, codec, preset or class
3    the codec cannot honour the ratio, size or error that was asked for
4    a store is damaged
130  interrupted
"""

from __future__ import annotations

import traceback
from collections.abc import Callable

import typer

from krstore.errors import CorruptStoreError, KrstoreError, TargetUnreachableError, UsageError
from krstore_cli import output

__all__ = ["FAILURE", "INTERRUPTED", "OK", "attempt", "report"]

OK, FAILURE, USAGE, UNREACHABLE, CORRUPT, INTERRUPTED = 0, 1, 2, 3, 4, 130

_CODES: dict[type[KrstoreError], int] = {
    UsageError: USAGE,
    TargetUnreachableError: UNREACHABLE,
    CorruptStoreError: CORRUPT,
}


def report(error: BaseException) -> int:
    """Say an error in one line on stderr and return its exit code; ``-vv`` shows the traceback too."""
    code, sentence = _judge(error)
    out = output.current()
    if out.verbose > 1:
        out.trace("".join(traceback.format_exception(error)))
    out.error(sentence)
    return code


def attempt(work: Callable[[], int | None]) -> int:
    """Do one of several pieces of work: an error of the library or the system is reported and does not stop the next.

    Returns:
        `work`'s own exit code, or its error's; the worst of several is their maximum.
    """
    try:
        return work() or OK
    except BrokenPipeError:
        raise
    except (KrstoreError, OSError) as error:
        return report(error)


def _judge(error: BaseException) -> tuple[int, str]:
    if isinstance(error, KrstoreError):
        return next((code for kind, code in _CODES.items() if isinstance(error, kind)), FAILURE), str(error)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return INTERRUPTED, "interrupted"
    message = getattr(error, "format_message", None)  # what Typer raises for a wrong command line has no public name
    if message is not None:
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        return USAGE, f"{message()}{hint}"
    if isinstance(error, OSError):
        named = f"{error.filename}: " if error.filename is not None else ""
        return FAILURE, f"{named}{error.strerror or error}"
    if isinstance(error, RecursionError):
        return FAILURE, "something that was read has too many levels in one another"
    if isinstance(error, MemoryError):
        return FAILURE, "out of memory"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for its name's sake
        return FAILURE, "out of GPU memory; free some, or use --device cpu"
    return FAILURE, f"unexpected {type(error).__name__}: {error} (-vv shows where)"
