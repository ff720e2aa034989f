"""Stores: opened lazily, pickled as paths, read by many threads, few descriptors held."""

from __future__ import annotations

import gc
import os
import pickle
import resource
import subprocess
import sys
import textwrap
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hostile.make import Good, pack

import krstore
from krstore import registry
from krstore.errors import CorruptStoreError, UsageError
from krstore.store.columns import pack_column
from krstore.testing import ArraySource, example_source
from krstore_cli.app import run

SOURCE = example_source(100, (3, 4))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    krstore.encode(SOURCE, tmp_path / "x.krs", codec="raw")
    return tmp_path / "x.krs"


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_a_store_says(path: Path) -> None:
    with krstore.open(path) as store:
        assert len(store) == 100
        assert repr(store) == f"Store({str(path)!r}: raw, 100 samples of (3, 4), ratio {store.ratio:.1f})"
        assert store.ratio == 4800 / path.stat().st_size
        np.testing.assert_array_equal(store.labels, SOURCE.labels)
        np.testing.assert_array_equal(store.ids, np.arange(100))
        assert store.task is None
        sizes = store.bytes
        assert sizes.file == path.stat().st_size == sizes.network + sizes.latent + sizes.labels + sizes.overhead
        with zipfile.ZipFile(path) as archive:
            assert sizes.latent == archive.getinfo("payload/latent/samples").file_size
            assert sizes.labels == archive.getinfo("labels").file_size


@pytest.mark.parametrize(
    "ids",
    [[0], [99, 0, 99], np.array([5, 7], np.uint8), range(3, 30, 4), slice(None), slice(-3, None), slice(9, 2, -2), []],
)
def test_reads_what_numpy_would(path: Path, ids: object) -> None:
    expected = SOURCE.features[ids if isinstance(ids, slice) else np.asarray(ids, np.int64)]
    found = krstore.open(path).read(ids)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_one_sample_by_its_number(path: Path) -> None:
    np.testing.assert_array_equal(krstore.open(path).read(7), SOURCE.features[7:8])


@pytest.mark.parametrize(
    "ids", [[100], [-1], [1 << 62], [0.5], ["a"], [[1, 2]], [True], [1 << 70], np.array([1 << 63])]
)
def test_ids_that_are_none(path: Path, ids: object) -> None:
    with pytest.raises(UsageError, match="sample"):
        krstore.open(path).read(ids)


def test_rows_that_are_none(path: Path) -> None:
    store = krstore.open(path)
    for rows in ([-1], [100]):
        with pytest.raises(UsageError, match="of a store of 100 samples"):
            store.decode(np.array(rows))
        with pytest.raises(UsageError, match="of a store of 100 samples"):
            store.decode_tensor(np.array(rows))


def test_reads_after_closing(path: Path) -> None:
    store = krstore.open(path)
    with store:
        store.read([0])
    np.testing.assert_array_equal(store.read([1]), SOURCE.features[1:2])


@pytest.mark.usefixtures("few_descriptors")
def test_five_thousand_stores_held_open(path: Path) -> None:
    stores = [krstore.open(path) for _ in range(5000)]
    assert sum(len(store) for store in stores) == 500_000


@pytest.mark.usefixtures("few_descriptors")
def test_stores_that_were_read_and_forgotten(path: Path) -> None:
    """Decoder and store refer to each other in circles; the descriptor does not wait for the collector."""
    gc.collect()
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        for _ in range(20):
            krstore.open(path).read([0])
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    finally:
        gc.enable()


