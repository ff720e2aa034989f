"""A memory that several processes change, or that one is killed at changing."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_stores import raw_store, size_on_disk

import krstore
import krstore.memory.folder
from krstore import Memory
from krstore.errors import KrstoreError, OutputError
from krstore.testing import ArraySource, example_source

APPEND = """
import sys
from krstore import Memory
memory = Memory(sys.argv[1])
print("ready", flush=True)
for path in sys.argv[2:]:
    memory.append(path)
"""
CHANGES = """
import itertools, os, signal, sys
from pathlib import Path
import krstore_codecs.raw, sklearn.linear_model, torch  # loaded here, so that a child is at work at once
from krstore import Memory
from krstore.memory.manifest import MANIFEST

folder, step = Path(sys.argv[1]), int(sys.argv[2])
sharing = sys.argv[3] == "sharing"
first, second, third, archive = (folder / name for name in ("1.krs", "2.krs", "3.krs", "archive.npz"))
whole, half = ((1, 20), (2, 20)), ((1, 10), (2, 10))
states = [(0, ()), (2, whole), (2, half), (1, half), (1, half[1:]), (0, ()), (1, ((5, 20),))]  # by generation
if sharing:
    states = [(0, ()), (2, whole), (2, whole), (1, whole[1:]), (0, ())]
CHANGING = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")

def change(path, stop):
    touched = 0
    def watch(event, arguments):
        nonlocal touched
        if event in CHANGING and str(arguments[0]).startswith(str(path)):
            touched += 1
            if touched == stop:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)
    memory = Memory.ensure(path)
    memory.append(first, second)
    if sharing:
        memory.shrink(memory.bytes * 9 // 10, preset="linear")
        memory.drop([1])
        memory.drop([2])
        return
    memory.trim(10)
    memory.merge()
    memory.drop([1])
    memory.drop([2])
    memory.extend([archive], "raw")

def needed(memory):
    stores = {f"stores/{entry.sha256}.krs" for entry in memory.manifest.stores}
    return {MANIFEST} | stores | {f"networks/{network}" for network in memory.manifest.networks}

seen, stop, finished = [], step, False
while not finished:
    path = folder / f"memory{stop}"
    pid = os.fork()
    if not pid:
        change(path, stop)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL), status
    finished = status == 0
    memory = Memory.ensure(path)
    memory.verify()
    seen.append(memory.manifest.generation)
    assert states[seen[-1]] == (len(memory.stores), tuple(memory.classes.items())), (stop, seen[-1])
    assert memory.bytes == sum((path / file).stat().st_size for file in needed(memory))
    memory.append(third)  # sweeps what the killed one left
    files = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    expected = needed(memory) | {"lock"}
    assert {file for file in files if not file.startswith("unfinished/")} == expected, (stop, files ^ expected)
    stop += step
