"""Files appear whole or not at all, whatever fails and whenever: writes, flushes, renames, disks, processes."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import krstore
from krstore.errors import KrstoreError, OutputError
from krstore.files import atomic_path, atomic_write, check_target
from krstore.testing import example_source

OLD = example_source(20, (3, 2), seed=1)
NEW = example_source(40, (3, 4, 4), seed=2)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A good store in a folder of its own."""
    path = tmp_path / "folder" / "x.krs"
    path.parent.mkdir()
    krstore.encode(OLD, path, codec="raw")
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@contextlib.contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """Assert that the block leaves the file as it is, and nothing beside it."""
    before, beside = path.read_bytes(), names(path.parent)
    yield
    assert path.read_bytes() == before
    assert names(path.parent) == beside


class FailingFile(io.FileIO):
    """A file whose n-th write, counted over all files, fails, and every one after it."""

    left = 0
    error = errno.ENOSPC

    def write(self, data: Any) -> int:
        FailingFile.left -= 1
        if FailingFile.left < 0:
            raise OSError(self.error, os.strerror(self.error))
        return super().write(data)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_every_write_may_fail(target: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    real = Path.open

    def opened(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "+" in mode or "w" in mode:
            return io.BufferedRandom(FailingFile(self, mode.replace("b", "")), 256)
        return real(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(FailingFile, "error", error)
    failures: list[str] = []
    refused = True
    while refused:
        FailingFile.left = len(failures)
        before = target.read_bytes()
        try:
            krstore.encode(NEW, target, codec="raw", force=True)
            refused = False
        except OutputError as problem:
            failures.append(str(problem))
            assert target.read_bytes() == before
            assert names(target.parent) == {"x.krs"}
    assert len(failures) > 10
    assert all(os.strerror(error) in message for message in failures)
    assert krstore.open(target).read(slice(None)).tobytes() == NEW.features.tobytes()


def test_disk_full_at_every_size(target: Path) -> None:
    """The system itself refuses to let a file grow beyond n bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    krstore.encode(NEW, target.with_name("whole.krs"), codec="raw")
    whole = target.with_name("whole.krs").stat().st_size
    for limit in [*range(0, whole, 97), whole - 1]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with unchanged(target), pytest.raises(OutputError, match="cannot write"):
                krstore.encode(NEW, target, codec="raw", force=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_flush_and_rename_may_fail(target: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with unchanged(target), monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OutputError, match=r"No space left.*nothing was changed"):
            krstore.encode(NEW, target, codec="raw", force=True)


def test_folder_that_cannot_be_synced_is_no_failure(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the file is in place, the write has succeeded."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    krstore.encode(NEW, target, codec="raw", force=True)
    assert krstore.open(target).labels is not None
    assert names(target.parent) == {"x.krs"}


def test_small_disk(tmp_path: Path) -> None:
    """A real disk that is full."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        target = disk / "x.krs"
        krstore.encode(OLD, target, codec="raw")
        with unchanged(target), pytest.raises(OutputError, match="No space left"):
            krstore.encode(example_source(2000, (6, 4, 4)), target, codec="raw", force=True)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_interrupt_leaves_nothing(target: Path) -> None:
    class Interrupted:
        spec, labels, task = NEW.spec, NEW.labels, None
        reads = 0

        def read(self, ids: Any) -> Any:
            self.reads += 1
            if self.reads == 2:  # the scan is over, the payload begun
                raise KeyboardInterrupt
            return NEW.read(ids)

    with unchanged(target), pytest.raises(KeyboardInterrupt):
        krstore.encode(Interrupted(), target, codec="raw", force=True)


KILLED = """
    import os, random, signal, sys, time
    from pathlib import Path
    import krstore, krstore_codecs.raw, sklearn.linear_model, torch  # loaded here, so that the child writes at once
    from krstore.testing import example_source

    target, rounds = Path(sys.argv[1]), int(sys.argv[2])
    sources = [example_source(samples, (6, 4, 4), seed=seed) for seed, samples in enumerate((300, 500))]
    # each in a process of its own, so that the one that forks has no threads
    def encode(source, path):
        pid = os.fork()
        if not pid:
            krstore.encode(source, path, codec="raw", force=True)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    goods = []
    for source in sources:
        began = time.monotonic()
        encode(source, target)
        taken = time.monotonic() - began
        goods.append(target.read_bytes())
    rng, seen, leftovers = random.Random(0), set(), 0
    for number in range(rounds):
        pid = os.fork()
        if not pid:
            while True:
                for source in sources:
                    krstore.encode(source, target, codec="raw", force=True)
        time.sleep(taken * rng.uniform(0.1, 3))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        seen.add(goods.index(target.read_bytes()))
        here = set(os.listdir(target.parent)) - {target.name}
        assert len(here) <= 1, here
        leftovers += len(here)
    assert seen == {0, 1} and leftovers, (seen, leftovers)
    encode(sources[0], target)
    assert os.listdir(target.parent) == [target.name], os.listdir(target.parent)
"""


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """The target is always one complete store or the other; the next writer clears what the dead left behind."""
    (tmp_path / "here").mkdir()
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "here" / "x.krs"), "25"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_command_interrupted_while_it_writes(target: Path, tmp_path: Path, number: int, code: int) -> None:
    archive = tmp_path / "large.h5"
    with h5py.File(archive, "w") as file:
        file["features"] = np.random.default_rng(0).normal(size=(60_000, 256)).astype(np.float32)
    before = target.read_bytes()
    krs = Path(sys.executable).with_name("krstore")
    command = [krs, "encode", archive, "--codec", "raw", "-o", target, "--force"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not (partial := [*target.parent.glob(".*.partial")]) or not partial[0].stat().st_size:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert target.read_bytes() == before
    if number == signal.SIGKILL:
        krstore.encode(OLD, target, codec="raw", force=True)
    assert names(target.parent) == {"x.krs"}


def test_leftovers_of_others_are_left_alone(target: Path) -> None:
    host = socket.gethostname()
    kept = [
        f".x.krs.{host}-{os.getpid()}-00000000.partial",  # a living process
        f".x.krs.{host}-{os.getppid()}-00000000.partial",
        ".x.krs.another.host-999999999-00000000.partial",
        f".y.krs.{host}-999999999-00000000.partial",
        f".x.krs.{host}-99999999999999999999-00000000.partial",
        f".x.krs.{host}-²-00000000.partial",
        "x.partial",
    ]
    dead = f".x.krs.{host}-999999999-0123abcd.partial"
    for name in [*kept, dead]:
        (target.parent / name).touch()
    krstore.encode(NEW, target, codec="raw", force=True)
    assert names(target.parent) == {*kept, "x.krs"}


def test_writers_of_one_target_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "x"
    barrier = threading.Barrier(4)

    def write(digit: bytes) -> None:
        with atomic_write(path) as file:
            file.write(digit * 500)
            barrier.wait()
            file.write(digit * 500)

    threads = [threading.Thread(target=write, args=(b"%d" % i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(path.read_bytes())) == 1
    assert path.stat().st_size == 1000
    assert names(tmp_path) == {"x"}


def test_file_has_the_usual_permissions(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "x") as file:
            file.write(b"x")
    finally:
        os.umask(old)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_errors_that_are_not_the_files_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "x"):
        raise ZeroDivisionError
    assert not names(tmp_path)


def test_name_too_long(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="name is too long"):
        krstore.encode(OLD, tmp_path / ("x" * 250), codec="raw")
    with pytest.raises(OutputError, match="cannot write"):
        krstore.encode(OLD, tmp_path / ("x" * 300), codec="raw")


def test_refused_before_the_work_begins(target: Path) -> None:
    with unchanged(target):
        for path, expected in (
            (target, "exists; use --force"),
            (target.parent, "is a folder"),
            (target.parent / "missing" / "x.krs", "does not exist"),
            (target / "x.krs", "does not exist"),
        ):
            with pytest.raises(OutputError, match=expected):
                check_target(path, force=False)
            with pytest.raises(OutputError, match=expected):
                krstore.encode(NEW, path, codec="raw")


def test_devices_and_pipes_are_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/null"), tmp_path / "pipe"):
        with pytest.raises(OutputError, match="no plain file"):
            krstore.encode(NEW, path, codec="raw", force=True)
    assert Path("/dev/null").is_char_device()


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):
        folder = Path("/proc")  # where not even root creates files
        if not folder.is_dir():
            pytest.skip("every folder can be written here")
    store = krstore.encode(OLD, tmp_path / "x.krs", codec="raw")
    with pytest.raises(OutputError):
        krstore.encode(OLD, folder / "x.krs", codec="raw")
    with pytest.raises(KrstoreError):
        krstore.decode(store, folder / "x.h5")
    for path, expected in ((tmp_path, "is a folder"), (tmp_path / "x.krs", "is an input")):
        with pytest.raises(KrstoreError, match=expected):
            krstore.decode(store, path)


def test_store_may_be_encoded_over_itself(target: Path) -> None:
    store = krstore.open(target)
    again = krstore.encode(target, target, codec="raw", settings={"block_samples": 16}, force=True)
    assert again.read(slice(None)).tobytes() == OLD.features.tobytes()
    assert json.loads(json.dumps(again.config)) == {"block_samples": 16, "level": store.config["level"]}
