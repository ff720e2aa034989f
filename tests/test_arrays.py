"""Samples in memory as a source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import krstore
from krstore.errors import ArchiveError, UsageError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_tensors_and_arrays_become_stores(tmp_path: Path, dtype: torch.dtype) -> None:
    features, labels = torch.arange(48).view(6, 2, 4).to(dtype), torch.tensor([1, 1, 1, 2, 2, 9])
    source = krstore.ArraySource(features, labels, task=[0, 0, 0, 1, 1, 1], attributes={"layer": "conv1"})
    assert repr(source) == f"ArraySource(6 samples of (2, 4) {str(dtype).removeprefix('torch.')})"
    store = krstore.encode(source, tmp_path / "x.krs", "raw")
    torch.testing.assert_close(store.decode_tensor(np.arange(6)), features)
    assert store.labels is not None
    assert store.task is not None
    assert (store.labels.tolist(), store.task.tolist()) == (labels.tolist(), [0, 0, 0, 1, 1, 1])
    assert (store.source.channel_axis, store.source.attributes) == (1, {"layer": "conv1"})
    arrays = krstore.ArraySource(store.read(slice(0, 6)), labels.numpy(), channel_axis=0)
    assert arrays.spec.channels == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((3, 2)), [1, 2]), r"labels have shape \(2,\) and type int64; expected \(3,\) integers"),
        ((np.zeros((3, 2)), [1.0, 2.0, 3.0]), r"labels have shape \(3,\) and type float64; expected \(3,\) integers"),
        ((np.zeros((3, 2), int),), "element type 'int64', expected one of float16"),
        ((np.zeros((2, 3)), np.array([1, 2**63], np.uint64)), "labels hold 9223372036854775808, above the 64-bit"),
        ((1.0,), r"a single number; expected samples \(N, \*shape\)"),
    ],
)
def test_arrays_that_are_no_samples(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ArchiveError, match=message):
        krstore.ArraySource(*arguments)


def test_what_is_no_source_is_told_how_to_become_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a Tensor is no source; krstore\.ArraySource\(features, labels\) or"):
        krstore.encode(torch.zeros(3, 2), tmp_path / "x.krs", "raw")  # type: ignore[arg-type]


def test_arrays_of_another_byte_order(tmp_path: Path) -> None:
    store = krstore.encode(krstore.ArraySource(np.array([1, 2, 3], ">f4")), tmp_path / "x.krs", "raw")
    np.testing.assert_array_equal(store.read([0, 1, 2]), np.array([1, 2, 3], np.float32))


def test_a_channel_axis_is_one_of_the_samples() -> None:
    with pytest.raises(ArchiveError, match=r"channel_axis=7: a sample of shape \(3, 4\) has axes 0 to 1"):
        krstore.ArraySource(np.zeros((2, 3, 4)), channel_axis=7)