assert [state for state, _ in itertools.groupby(seen)] == [*range(len(states))], seen
"""


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_that_append_at_once_lose_nothing(memory: Memory, tmp_path: Path) -> None:
    paths = [raw_store(tmp_path, number) for number in range(24)]
    with (
        python(APPEND, memory.path, *paths[::3]) as first,
        python(APPEND, memory.path, *paths[1::3]) as second,
        python(APPEND, memory.path, *paths[2::3]) as third,
    ):
        assert [process.wait(60) for process in (first, second, third)] == [0, 0, 0]
    memory.reload()
    assert memory.classes == dict.fromkeys(range(24), 20)
    assert memory.manifest.generation == 24
    memory.verify()
    assert memory.bytes == size_on_disk(memory)


@pytest.mark.parametrize("asked", ["verify", "trim", "samples", "merge", "shrink"])
def test_a_store_that_another_process_has_removed(asked: str, memory: Memory, tmp_path: Path) -> None:
    memory.append(raw_store(tmp_path, 1), raw_store(tmp_path, 2))
    own = Memory(memory.path, device="cpu")
    memory.drop([1])
    if asked == "verify":
        assert list(own.verify()) == [memory.manifest.stores[0].name]
    elif asked == "samples":
        assert set(own.samples.labels.tolist()) == {2}
    elif asked == "trim":
        own.trim(3)
        assert Memory(memory.path).classes == {2: 3}
    else:
        with pytest.raises(KrstoreError, match="was changed by another process meanwhile; try again"):
            own.merge("pq", ratio=3) if asked == "merge" else own.shrink(own.bytes - 9, "pq")


def test_processes_that_make_a_memory_at_once_spoil_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "memory", krstore.memory.folder.write_manifest
    with ThreadPoolExecutor(1) as pool:
        others = []

        def late(*arguments: Any) -> None:
            monkeypatch.undo()
            others.append(pool.submit(Memory.create, path))
            with pytest.raises(TimeoutError):
                others[0].result(0.2)
            write(*arguments)

        monkeypatch.setattr("krstore.memory.folder.write_manifest", late)
        Memory.create(path).append(raw_store(tmp_path, 1))
        with pytest.raises(OutputError, match="is not empty"):
            others[0].result()
    assert Memory(path).classes == {1: 20}


def test_the_same_merge_is_done_once(memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.append(raw_store(tmp_path, 1), raw_store(tmp_path, 2))
    encode = krstore.encode

    def meanwhile(*arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        with pytest.raises(OutputError, match=r"another process is writing .*unfinished/merge-.*; wait for it"):
            Memory(memory.path).merge()
        return encode(*arguments, **options)

    monkeypatch.setattr("krstore.memory.reshape.encode", meanwhile)
    memory.merge()
    assert len(memory.stores) == 1
    assert not (memory.path / "unfinished").exists()


def test_a_merge_gives_way_to_another_process(memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.append(raw_store(tmp_path, 1), raw_store(tmp_path, 2))
    other = Memory(memory.path)
    encode = krstore.encode

    def meanwhile(*arguments: Any, **options: Any) -> Any:
        other.drop([1])
        return encode(*arguments, **options)

    monkeypatch.setattr("krstore.memory.reshape.encode", meanwhile)
    with pytest.raises(KrstoreError, match="changed by another process meanwhile; try again"):
        memory.merge()
    assert Memory(memory.path).classes == {2: 20}


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("raw", 7),
        ("sharing", 9),
        pytest.param("raw", 1, marks=pytest.mark.slow),
        pytest.param("sharing", 1, marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_instant_it_opens_as_before_or_after(kind: str, step: int, tmp_path: Path) -> None:
    """Changes are killed at each `step`-th touch of a file.

    They are making, appending, trimming, merging, dropping and encoding; of stores with one decoder, shrinking.
    """
    decoder = None
    for number in (1, 2, 3):
        if kind == "raw":
            raw_store(tmp_path, number)
            continue
        source = example_source(20, (4, 8, 8), seed=number)
        labelled = ArraySource(source.features, np.full(20, number))
        decoder = krstore.encode(
            labelled, tmp_path / f"{number}.krs", ratio=2, preset="linear", device="cpu", decoder=decoder
        )
    np.savez(tmp_path / "archive.npz", features=np.full((20, 4), 5, np.float32), labels=np.full(20, 5))
    command = [sys.executable, "-c", CHANGES, str(tmp_path), str(step), kind]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr


SLOW = """
import sys, time
import krstore.memory.parallel as parallel
from krstore.distributed import joined, processes
from krstore import Memory
original = parallel.encode
def slow(source, output, *arguments, **options):
    done = original(source, output, *arguments, **options)
    print(f"encoded {output.name}", flush=True)
    if processes()[0] == 1 and sys.argv[3] == "die":
        import os; os._exit(9)
    return done
parallel.encode = slow
with joined():
    entries = Memory(sys.argv[1]).extend([sys.argv[2]], "raw", shards=4)
    print("entries", *(entry.sha256 for entry in entries), flush=True)
"""


def together(script: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_processes_share_an_encode_and_one_that_dies_spoils_nothing(memory: Memory, tmp_path: Path) -> None:
    source = example_source(50)
    np.savez(tmp_path / "features.npz", features=source.features, labels=source.labels)
    script = tmp_path / "script.py"
    script.write_text(SLOW)
    died = together(script, memory.path, tmp_path / "features.npz", "die")
    assert died.returncode != 0
    assert len(Memory(memory.path)) == 0
    ended = together(script, memory.path, tmp_path / "features.npz", "live")
    assert ended.returncode == 0, ended.stderr
    assert "encoded 0-1.krs" not in ended.stdout, "the shard that the dead process had finished"
    memory.reload()
    assert (memory.manifest.generation, len(memory.stores)) == (1, 4)
    told = [line for line in ended.stdout.splitlines() if line.startswith("entries")]
    assert told == [" ".join(["entries", *(entry.sha256 for entry in memory.manifest.stores)])] * 2
    np.testing.assert_array_equal(memory.samples.read(np.arange(50)), source.features)
    np.testing.assert_array_equal(memory.samples.labels, source.labels)
    assert not (memory.path / "unfinished").exists()
