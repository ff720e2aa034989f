"""Feature archives: every container, element type and rank; what is refused; what damage does; bounded memory."""

from __future__ import annotations

import contextlib
import json
import os
import random
import struct
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

import krstore
from krstore.archives import open_archive, write_archive
from krstore.dtypes import DTYPES, numpy_dtype
from krstore.errors import ArchiveError, OutputError, UsageError
from krstore.source import Held, Source, SourceSpec, chunks, default_channel_axis, scan

SHAPES = [(), (5,), (3, 4), (3, 4, 5), (2, 3, 4, 5)]
CONTAINERS = [".h5", ".npz", ".safetensors"]
LABELS = np.array([-7, 1000, 3, 3, -7, 2**40, 0, 1])


def features(shape: tuple[int, ...] = (3, 4), dtype: str = "float32", samples: int = 8) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(0).normal(20, 9, (samples, *shape))
    return values.clip(0, 255).astype(numpy_dtype(dtype))


def save(path: Path, **arrays: np.ndarray[Any, Any]) -> Path:
    """Write arrays with the containers' own libraries."""
    match path.suffix:
        case ".h5":
            with h5py.File(path, "w") as file:
                for name, values in arrays.items():
                    file[name] = values
        case ".npz":
            np.savez(path, **arrays)
        case ".safetensors":
            save_file(arrays, path)
        case ".npy":
            np.save(path, arrays["features"])
    return path


def read_all(source: Source) -> np.ndarray[Any, Any]:
    return np.concatenate([part for _, part in chunks(source, 100)])


def spec_of(values: np.ndarray[Any, Any], **fields: Any) -> SourceSpec:
    axis = default_channel_axis(values.ndim - 1)
    return SourceSpec(
        **{
            "samples": len(values),
            "shape": values.shape[1:],
            "dtype": values.dtype.name,
            "channel_axis": axis,
            **fields,
        }
    )


# Reading


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8"])
@pytest.mark.parametrize("container", [*CONTAINERS, ".npy"])
def test_reads_every_rank_and_type_as_other_libraries_write_them(
    tmp_path: Path, container: str, dtype: str, shape: tuple[int, ...]
):
    x = features(shape, dtype)
    source = open_archive(save(tmp_path / f"a{container}", features=x))
    assert source.spec == spec_of(x)
    assert source.labels is None
    np.testing.assert_array_equal(read_all(source), x)
    assert read_all(source).dtype == x.dtype
    ids = np.array([7, 2, 3, 3, 0])
    np.testing.assert_array_equal(source.read(ids), x[ids])
    assert source.read(np.empty(0, np.int64)).shape == (0, *shape)
    assert source.read(np.arange(2)).flags.writeable


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("kind", [np.int64, np.int16, np.uint8, np.uint64])
def test_labels_are_any_integers_and_task_is_read(tmp_path: Path, container: str, kind: type):
    y = (LABELS if kind is np.int64 else np.arange(8) * 3).astype(kind)
    path = save(tmp_path / f"a{container}", features=features(), labels=y, task=np.arange(8, dtype=np.int32) - 4)
    source = open_archive(path)
    assert source.labels is not None
    assert source.task is not None
    assert source.labels.dtype == source.task.dtype == np.int64
    np.testing.assert_array_equal(source.labels, y.astype(np.int64))
    np.testing.assert_array_equal(source.task, np.arange(-4, 4))


def test_keys_may_be_nested_and_named(tmp_path: Path):
    x = features()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["net/layer3/out"] = x
        file["meta/y"] = LABELS
        file["alias"] = h5py.SoftLink("/net/layer3")
        file["features"] = h5py.SoftLink("alias/./out")
    for key in ("net/layer3/out", "/net/layer3/out", "alias/out", None):
        source = open_archive(tmp_path / "a.h5", features_key=key, labels_key="meta/y")
        np.testing.assert_array_equal(source.read(np.arange(8)), x)
        np.testing.assert_array_equal(source.labels, LABELS)
        assert source.spec.features_key == key or key is None
        assert source.spec.labels_key == "meta/y"


