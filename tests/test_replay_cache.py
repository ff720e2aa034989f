"""What a replay keeps in memory of what it has unpacked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import krstore
from krstore.store.blocks import BlockReader
from krstore.testing import example_source


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> list[BlockReader]:
    """The readers of all samples that are opened; `unpacked` is how many samples each has unpacked."""
    found: list[BlockReader] = []
    begin, group = BlockReader.__init__, BlockReader._group

    def began(self: Any, *arguments: Any) -> None:
        begin(self, *arguments)
        self.unpacked = 0
        found.append(self)

    def unpacked(self: Any, numbers: Any) -> Any:
        values = group(self, numbers)
        self.unpacked += len(values)
        return values

    monkeypatch.setattr(BlockReader, "__init__", began)
    monkeypatch.setattr(BlockReader, "_group", unpacked)
    return found


def small(codec: str, path: Path, seed: int = 0) -> krstore.Store:
    options: dict[str, Any] = {} if codec == "raw" else {"ratio": 8.0}
    if codec in ("autoencoder", "krnet"):
        options["settings"] = {"iterations": 3}
    if codec == "transform":
        options["preset"] = "linear"
    return krstore.encode(example_source(400, seed=seed), path, codec, device="cpu", **options)


@pytest.mark.parametrize(
    ("codec", "kind"), [("raw", "f"), ("pq", "u"), ("transform", "i"), ("autoencoder", "i"), ("krnet", "f")]
)
def test_what_is_cached_is_unpacked_once_and_small(
    tmp_path: Path, codec: str, kind: str, readers: list[BlockReader]
) -> None:
    """Integers where the codec has some; krnet has no codes of samples by default, so nothing to unpack."""
    path = small(codec, tmp_path / "x.krs").path
    readers.clear()
    replay = krstore.open(path, device="cpu").replay(batch_size=64)
    first = torch.cat([x for x, _ in replay])
    if codec == "krnet":
        assert readers == []
        return
    (reader,) = readers
    assert reader.unpacked >= 400
    before = reader.unpacked
    list(replay)
    assert reader.unpacked == before
    kept = reader._cache.values
    assert (len(kept), kept.dtype.kind) == (400, kind)
    assert kind == "f" or kept.nbytes <= first.numel() * first.element_size() // 2


@pytest.mark.parametrize("codec", ["raw", "pq", "transform", "autoencoder"])
def test_the_cache_changes_nothing_but_the_reading(tmp_path: Path, codec: str) -> None:
    path = small(codec, tmp_path / "x.krs").path
    epochs = {}
    for limit in (0, 3000, 1 << 30):
        replay = krstore.open(path, device="cpu").replay(batch_size=64, cache_bytes=limit)
        epochs[limit] = torch.cat([x for _ in range(2) for x, _ in replay])
    assert torch.equal(epochs[0], epochs[3000])
    assert torch.equal(epochs[0], epochs[1 << 30])


@pytest.mark.parametrize("limit", [3_000, 20_000])
def test_the_caches_of_a_memory_keep_to_one_limit_together(
    limit: int, tmp_path: Path, readers: list[BlockReader]
) -> None:
    memory = krstore.Memory.create(tmp_path / "memory", device="cpu")
    memory.append(*(small("pq", tmp_path / f"{seed}.krs", seed) for seed in range(3)))
    readers.clear()
    for _ in memory.replay(batch_size=64, cache_bytes=limit):
        pass
    kept = [reader._cache.values.nbytes for reader in readers if reader.unpacked]
    assert len(kept) == 3
    assert limit * 0.9 < sum(kept) <= limit
