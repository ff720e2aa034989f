"""The command as a process: exit codes, streams, signals, pipes, terminals, and what it costs to start."""

from __future__ import annotations

import json
import math
import os
import pty
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import krstore

KRSTORE = Path(sys.executable).with_name("krstore")


@pytest.fixture
def store(archive: Path) -> Path:
    return krstore.encode(archive, codec="raw").path


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A distribution whose codec says that it is fitting and then takes its time."""
    site = tmp_path / "site"
    (site / "slow-1.dist-info").mkdir(parents=True)
    (site / "slow-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1\n")
    (site / "slow-1.dist-info" / "entry_points.txt").write_text("[krstore.codecs]\nslow = slow:Slow\n")
    (site / "slow.py").write_text(
        textwrap.dedent(
            """
            import time
            from krstore_codecs.raw import Raw

            class Slow(Raw):
                name = "slow"

                def pack(self, fitted, knob, sink):
                    super().pack(fitted, knob, sink)
                    self._progress.note("half way")
                    time.sleep(60)
            """
        )
    )
    return site


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("encode", "nothing.h5"), 1),
        (("encode", "features.h5", "--codec", "ra"), 2),
        (("encode", "features.h5", "--ratio", "many"), 2),
        (("encode", "features.h5", "--codec", "uniform", "--max-bytes", "1000"), 3),
        (("info", "features.h5"), 4),
        (("inof", "features.h5"), 2),
        (("info",), 2),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    process: Any, archive: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int
) -> None:
    monkeypatch.chdir(archive.parent)
    ran = process(*arguments)
    assert ran.code == code
    assert "Traceback" not in ran.line


def test_a_mistyped_command_is_suggested(cli: Any) -> None:
    assert "Did you mean 'info'?" in cli("inof").line


def test_the_traceback_is_shown_to_who_asks(cli: Any) -> None:
    ran = cli("info", "nothing.krs", "-vv")
    assert "Traceback" in ran.err
    assert ran.err.splitlines()[-1].startswith("error: ")


def test_an_unexpected_error_is_one_line_too(cli: Any, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by nought\nat all")

    monkeypatch.setattr("krstore.store.summary.summarise", broken)
    ran = cli("info", store)
    assert ran.code == 1
    assert "unexpected ZeroDivisionError: by nought at all" in ran.line


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MemoryError(), 1, "error: out of memory"),
        (PermissionError(13, "Permission denied", "s.krs"), 1, "error: s.krs: Permission denied"),
        (OSError(28, "No space left on device"), 1, "error: No space left on device"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
    ],
)
def test_errors_of_the_system(
    cli: Any, store: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("krstore.store.summary.summarise", failing)
    ran = cli("info", store)
    assert (ran.code, ran.line) == (code, said)


def test_results_and_messages_keep_apart(process: Any, archive: Path) -> None:
    ran = process("encode", archive, "--codec", "raw", "--json", "-v")
    assert json.loads(ran.out)["codec"] == "raw"
    assert "wrote" in ran.err
    assert "scan: 90 samples" in ran.err
    quiet = process("encode", archive, "--codec", "raw", "--force", "-q")
    assert quiet.code == 0
    assert quiet.err == ""
    assert "raw (dense)" in quiet.out


def test_help_and_version(process: Any) -> None:
    bare, asked = process(), process("--help")
    assert bare == asked
    assert bare.code == 0
    for command in ("encode", "info", "verify", "decode", "codecs"):
        assert f"  {command} " in bare.out
    assert process("--version").out.strip() == krstore.__version__


@pytest.mark.parametrize(
    ("arguments", "limit"), [(("--help",), 1.5), (("info", "STORE"), 3.0), (("codecs", "-h"), 2.0)]
)
def test_starting_is_quick(store: Path, arguments: tuple[str, ...], limit: float) -> None:
    command = [str(KRSTORE), *(str(store) if part == "STORE" else part for part in arguments)]
    least = [sys.executable, "-c", "import numpy, rich.console, typer"]  # torch alone takes nine times as long
    ours, theirs = math.inf, math.inf  # the least of several runs, in turn: other processes must not fail a test
    for _ in range(10):
        ours, theirs = min(ours, _processor_seconds(command)), min(theirs, _processor_seconds(least))
        if ours < limit * theirs:
            return
    pytest.fail(f"{ours:.3f} s of a processor, beside {theirs:.3f} s")


def _processor_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], ["torch", "numpy", "msgspec", "h5py", "krstore_codecs"]),
        (["encode", "--help"], ["torch", "numpy", "msgspec", "h5py", "krstore_codecs"]),
        (["info", "STORE"], ["torch", "h5py", "sklearn", "krstore_codecs"]),
        (["info", "STORE", "STORE", "--json", "--per-class"], ["torch", "h5py", "sklearn", "krstore_codecs"]),
        (["verify", "STORE"], ["torch", "sklearn", "krstore_codecs"]),
    ],
)
def test_what_is_not_imported(store: Path, arguments: list[str], absent: list[str]) -> None:
    arguments = [str(store) if part == "STORE" else part for part in arguments]
    program = (
        "import sys; from krstore_cli.app import run; assert run(sys.argv[1:]) == 0; "
        f"sys.exit(','.join(name for name in {absent} if name in sys.modules) or 0)"
    )
    ran = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_completion_knows_commands_and_codecs(process: Any) -> None:
    def complete(words: str) -> list[str]:
        environment = {"_KRSTORE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        return list(process(**environment).out.split())

    assert complete("krstore ver") == ["verify"]
    assert complete("krstore encode --codec un") == ["uniform"]
    assert complete("krstore codecs raw") == ["raw"]
    assert "--max-bytes" in complete("krstore encode --max")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_encode_that_is_stopped_leaves_the_old_store(
    start: Any, archive: Path, slow: Path, number: signal.Signals
) -> None:
    output = archive.with_name("s.krs")
    output.write_bytes(b"the old one")
    before = sorted(archive.parent.iterdir())
    running = start("encode", archive, "--codec", "slow", "-o", output, "--force", path=slow)
    assert running.stderr.readline() == "half way\n"
    running.send_signal(number)
    out, err = running.communicate(timeout=30)
    assert output.read_bytes() == b"the old one"
    assert out == ""
    if number == signal.SIGINT:
        assert running.returncode == 130
        assert err.splitlines()[-1] == "error: interrupted"
        assert "Traceback" not in err
        assert sorted(archive.parent.iterdir()) == before


def test_a_reader_that_leaves_early_is_no_error(start: Any, store: Path) -> None:
    running = start("info", *[store] * 400, "--json")
    running.stdout.read(10)
    running.stdout.close()
    assert running.stderr.read() == ""
    assert running.wait(timeout=30) == 1
    running.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_stdout(store: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run([KRSTORE, "info", store], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (ran.returncode, ran.stderr) == (
        1,
        "error: standard output cannot be written to: No space left on device\n",
    )


@pytest.mark.parametrize(
    ("closing", "code", "said"),
    [
        (">&-", 1, "error: standard output is closed; the result has nowhere to go\n"),
        ("2>&-", 0, ""),
    ],
)
def test_a_closed_stream(store: Path, closing: str, code: int, said: str) -> None:
    ran = subprocess.run(["sh", "-c", f'"$0" info "$1" {closing}', KRSTORE, store], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (code, said)
    assert ("raw (dense)" in ran.stdout) == (code == 0)


def test_what_a_stream_cannot_encode_is_escaped(process: Any, store: Path) -> None:
    ran = process("info", store.rename(store.with_name("café.krs")), PYTHONIOENCODING="ascii")
    assert ran.code == 0, ran.err
    assert r"caf\xe9.krs" in ran.out


def test_an_interrupt_before_the_command_is_known(start: Any, tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    running = start("info", path=tmp_path)
    assert running.communicate(timeout=30) == ("", "error: interrupted\n")
    assert running.returncode == 130


def on_terminal(*arguments: object, **environment: str) -> str:
    """Run a command whose stderr is a terminal and return what it showed."""
    ours, theirs = pty.openpty()
    inherited = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    variables = {**inherited, "TERM": "xterm-256color", "COLUMNS": "120", **environment}
    running = subprocess.Popen([KRSTORE, *map(str, arguments)], stderr=theirs, stdout=subprocess.PIPE, env=variables)
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    running.communicate(timeout=30)
    return shown.decode()


def test_bars_are_for_terminals(process: Any, archive: Path) -> None:
    command = ("encode", archive, "--codec", "raw", "--force")
    shown = on_terminal(*command)
    assert "/90 samples" in shown
    assert "\x1b[" in shown
    assert "/90" not in process(*command).err
    assert "/90" not in on_terminal(*command, "-q")


def test_no_color(archive: Path) -> None:
    assert "\x1b[" in on_terminal("info", "nothing.krs")
    assert on_terminal("info", "nothing.krs", NO_COLOR="1") == "error: nothing.krs is not a file\r\n"