def test_the_only_array_needs_no_name(tmp_path: Path):
    for container in CONTAINERS:
        assert open_archive(save(tmp_path / f"a{container}", acts=features())).spec.features_key == "acts"


def test_npy_takes_labels_from_a_second_file(tmp_path: Path):
    np.save(tmp_path / "y.npy", LABELS)
    source = open_archive(save(tmp_path / "x.npy", features=features()), labels_key=str(tmp_path / "y.npy"))
    np.testing.assert_array_equal(source.labels, LABELS)
    with pytest.raises(ArchiveError, match=r"absent\.npy is not a file"):
        open_archive(tmp_path / "x.npy", labels_key="absent.npy")


def test_compressed_npz_and_prefixed_npz(tmp_path: Path):
    x = features()
    np.savez_compressed(tmp_path / "a.npz", features=x, labels=LABELS)
    np.testing.assert_array_equal(read_all(open_archive(tmp_path / "a.npz")), x)
    plain = save(tmp_path / "b.npz", features=x).read_bytes()
    (tmp_path / "c.npz").write_bytes(b"something before the archive" + plain)
    np.testing.assert_array_equal(read_all(open_archive(tmp_path / "c.npz")), x)


def test_bfloat16_from_torch(tmp_path: Path):
    values = torch.arange(24).reshape(4, 3, 2).to(torch.bfloat16) / 3
    save_torch({"features": values, "labels": torch.tensor([3, -1, 3, 9])}, tmp_path / "a.safetensors")
    source = open_archive(tmp_path / "a.safetensors")
    assert source.spec.dtype == "bfloat16"
    np.testing.assert_array_equal(source.read(np.arange(4)).astype(np.float32), values.float().numpy())


def test_big_endian_and_fortran_rows_of_hdf5(tmp_path: Path):
    x = features()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("features", data=x, dtype=">f4")
        file.create_dataset("labels", data=LABELS, dtype=">i8")
    source = open_archive(tmp_path / "a.h5")
    np.testing.assert_array_equal(source.labels, LABELS)
    for ids in (np.arange(8), np.array([5, 1])):
        assert source.read(ids).dtype == np.dtype("<f4")
        np.testing.assert_array_equal(source.read(ids), x[ids])


@pytest.mark.parametrize("filters", ["gzip", "shuffle", "lzf", "blosc", "zstd", "bitshuffle"])
def test_hdf5_filters(tmp_path: Path, filters: str):
    hdf5plugin = pytest.importorskip("hdf5plugin") if filters in ("blosc", "zstd", "bitshuffle") else None
    options: dict[str, Any] = {
        "gzip": lambda: {"compression": "gzip"},
        "lzf": lambda: {"compression": "lzf"},
        "shuffle": lambda: {"compression": "gzip", "shuffle": True, "fletcher32": True},
        "blosc": lambda: {"compression": hdf5plugin.Blosc()},
        "zstd": lambda: {"compression": hdf5plugin.Zstd()},
        "bitshuffle": lambda: {"compression": hdf5plugin.Bitshuffle()},
    }[filters]()
    x = features((6, 4, 4), samples=50)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("features", data=x, chunks=(7, 3, 4, 4), **options)
    source = open_archive(tmp_path / "a.h5")
    np.testing.assert_array_equal(read_all(source), x)
    ids = np.random.default_rng(0).integers(0, 50, 70)
    np.testing.assert_array_equal(source.read(ids), x[ids])


def test_an_id_outside_is_an_error_in_every_container(tmp_path: Path):
    for container in [*CONTAINERS, ".npy"]:
        source = open_archive(save(tmp_path / f"a{container}", features=features()))
        for ids in ([8], [-1], [0, 1, 8]):
            with pytest.raises(UsageError, match="expected 0 to 7"):
                source.read(np.array(ids))