def test_pickles_as_a_path(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = krstore.open("x.krs", device="cpu")
    store.read([0])
    pickled = pickle.dumps(store)
    assert len(pickled) < 300 + len(str(path))
    (tmp_path / "pickle").write_bytes(pickled)
    program = """
        import pickle, sys
        store = pickle.load(open(sys.argv[1], "rb"))
        print(store.path, store.device, float(store.read([3]).sum(dtype="f8")))
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "pickle")]
    run = subprocess.run(command, capture_output=True, text=True, cwd="/", check=True)
    assert run.stdout.split() == [str(path), "cpu", str(float(SOURCE.features[3].sum(dtype="f8")))]


def test_many_threads_read_one_store(path: Path) -> None:
    store = krstore.open(path)
    wrong: list[int] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(50):
            ids = rng.integers(0, 100, 10)
            if not np.array_equal(store.read(ids), SOURCE.features[ids]):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_opening_neither_reads_the_payload_nor_holds_the_file(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    stores = [krstore.open(path) for _ in range(10)]
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert "decoder" not in vars(stores[0])
    assert "labels" not in vars(stores[0])


class Thirds(krstore.Codec[Any, Any]):
    """Keeps every third sample, the last first, as it is."""

    name = "thirds"
    kind = krstore.Kind.EXEMPLAR

    def fit(self, source: Any, context: Any) -> Any:
        return source

    def pack(self, fitted: Any, knob: float, sink: Any) -> None:
        kept = np.arange(0, fitted.spec.samples, 3)[::-1]
        sink.keep(kept)
        sink.write("latent/all", fitted.read(kept).tobytes())

    @classmethod
    def open(cls, payload: Any, context: Any) -> krstore.Decoder:
        values = np.frombuffer(payload.read("latent/all"), context.spec.dtype)

        class Rows(krstore.Decoder):
            def decode(self, rows: Any) -> Any:
                return values.reshape(context.kept, *context.spec.shape)[rows]

        return Rows()


@pytest.fixture
def thirds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> krstore.Store:
    entry = SimpleNamespace(value="test", load=lambda: Thirds)
    monkeypatch.setattr(registry, "_entries", lambda: {"thirds": [entry]})
    return krstore.encode(SOURCE, tmp_path / "thirds.krs", codec="thirds", ratio=1.01)


def test_exemplar_store_is_read_by_source_ids(thirds: krstore.Store) -> None:
    assert len(thirds) == 34
    np.testing.assert_array_equal(thirds.ids, np.arange(99, -1, -3))
    np.testing.assert_array_equal(thirds.labels, SOURCE.labels[thirds.ids])
    np.testing.assert_array_equal(thirds.read([0, 99, 30]), SOURCE.features[[0, 99, 30]])
    np.testing.assert_array_equal(thirds.decode(np.arange(34)), SOURCE.features[thirds.ids])
    with pytest.raises(UsageError, match="sample 31 is not kept: this thirds store holds 34 exemplars of 100"):
        thirds.read([30, 31])
    with pytest.raises(UsageError, match="sample 1 is not kept"):
        thirds.read(slice(None))


def test_a_range_of_claimed_samples_takes_no_memory(thirds: krstore.Store, tmp_path: Path) -> None:
    good = Good(thirds.path)
    good.header["source"] |= {"samples": 1 << 40, "bytes": (1 << 40) * SOURCE.spec.sample_bytes}
    (tmp_path / "x.krs").write_bytes(pack(good.entries()))
    with pytest.raises(UsageError, match="sample 1 is not kept: this thirds store holds 34 exemplars of 1099511627776"):
        krstore.open(tmp_path / "x.krs").read(slice(None))
    assert run(["decode", str(tmp_path / "x.krs"), "-o", str(tmp_path / "x.h5"), "--ids", ":"]) == 2


def test_exemplar_store_with_impossible_ids(thirds: krstore.Store, tmp_path: Path) -> None:
    good = Good(thirds.path)
    for ids in (np.zeros(34, np.int64), np.arange(34) - 1, np.arange(34) + 67):
        good.members["ids"] = pack_column(ids)
        path = tmp_path / "x.krs"
        path.write_bytes(pack(good.entries()))
        with pytest.raises(CorruptStoreError, match="not distinct IDs of the source"):
            krstore.open(path).read([0])


def test_stores_may_be_closed_while_others_read_them(tmp_path: Path) -> None:
    stores = [
        krstore.encode(ArraySource(np.full((40, 8), n, np.float32)), tmp_path / f"{n}.krs", "raw") for n in range(2)
    ]
    ended = threading.Event()

    def close() -> None:
        while not ended.is_set():
            for store in stores:
                store.close()

    def read() -> None:
        for _ in range(150):
            for n, store in enumerate(stores):
                assert (store.read([3, 30]) == n).all()

    with ThreadPoolExecutor(4) as pool:
        closing = pool.submit(close)
        try:
            for reading in [pool.submit(read) for _ in range(3)]:
                reading.result()
        finally:
            ended.set()
        closing.result()
