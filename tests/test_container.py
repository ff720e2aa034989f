"""The container: ZIP tools accept it, 64-bit records work, writers refuse what readers would."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import krstore
from krstore.errors import CorruptStoreError, KrstoreError, UsageError
from krstore.store import layout
from krstore.store.container import Container
from krstore.store.container_writer import ContainerWriter
from krstore.store.layout import MAX_HEADER_BYTES, MAX_MEMBERS

MEMBERS = {
    "payload/latent/samples": bytes(range(256)) * 40,
    "payload/latent/samples.index": b"index",
    "labels": b"",
    "payload/network/decoder.0-weight_1": b"\0" * 1000,
}
HEADER = b'{"any": "bytes"}' * 20


def write(path: Path, members: dict[str, bytes] = MEMBERS, header: bytes = HEADER) -> Path:
    with path.open("w+b") as file:
        writer = ContainerWriter(file)
        for name, data in members.items():
            writer.write(name, [data[:7], data[7:]])
        expected = writer.finished_bytes(header)
        writer.finish(header)
    assert path.stat().st_size == expected
    return path


def check(path: Path, members: dict[str, bytes] = MEMBERS, header: bytes = HEADER) -> None:
    """Read a container by krstore and by zipfile."""
    opened = Container(path)
    assert opened.header() == header
    assert {name: opened.read(name) for name in opened.names() if name != "header.json"} == members
    for name, data in members.items():
        assert opened.size(name) == len(data)
        assert opened.read_at(name, len(data) // 3, len(data) // 2) == data[len(data) // 3 :][: len(data) // 2]
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == {**members, "header.json": header}


def test_round_trip(tmp_path: Path) -> None:
    check(write(tmp_path / "x.krs"))


def test_zip_tools_accept_it(tmp_path: Path) -> None:
    path = write(tmp_path / "x.krs")
    tools = [[sys.executable, "-m", "zipfile", "-t", path]]
    if shutil.which("unzip"):
        tools.append(["unzip", "-tq", path])
    for tool in tools:
        run = subprocess.run(tool, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
        assert "warning" not in (run.stdout + run.stderr).lower()


def test_nothing_about_time_is_in_it(tmp_path: Path) -> None:
    assert write(tmp_path / "x.krs").read_bytes() == write(tmp_path / "y.krs").read_bytes()
    with zipfile.ZipFile(tmp_path / "x.krs") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_abandoned_writer_leaves_no_trace(tmp_path: Path) -> None:
    with (tmp_path / "x.krs").open("w+b") as file:
        ContainerWriter(file).write("labels", [b"x" * 100_000])
        writer = ContainerWriter(file)
        for name, data in MEMBERS.items():
            writer.write(name, [data])
            assert writer.read(name) == data
            assert writer.read_at(name, 2, 2) == data[2:4]
        writer.finish(HEADER)
    check(tmp_path / "x.krs")


@pytest.mark.parametrize("limit", [40, 300, 11_500])
def test_offsets_beyond_a_lowered_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """The 64-bit records, at a size that tests can afford; zipfile reads them at the real limit, below."""
    monkeypatch.setattr(layout, "MAX32", limit)
    path = write(tmp_path / "x.krs")
    assert b"PK\6\6" in path.read_bytes()
    opened = Container(path)
    assert opened.header() == HEADER
    assert {name: opened.read(name) for name in opened.names() if name != "header.json"} == MEMBERS


class Sparse(io.FileIO):
    """A file that keeps runs of zeros as holes."""

    def write(self, data: Any) -> int:
        if len(data) < 1 << 20 or any(data[:: 1 << 12]):
            return super().write(data)
        end = self.seek(len(data), os.SEEK_CUR)
        self.truncate(end)
        return len(data)


@pytest.mark.slow
def test_more_than_four_gibibytes(tmp_path: Path) -> None:
    path, zeros = tmp_path / "x.krs", bytes(1 << 24)
    with Sparse(path, "w+") as file:
        writer = ContainerWriter(file)
        writer.write("payload/latent/samples", (zeros for _ in range(260)))
        writer.write("payload/network/after", [b"beyond"])
        assert writer.read_at("payload/latent/samples", (1 << 32) + 5, 10) == bytes(10)
        writer.finish(HEADER)
    opened = Container(path)
    assert opened.header() == HEADER
    assert opened.size("payload/latent/samples") == 260 << 24
    assert opened.read("payload/network/after") == b"beyond"
    assert opened.read_at("payload/latent/samples", (260 << 24) - 3, 3) == bytes(3)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.read("payload/network/after") == b"beyond"
        assert archive.getinfo("payload/latent/samples").file_size == 260 << 24
    path.write_bytes(path.read_bytes()[-300:])
    with pytest.raises(CorruptStoreError):
        Container(path)


@pytest.mark.parametrize(
    "name", ["", "/x", "x/", "a//b", "../x", "a/./b", ".x", "-x", "a b", "ä", "a\\b", "a\0", "a\n", "C:x", "x" * 256]
)
def test_writer_refuses_names(tmp_path: Path, name: str) -> None:
    with (tmp_path / "x.krs").open("w+b") as file, pytest.raises(KrstoreError, match="cannot be written"):
        ContainerWriter(file).write(name, [b"x"])


def test_writer_refuses_what_readers_would(tmp_path: Path) -> None:
    with (tmp_path / "x.krs").open("w+b") as file:
        writer = ContainerWriter(file)
        writer.write("labels", [b"x"])
        with pytest.raises(KrstoreError, match="'labels' cannot be written"):
            writer.write("labels", [b"y"])
        with pytest.raises(KrstoreError, match="remove large attributes"):
            writer.finish(bytes(MAX_HEADER_BYTES + 1))
        for number in range(MAX_MEMBERS - 2):
            writer.write(f"payload/latent/{number}", [])
        with pytest.raises(KrstoreError, match=f"at most {MAX_MEMBERS} members"):
            writer.write("payload/latent/last", [])
        writer.finish(HEADER)
    assert len(Container(tmp_path / "x.krs").names()) == MAX_MEMBERS


def test_reads_outside_a_member_are_refused(tmp_path: Path) -> None:
    opened = Container(write(tmp_path / "x.krs"))
    for offset, size in ((-1, 2), (0, 10_241), (10_240, 1), (0, -1), (1 << 70, 1)):
        with pytest.raises(CorruptStoreError, match="outside member"):
            opened.read_at("payload/latent/samples", offset, size)
    with pytest.raises(CorruptStoreError, match="missing"):
        opened.read("task")


def test_closed_file_is_opened_again(tmp_path: Path) -> None:
    path = write(tmp_path / "x.krs")
    opened = Container(path)
    opened.close()
    opened.close()
    assert opened.read("payload/latent/samples.index") == b"index"


def test_replaced_file_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    path = write(tmp_path / "x.krs")
    opened, held = Container(path), Container(path)
    opened.close()
    write(tmp_path / "y.krs", {**MEMBERS, "labels": b"other"}).replace(path)
    with pytest.raises(UsageError, match="open it again"):
        opened.read("labels")
    assert held.read("labels") == b""
    path.unlink()
    with pytest.raises(UsageError, match="is not a file"):
        opened.read("labels")


def test_what_is_no_store_is_said_to_be_what_it_may_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder, not a file; krstore memory info and verify are for memories"):
        Container(tmp_path)
    np.savez(tmp_path / "x.npz", x=np.zeros(3))
    with pytest.raises(CorruptStoreError, match=r"'header\.json' is missing; if it is an archive of samples"):
        krstore.open(tmp_path / "x.npz")


def test_file_that_shrinks_while_open(tmp_path: Path) -> None:
    path = write(tmp_path / "x.krs")
    opened = Container(path)
    os.truncate(path, 100)
    with pytest.raises(CorruptStoreError, match="the file ends at byte 100"):
        opened.read("payload/latent/samples")


def test_unreadable_paths(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "pipe", Path("/dev/null"), tmp_path / ("x" * 300)):
        with pytest.raises(UsageError):
            Container(path)
    secret = write(tmp_path / "secret.krs")
    secret.chmod(0)
    if not os.access(secret, os.R_OK):
        with pytest.raises(UsageError, match="cannot be opened"):
            Container(secret)


def test_many_threads_read_at_once(tmp_path: Path) -> None:
    data = os.urandom(1 << 20)
    opened = Container(write(tmp_path / "x.krs", {"labels": data}))
    opened.close()
    wrong: list[int] = []

    def read(seed: int) -> None:
        for step in range(500):
            at = (seed * 7919 + step * 104_729) % (len(data) - 4096)
            if opened.read_at("labels", at, 4096) != data[at : at + 4096]:
                wrong.append(at)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
