"""Sources: classes, channels, pieces. What `scan` measures is tested with the archives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krstore.errors import ArchiveError
from krstore.source import (
    Array,
    Ids,
    SourceSpec,
    chunks,
    class_indices,
    default_channel_axis,
    from_channels_first,
    scan,
    to_channels_first,
)
from krstore.testing import ArraySource


@given(labels=st.lists(st.integers(-3, 3) | st.sampled_from([-(2**63), 2**63 - 1]), max_size=60))
@settings(max_examples=100, deadline=None)
def test_class_indices_are_a_partition(labels: list[int]) -> None:
    found = class_indices(np.array(labels, np.int64))
    assert list(found) == sorted(set(labels))
    for label, ids in found.items():
        assert ids.tolist() == [place for place, own in enumerate(labels) if own == label]


def test_class_indices_without_labels() -> None:
    assert class_indices(None) == {}


@pytest.mark.parametrize(
    ("shape", "axis", "channels"),
    [((), None, 1), ((7,), 0, 7), ((5, 7), 1, 7), ((3, 4, 5), 0, 3), ((4, 5, 3), 2, 3), ((2, 3, 4, 5), 0, 2)],
)
def test_channels_first_and_back(shape: tuple[int, ...], axis: int | None, channels: int) -> None:
    x = np.random.default_rng(0).normal(size=(6, *shape))
    moved = to_channels_first(x, axis)
    assert moved.shape == (6, channels, x[0].size // channels)
    if axis is not None:
        np.testing.assert_array_equal(moved[:, 1], np.take(x, 1, axis + 1).reshape(6, -1))
    np.testing.assert_array_equal(from_channels_first(moved, shape, axis), x)


def test_channel_axes_by_rank() -> None:
    assert [default_channel_axis(rank) for rank in range(6)] == [None, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("chunk_bytes", [1, 24, 25, 100, 10**9])
def test_chunks_are_all_samples_in_order(chunk_bytes: int) -> None:
    source = ArraySource(np.arange(60, dtype=np.float32).reshape(20, 3))
    pieces = list(chunks(source, chunk_bytes))
    assert len(pieces) == -(-20 // max(1, chunk_bytes // 12)) if chunk_bytes < 240 else 1
    np.testing.assert_array_equal(np.concatenate([ids for ids, _ in pieces]), np.arange(20))
    np.testing.assert_array_equal(np.concatenate([values for _, values in pieces]), source.features)


def test_spec_counts() -> None:
    spec = SourceSpec(samples=10, shape=(4, 5, 3), dtype="float16", channel_axis=2)
    assert (spec.elements, spec.sample_bytes, spec.bytes, spec.channels) == (60, 120, 1200, 3)
    assert SourceSpec(samples=2, shape=(), dtype="float64", channel_axis=None).bytes == 16


class Empty:
    """A source of nothing, or of samples without elements."""

    labels: Ids | None = None
    task: Ids | None = None

    def __init__(self, samples: int, shape: tuple[int, ...]) -> None:
        self.spec = SourceSpec(samples=samples, shape=shape, dtype="float32", channel_axis=0)

    def read(self, ids: Ids) -> Array:
        raise AssertionError("nothing to read")


@pytest.mark.parametrize(("samples", "shape", "said"), [(0, (3,), "N = 0"), (3, (0, 4), r"shape \(0, 4\) hold no")])
def test_nothing_to_encode(samples: int, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ArchiveError, match=said):
        scan(Empty(samples, shape))