# Writing


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("container", CONTAINERS)
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_what_is_written_is_read_back(tmp_path_factory: Any, container: str, dtype: str, data: st.DataObject):
    path = tmp_path_factory.mktemp("w") / f"a{container}"
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, max_side=4))
    x = features(shape, dtype, samples=data.draw(st.integers(1, 9)))
    y = data.draw(hnp.arrays(np.int64, len(x)))
    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
    names = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1).map("a_{}".format)
    axis = data.draw(st.integers(0, len(shape) - 1)) if shape else None
    spec = spec_of(x, channel_axis=axis, attributes=data.draw(st.dictionaries(names, json_values, max_size=4)))
    if dtype == "bfloat16" and container != ".safetensors":
        with pytest.raises(ArchiveError, match="only safetensors"), write_archive(path, spec, {}):
            pytest.fail("nothing to write to")
        return
    with write_archive(path, spec, {"labels": y, "ids": y}) as writer:
        writer.append(x[:3])
        writer.append(x[3:])
    source = open_archive(path)
    assert source.spec == spec
    assert json.dumps(source.spec.attributes, sort_keys=True) == json.dumps(spec.attributes, sort_keys=True)
    np.testing.assert_array_equal(read_all(source).view(np.uint8), x.view(np.uint8))
    np.testing.assert_array_equal(source.labels, y)


def test_other_libraries_read_what_is_written(tmp_path: Path):
    x = features((3, 2, 2))
    spec = spec_of(x, attributes={"mean": [0.5, 0.25], "names": ["ü", "b"], "layer": "layer3.0", "deep": {"a": None}})
    for container in CONTAINERS:
        with write_archive(tmp_path / f"a{container}", spec, {"labels": LABELS}) as writer:
            writer.append(x)
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["features"][()], x)
        np.testing.assert_array_equal(file["labels"][()], LABELS)
        assert file["features"].chunks is None
        assert file.attrs["layer"] == "layer3.0"
        assert file.attrs["mean"].dtype == np.float64
        assert list(file.attrs["names"]) == ["ü", "b"]
    with np.load(tmp_path / "a.npz") as arrays:
        np.testing.assert_array_equal(arrays["features"], x)
        np.testing.assert_array_equal(arrays["labels"], LABELS)
    tensors = load_file(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(tensors["features"], x)
    np.testing.assert_array_equal(tensors["labels"], LABELS)


def test_attributes_of_other_writers_become_json(tmp_path: Path):
    with h5py.File(save(tmp_path / "a.h5", features=features()), "a") as file:
        file.attrs.update({"n": np.float32(0.5), "v": np.arange(3), "fixed": np.array([b"a", b"b"]), "ok": np.True_})
        file.attrs["nan"] = np.nan
        file.attrs["empty"] = h5py.Empty("f")
        file.attrs["reference"] = file["features"].ref
        file["features"].attrs["layer"] = np.bytes_(b"conv1")
        file["features"].attrs["channel_axis"] = 0
    spec = open_archive(tmp_path / "a.h5").spec
    assert spec.attributes == {"n": 0.5, "v": [0, 1, 2], "fixed": ["a", "b"], "ok": True, "layer": "conv1"}
    assert spec.channel_axis == 0


def test_attributes_survive_a_store(tmp_path: Path):
    attributes = {
        "mean": [0.5, 0.25], "names": ["a", "b"], "epochs": 3, "deep": {"x": [1, None]}, "flag": True,
        "krstore_json": "{bad", "": 5,
    }  # fmt: skip
    x = features()
    with write_archive(tmp_path / "a.h5", spec_of(x, attributes=attributes), {"labels": LABELS}) as writer:
        writer.append(x)
    store = krstore.encode(tmp_path / "a.h5", codec="raw", device="cpu")
    assert store.source.attributes == attributes
    for container in CONTAINERS:
        with write_archive(tmp_path / f"b{container}", store.source, {"labels": store.labels}) as writer:
            writer.append(store.read(np.arange(8)))
        assert open_archive(tmp_path / f"b{container}").spec == open_archive(tmp_path / "a.h5").spec


@pytest.mark.parametrize("container", CONTAINERS)
def test_an_interrupted_or_short_write_changes_nothing(tmp_path: Path, container: str):
    path = tmp_path / f"a{container}"
    path.write_bytes(b"what was there before")
    spec = spec_of(features())
    with pytest.raises(KeyboardInterrupt), write_archive(path, spec, {}) as writer:  # noqa: PT012
        writer.append(features()[:3])
        raise KeyboardInterrupt
    with pytest.raises(ArchiveError, match="3 samples were written; the archive should hold 8"):  # noqa: SIM117
        with write_archive(path, spec, {}) as writer:
            writer.append(features()[:3])
    with pytest.raises(ArchiveError, match=r"shape \(4, 3\)"), write_archive(path, spec, {}) as writer:
        writer.append(features((4, 3)))
    assert path.read_bytes() == b"what was there before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("limit", [100, 3000, 100_000])
def test_a_full_disk_is_an_output_error_and_leaves_nothing(tmp_path: Path, container: str, limit: int):
    code = f"""
        import resource, signal
        import numpy as np
        from krstore.archives import write_archive
        from krstore.errors import OutputError
        from krstore.source import SourceSpec

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
        spec = SourceSpec(samples=1000, shape=(100,), dtype="float32", channel_axis=0)
        try:
            with write_archive({str(tmp_path / "a")!r} + {container!r}, spec, {{"labels": np.arange(1000)}}) as writer:
                for _ in range(100):
                    writer.append(np.ones((10, 100), np.float32))
        except OutputError as error:
            print("refused:", error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("refused: cannot write"), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_place_or_unknown_kind_to_write(tmp_path: Path):
    with pytest.raises(OutputError), write_archive(tmp_path / "no" / "a.h5", spec_of(features()), {}):
        pytest.fail("nothing to write to")
    with pytest.raises(ArchiveError, match=r"use \.h5"), write_archive(tmp_path / "a.tar", spec_of(features()), {}):
        pytest.fail("nothing to write to")


# What is refused

Bad = dict[str, Any]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": features(), "labels": LABELS}, "no array 'features'; it has: labels, x"),
        ({"features": features()[:0]}, r"'features' of shape \(0, 3, 4\) holds nothing"),
        ({"features": np.empty((4, 0, 2), np.float32)}, r"\(4, 0, 2\) holds nothing"),
        ({"features": np.float32(3)}, "single value"),
        ({"features": np.arange(8, dtype=np.int32)}, "'features'.*'int32', expected one of float16"),
        ({"features": np.arange(8, dtype=np.int8)}, "'int8'"),
        ({"features": np.ones(8, bool)}, "'bool'"),
        ({"features": features(), "labels": LABELS[:5]}, "'labels' has 5 entries for 8 samples"),
        (
            {"features": features(), "labels": LABELS.astype(np.float32)},
            "'labels' has .* float32; expected .* integers",
        ),
        ({"features": features(), "labels": LABELS.reshape(8, 1)}, r"'labels' has shape \(8, 1\)"),
        ({"features": features(), "task": LABELS[:5]}, "'task' has 5 entries"),
        ({"features": features(), "labels": np.full(8, 2**63, np.uint64)}, "9223372036854775808, above the 64-bit"),
    ],
)
def test_unfit_arrays_are_named(tmp_path: Path, container: str, arrays: Bad, message: str):
    path = save(tmp_path / f"bad{container}", **{k: np.asarray(v) for k, v in arrays.items()})
    with pytest.raises(ArchiveError, match=message) as error:
        open_archive(path)
    assert str(path) in str(error.value)


def test_wanted_keys_that_are_missing_list_those_there_are(tmp_path: Path):
    for container in CONTAINERS:
        path = save(tmp_path / f"a{container}", features=features(), labels=LABELS)
        with pytest.raises(ArchiveError, match="'acts'; it has: features, labels"):
            open_archive(path, features_key="acts")
        with pytest.raises(ArchiveError, match="'y' for labels; beside the features it has: labels"):
            open_archive(path, labels_key="y")


def test_an_array_is_features_or_labels_or_task(tmp_path: Path):
    x = np.arange(8, dtype=np.uint8)
    path = save(tmp_path / "a.npz", features=x)
    with pytest.raises(ArchiveError, match="'features' for labels; beside the features it has: none"):
        open_archive(path, labels_key="features")
    for container in CONTAINERS:
        source = open_archive(save(tmp_path / f"b{container}", task=features(), y=x), features_key="task")
        assert source.task is None
        np.testing.assert_array_equal(source.read(np.arange(8)), features())


@pytest.mark.parametrize(
    ("container", "key", "labels_key", "message"),
    [
        (".safetensors", "__metadata__", "labels", "no array called '__metadata__'"),
        (".npz", "labels", "labels", "two arrays .* called 'labels'"),
        (".h5", "labels/x", "labels", "no array 'labels/x' beside an array 'labels'"),
    ],
)
def test_names_that_cannot_be_in_one_archive(
    tmp_path: Path, container: str, key: str, labels_key: str, message: str
) -> None:
    spec = spec_of(features(), features_key=key, labels_key=labels_key)
    store = krstore.encode(Held(spec, features(), LABELS, None), tmp_path / "a.krs", "raw")
    with pytest.raises(ArchiveError, match=message):
        krstore.decode(store, tmp_path / f"b{container}")
    assert [path.name for path in tmp_path.iterdir()] == ["a.krs"]


def test_a_group_called_ids_leaves_the_name_to_the_features(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["ids/x"] = features()
    store = krstore.encode(open_archive(tmp_path / "a.h5", features_key="ids/x"), tmp_path / "a.krs", "raw")
    with h5py.File(krstore.decode(store)) as file:
        assert file["source_ids"][()].tolist() == list(range(8))
        np.testing.assert_array_equal(file["ids/x"], features())


def test_text_objects_and_compounds_are_refused(tmp_path: Path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["text"] = ["a", "b"]
        file["pairs"] = np.zeros(3, [("a", "f4"), ("b", "f4")])
        file["nothing"] = h5py.Empty("f4")
        file.create_dataset("ragged", (3,), h5py.vlen_dtype(np.float32))
    for key in ("text", "pairs", "nothing", "ragged"):
        with pytest.raises(ArchiveError, match=key):
            open_archive(tmp_path / "a.h5", features_key=key)
    for values in (np.array(["a", "b"]), np.zeros(3, [("a", "f4")]), np.array([1, None], object)):
        np.save(tmp_path / "a.npy", values, allow_pickle=True)
        np.savez(tmp_path / "a.npz", features=values)
        for name in ("a.npy", "a.npz"):
            with pytest.raises(ArchiveError, match=r"element type|never unpickles"):
                open_archive(tmp_path / name)


def test_fortran_order_is_refused(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.asfortranarray(features()))
    with pytest.raises(ArchiveError, match=r"Fortran order; save np\.ascontiguousarray"):
        open_archive(tmp_path / "a.npy")


def test_a_bare_pickle_is_not_read(tmp_path: Path):
    (tmp_path / "a.npy").write_bytes(b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00.")
    with pytest.raises(ArchiveError, match=r"cannot be read as \.npy"):
        open_archive(tmp_path / "a.npy")


def test_unknown_kind_folder_and_absent_file(tmp_path: Path):
    (tmp_path / "a.tar").touch()
    for name, message in (("a.tar", r"unknown kind of archive '\.tar'; expected .*\.h5"), ("no.h5", "is not a file")):
        with pytest.raises(ArchiveError, match=message):
            open_archive(tmp_path / name)
    with pytest.raises(ArchiveError, match="is not a file"):
        open_archive(tmp_path)


@pytest.mark.parametrize("axis", [2, -1, "first", 0.5, True])
def test_an_impossible_channel_axis_is_named(tmp_path: Path, axis: Any):
    with h5py.File(save(tmp_path / "a.h5", features=features()), "a") as file:
        file.attrs["channel_axis"] = axis
    with pytest.raises(ArchiveError, match=r"channel_axis is .*axes 0 to 1"):
        open_archive(tmp_path / "a.h5")


# HDF5 that leads elsewhere


def external_link(file: h5py.File, other: Path) -> None:
    file["features"] = h5py.ExternalLink(other.name, "/features")


def external_group(file: h5py.File, other: Path) -> None:
    file["away"] = h5py.ExternalLink(other.name, "/")
    file["features"] = h5py.SoftLink("/away/features")


def external_storage(file: h5py.File, other: Path) -> None:
    other.with_suffix(".bin").write_bytes(features().tobytes())
    file.create_dataset("features", (8, 3, 4), "f4", external=[(other.with_suffix(".bin"), 0, 384)])


def virtual(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout((8, 3, 4), "f4")
    layout[:] = h5py.VirtualSource(other, "features", (8, 3, 4))
    file.create_virtual_dataset("features", layout)


@pytest.mark.parametrize("leave", [external_link, external_group, external_storage, virtual])
def test_other_files_are_read_only_on_trust(tmp_path: Path, leave: Callable[[h5py.File, Path], None]):
    other = save(tmp_path / "other.h5", features=features())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        leave(file, other)
    for key in ("features", None):
        with pytest.raises(ArchiveError, match=r"another file|other files.*--trust"):
            open_archive(tmp_path / "a.h5", features_key=key)
    np.testing.assert_array_equal(read_all(open_archive(tmp_path / "a.h5", trust=True)), features())


def test_labels_of_another_file_are_refused_too(tmp_path: Path):
    save(tmp_path / "other.h5", labels=LABELS)
    with h5py.File(save(tmp_path / "a.h5", features=features()), "a") as file:
        file["labels"] = h5py.ExternalLink("other.h5", "/labels")
    with pytest.raises(ArchiveError, match="'labels' is a link to another file"):
        open_archive(tmp_path / "a.h5")
    np.testing.assert_array_equal(open_archive(tmp_path / "a.h5", trust=True).labels, LABELS)


@pytest.mark.parametrize("link", [h5py.ExternalLink("pipe", "/"), h5py.SoftLink("/nowhere")])
def test_a_link_called_step0_is_not_followed(tmp_path: Path, link: Any) -> None:
    os.mkfifo(tmp_path / "pipe")  # whoever opens it waits for ever
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["step0"] = link
    with pytest.raises(ArchiveError, match="no array 'features'; it has: none"):
        open_archive(tmp_path / "a.h5")


def test_claims_that_nothing_in_the_file_stands_for(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("features", (1 << 34, 1), "u1", chunks=(1 << 20, 1))
        file.create_dataset("labels", (1 << 34,), "i8", chunks=(1 << 20,))
    with pytest.raises(ArchiveError, match="'features' claims 17,179,869,184 entries in a file of"):
        open_archive(tmp_path / "a.h5")
    with zipfile.ZipFile(save(tmp_path / "a.npz", features=features()), "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("attributes.json", b" " * (17 << 20))
    with pytest.raises(ArchiveError, match=r"attributes\.json claims 17,825,792 bytes; expected at most"):
        open_archive(tmp_path / "a.npz")


def test_circles_and_broken_links_end(tmp_path: Path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"] = h5py.SoftLink("/b")
        file["b"] = h5py.SoftLink("/features")
        group = file.create_group("g")
        group["self"] = group
        file["gone"] = h5py.SoftLink("/nowhere")
        file["g/x"] = features()
    for key in ("features", "gone", "g/x/deeper"):
        with pytest.raises(ArchiveError):
            open_archive(tmp_path / "a.h5", features_key=key)
    np.testing.assert_array_equal(read_all(open_archive(tmp_path / "a.h5", features_key="g/self/self/x")), features())


# Damage


def use(path: Path) -> None:
    """Do with a file what an encode does."""
    source = open_archive(path)
    for _ in chunks(source, 100):
        pass


@pytest.mark.parametrize("container", [*CONTAINERS, ".npy", "compressed"])
def test_truncated_anywhere_is_an_archive_error(tmp_path: Path, container: str):
    path = tmp_path / ("a.npz" if container == "compressed" else f"a{container}")
    write = np.savez_compressed if container == "compressed" else save
    write(path, features=features(), labels=LABELS) if container != ".npy" else save(path, features=features())
    whole = path.read_bytes()
    for length in {*range(0, len(whole), max(1, len(whole) // 60)), *range(min(80, len(whole))), len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(ArchiveError):
            use(path)


@pytest.mark.parametrize("container", [*CONTAINERS, ".npy", "compressed"])
def test_damaged_anywhere_never_is_another_error(tmp_path: Path, container: str):
    path = tmp_path / ("a.npz" if container == "compressed" else f"a{container}")
    write = np.savez_compressed if container == "compressed" else save
    write(path, features=features(), labels=LABELS) if container != ".npy" else save(path, features=features())
    whole = path.read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            use(path)
        except ArchiveError:
            refused += 1
    assert refused > 10


def safetensors(path: Path, header: Any, data: bytes = bytes(32), length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def tensor(begin: int, end: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [8] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"features": tensor(0, 32), "labels": tensor(0, 32)},
        {"features": tensor(0, 32), "other": tensor(16, 32, [4])},
        {"features": tensor(0, 16, [4])},
        {"features": tensor(4, 32, [7])},
        {"features": tensor(0, 64, [16])},
        {"features": tensor(0, -32, [-8])},
        {"features": tensor(0, 32, [-2, -4])},
        {"features": tensor(0, 32, [4])},
        {"features": tensor(0, 32, [8.5])},
        {"features": tensor(0, 32, [2**70, 0])},
        {"features": tensor(0, 32, ["8"])},
        {"features": tensor(0, 32, dtype="F8_E4M3")},
        {"features": tensor(0, 32, dtype="object")},
        {"features": {"dtype": "F32", "shape": [8]}},
        {"features": {"dtype": "F32", "shape": [8], "data_offsets": [0]}},
        {"features": None},
        {"features": tensor(0, 32), "__metadata__": [1]},
        {"features": tensor(0, 32), "__metadata__": {"krstore": "{"}},
        {"features": tensor(0, 32), "__metadata__": {"krstore": "3"}},
        {},
        [],
        "text",
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_hostile_safetensors_headers(tmp_path: Path, header: Any):
    with pytest.raises(ArchiveError):
        open_archive(safetensors(tmp_path / "a.safetensors", header))


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**63, 2**64 - 1])
def test_hostile_safetensors_header_lengths(tmp_path: Path, length: int):
    path = safetensors(tmp_path / "a.safetensors", {"features": tensor(0, 32)}, length=length)
    with path.open("r+b") as file:
        file.truncate(3 << 30)  # sparse: the claimed 2 GB header would fit
    with pytest.raises(ArchiveError):
        open_archive(path)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000000000,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -8)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (8.0,)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '<f4', 'fortran_order': False}",
        "__import__('os').system('true')",
        "(" * 5000,
        "'",
        "",
    ],
)
def test_hostile_npy_headers(tmp_path: Path, header: str):
    for version in (1, 2, 3, 9):
        text = header.encode() + b"\n"
        head = struct.pack("<H" if version == 1 else "<I", len(text))
        content = b"\x93NUMPY" + bytes([version, 0]) + head + text + bytes(32)
        (tmp_path / "a.npy").write_bytes(content)
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("features.npy", content)
        for name in ("a.npy", "a.npz"):
            with pytest.raises(ArchiveError):
                open_archive(tmp_path / name)


# The pass over a source


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_values_that_are_not_finite_are_named_by_sample(tmp_path: Path, dtype: str, value: float):
    x = features((64, 8, 8), dtype, samples=1500)
    x[1234, 3, 2, 1] = value
    spec = spec_of(x)
    with write_archive(tmp_path / "a.safetensors", spec, {}) as writer:
        writer.append(x)
    with pytest.raises(ArchiveError, match=f"sample 1234 holds a {'NaN' if np.isnan(value) else 'infinite'} value"):
        scan(open_archive(tmp_path / "a.safetensors"))


class InMemory:
    """A source that holds its samples."""

    def __init__(self, values: np.ndarray[Any, Any], channel_axis: int | None) -> None:
        self.spec = spec_of(values, channel_axis=channel_axis)
        self.labels = self.task = None
        self._values = values

    def read(self, ids: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, Any]:
        return self._values[ids]


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_channel_statistics_are_numpys(data: st.DataObject):
    dtype = np.dtype(data.draw(st.sampled_from([np.float16, np.float32, np.float64, np.uint8, ml_dtypes.bfloat16])))
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=6, max_side=5))
    base = np.uint8 if dtype == np.uint8 else np.float32
    elements = st.integers(0, 255) if base is np.uint8 else st.floats(-1000, 1000, width=32)
    x = data.draw(hnp.arrays(base, shape, elements=elements)).astype(dtype)
    axis = data.draw(st.integers(0, len(shape) - 2)) if len(shape) > 1 else None
    stats = scan(InMemory(x, axis))
    exact = x.astype(np.float64)
    rest = tuple(i for i in range(x.ndim) if axis is None or i != axis + 1)
    np.testing.assert_array_equal(stats.minimum, np.atleast_1d(exact.min(rest)))
    np.testing.assert_array_equal(stats.maximum, np.atleast_1d(exact.max(rest)))
    np.testing.assert_allclose(stats.mean, np.atleast_1d(exact.mean(rest)), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(stats.variance, exact.var(), rtol=1e-9, atol=1e-9)


def test_hash_is_of_the_values_not_of_the_container(tmp_path: Path):
    x = features((3, 4), samples=2000)
    with h5py.File(tmp_path / "big.h5", "w") as file:
        file.create_dataset("features", data=x, dtype=">f4", compression="gzip")
    paths = [save(tmp_path / f"a{container}", features=x) for container in [*CONTAINERS, ".npy"]]
    assert len({scan(open_archive(path)).sha256 for path in [*paths, tmp_path / "big.h5"]}) == 1


# Memory


def big(path: Path, gigabytes: float) -> Path:
    """Write an archive of one sparse array, (N, 64, 8, 8) float32."""
    samples = int(gigabytes * (1 << 30)) // 16384
    spec = SourceSpec(samples=samples, shape=(64, 8, 8), dtype="float32", channel_axis=0)
    if path.suffix == ".npy":
        np.lib.format.open_memmap(path, "w+", np.float32, (samples, *spec.shape))
        return path
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            file.create_dataset("features", (samples, *spec.shape), np.float32, dcpl=early)
        return path
    header = {"features": {"dtype": "F32", "shape": [samples, *spec.shape], "data_offsets": [0, spec.bytes]}}
    safetensors(path, header, b"")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + spec.bytes)
    return path


@pytest.mark.parametrize("container", [".npy", ".h5", ".safetensors"])
def test_streaming_never_holds_the_file(tmp_path: Path, container: str):
    path = big(tmp_path / f"a{container}", 0.3)
    code = f"""
        import resource, sys
        import numpy as np
        import krstore.archives.hdf5
        from krstore.archives import open_archive
        from krstore.source import chunks

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

        before = peak()
        source = open_archive({str(path)!r})
        total = sum(part.nbytes for _, part in chunks(source))
        shuffled = np.random.default_rng(0).permutation(source.spec.samples)[:2000]
        source.read(shuffled[:500])
        assert total == source.spec.bytes > 300 << 20, total
        print(peak() - before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100, f"{done.stdout} MB"


@contextlib.contextmanager
def no_change(path: Path) -> Iterator[None]:
    before = path.read_bytes()
    yield
    assert path.read_bytes() == before


def test_reading_changes_no_file(tmp_path: Path):
    for container in [*CONTAINERS, ".npy"]:
        path = save(tmp_path / f"a{container}", features=features())
        with no_change(path):
            use(path)


@pytest.mark.parametrize("container", [".h5", ".npz"])
def test_text_of_half_characters(tmp_path: Path, container: str) -> None:
    path, text = save(tmp_path / f"a{container}", features=features()), '{"\\ud800": {"deep": ["\\udce9"]}}'
    if container == ".h5":
        with h5py.File(path, "r+") as file:
            file.attrs["krstore_json"] = text
    else:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("attributes.json", text)
    store = krstore.encode(path, tmp_path / "a.krs", "raw")
    assert store.source.attributes == {r"\ud800": {"deep": [r"\udce9"]}}


def test_text_that_is_not_utf_8(tmp_path: Path) -> None:
    path = save(tmp_path / "a.h5", features=features())
    with h5py.File(path, "r+") as file:
        file.attrs.create("by", b"Ren\xe9", dtype=h5py.string_dtype())
    assert open_archive(path).spec.attributes["by"] == r"Ren\udce9"
    assert len(krstore.encode(path, tmp_path / "a.krs", "raw")) == 8
