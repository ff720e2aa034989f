"""What a run keeps of its samples, through which codec, within which budget, and after a kill."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learning_runs import CLASSES, TRAIN, config
from torch import nn

from krstore.errors import TargetUnreachableError, UsageError
from krstore.learning.data import Dataset, open_dataset
from krstore.learning.harness import learn
from krstore.learning.learners.kril import KRIL
from krstore.learning.recall import Recall
from krstore.learning.streams import Batch
from krstore.memory import Memory
from krstore.progress import _Silent
from krstore.source import Source
from krstore.testing import ArraySource


class Noted(_Silent):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)


@pytest.mark.parametrize("through", [True, False])
def test_new_samples_pass_through_a_lossy_codec(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, through: bool
) -> None:
    settings = {"memory.codec": "transform", "memory.preset": "linear", "memory.ratio": 8.0, "flip": False}
    batches: list[Batch] = []
    original = KRIL.losses
    monkeypatch.setattr(KRIL, "losses", lambda self, batch: (batches.append(batch), original(self, batch))[1])
    learn(config(data, "kril", **settings, **{"memory.through_codec": through}), tmp_path / "run")
    memory = Memory(tmp_path / "run" / "memory")
    stored = {row.tobytes() for row in memory.samples.read(np.arange(len(memory)))}
    last = batches[-1]
    new = [row.numpy().tobytes() in stored for row in last.x[~last.replayed]]
    old = [row.numpy().tobytes() in stored for row in last.x[last.replayed]]
    assert all(old)
    assert all(new) if through else not any(new)
    assert torch.equal(last.replayed, last.y < 4)


def test_new_samples_pass_through_the_codec_of_lossy_exemplars(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "memory.codec": "transform", "memory.preset": "linear", "memory.budget": 12_000, "memory.per_class": 9,
        "flip": False,
    }  # fmt: skip
    seen: dict[bool, dict[int, set[bytes]]] = {True: {}, False: {}}
    original = KRIL.losses

    def watch(self: KRIL, batch: Batch) -> dict[str, torch.Tensor]:
        for x, y in zip(batch.x, batch.y, strict=True):
            seen[through].setdefault(int(y), set()).add(x.numpy().tobytes())
        return original(self, batch)

    monkeypatch.setattr(KRIL, "losses", watch)
    raw = {row.tobytes() for row in open_dataset(data).train.read(np.arange(CLASSES * TRAIN))}
    for through in (True, False):
        folder = tmp_path / str(through)
        learn(config(data, "kril", **settings, **({} if through else {"memory.through_codec": False})), folder)
        assert not list(folder.glob("passed*"))
    assert len(seen[True][4]) == len(seen[False][4]) == TRAIN
    assert seen[False][4] <= raw
    assert not seen[True][4] & raw
    assert seen[True][0] >= seen[False][0] & raw, "the first task is learnt from as it is"


@pytest.mark.parametrize(("update", "stores"), [("append", 3), ("merge", 1), ("double", 2)])
def test_a_krnet_teaches_itself_or_stands_beside_others(data: Path, tmp_path: Path, update: str, stores: int) -> None:
    settings = {"memory.codec": "krnet", "memory.ratio": 2.0, "memory.update": update}
    settings["memory.settings"] = {"iterations": 3, "c0": 4, "d0": 8}
    result = learn(config(data, "kril", **settings), tmp_path / "run")
    memory = Memory(tmp_path / "run" / "memory")
    assert [entry.codec for entry in memory.manifest.stores] == ["krnet"] * stores
    assert memory.classes == dict.fromkeys(range(CLASSES), TRAIN)
    assert result.finished


@pytest.mark.parametrize("update", ["merge", "double"])
def test_a_merge_that_is_interrupted_is_done_anew(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: str
) -> None:
    """Between taking a task's samples as they are and reciting them."""
    settings = {"memory.codec": "krnet", "memory.ratio": 2.0, "memory.update": update}
    settings["memory.settings"] = {"iterations": 3, "c0": 4, "d0": 8}
    whole = learn(config(data, "kril", **settings), tmp_path / "whole")
    original, calls = Memory.merge, itertools.count()

    def once(self: Memory, *arguments: Any, **options: Any) -> Any:
        if not next(calls):
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    monkeypatch.setattr(Memory, "merge", once)
    with pytest.raises(KeyboardInterrupt):
        learn(config(data, "kril", **settings), tmp_path / "run")
    assert "raw" in {entry.codec for entry in Memory(tmp_path / "run" / "memory").manifest.stores}
    result = learn(config(data, "kril", **settings), tmp_path / "run")
    assert [step.confusion for step in result.steps] == [step.confusion for step in whole.steps]
    assert [step.memory_bytes for step in result.steps] == [step.memory_bytes for step in whole.steps]


def test_a_task_that_the_first_ones_decoder_cannot_hold_gets_its_own(data: Path, tmp_path: Path) -> None:
    settings = {"memory.codec": "transform", "memory.preset": "linear", "memory.ratio": 4.0, "order": "ascending"}
    given = open_dataset(data)
    for scale in (1, 20):
        train, test = (_scaled(source, scale) for source in (given.train, given.test))
        notes = Noted()
        result = learn(
            config(data, "kril", **settings), tmp_path / str(scale), dataset=Dataset.of(train, test), progress=notes
        )
        assert result.finished
        assert sum("these samples get a decoder of their own" in note for note in notes.said) == (scale > 1)


def _scaled(source: Source, scale: float) -> ArraySource:
    """Return samples, those of the last task's classes times a factor."""
    assert source.labels is not None
    features = source.read(np.arange(source.spec.samples))
    return ArraySource(features * np.where(source.labels >= 40, scale, 1)[:, None, None, None], source.labels)


def test_a_budget_is_kept_at_every_step(data: Path, tmp_path: Path) -> None:
    settings = {"memory.codec": "transform", "memory.preset": "linear", "memory.budget": 30_000}
    result = learn(config(data, "kril", **settings), tmp_path / "run")
    for step, share in zip(result.steps, (1 / 3, 2 / 3, 1), strict=True):
        assert 0.5 * share * 30_000 < step.memory_bytes <= share * 30_000


def test_exemplars_fill_a_budget_and_old_classes_make_room(data: Path, tmp_path: Path) -> None:
    result = learn(config(data, "replay", **{"memory.budget": 30_000}), tmp_path / "run")
    assert all(step.memory_bytes > share * 30_000 for step, share in zip(result.steps, (1 / 3, 2 / 3), strict=False))
    assert all(step.memory_bytes <= 30_000 for step in result.steps)
    assert result.steps[-1].memory_bytes > 30_000 - CLASSES * 4 * 6 * 6 * 4  # one more of each class is too much
    counts = [*Memory(tmp_path / "run" / "memory").classes.values()]
    assert 0.8 * max(counts) < min(counts) <= max(counts) < TRAIN
    as_ratio = learn(config(data, "replay", **{"memory.ratio": 4.0}), tmp_path / "ratio")
    assert 0.7 / 4 < as_ratio.steps[-1].memory_bytes / (CLASSES * TRAIN * 4 * 4 * 36) <= 1 / 4
    with pytest.raises(TargetUnreachableError, match=r"random reached .* bytes at best"):
        learn(config(data, "replay", **{"memory.budget": 9}), tmp_path / "other")


def test_a_step_whose_samples_could_not_be_taken_is_not_trained_again(data: Path, tmp_path: Path) -> None:
    whole = learn(config(data, "replay"), tmp_path / "whole")
    take, forward, taken, shown = Recall.take, nn.BatchNorm2d.forward, [], []

    def fail(self: Recall, number: int, samples: Any, network: Any) -> None:
        taken.append(number)
        if taken.count(number) == 1:
            raise KeyboardInterrupt
        take(self, number, samples, network)

    def count(self: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
        shown.append(self.training)
        return forward(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.BatchNorm2d, "forward", count)
        learn(config(data, "replay"), tmp_path / "counted")
        batches = sum(shown)
        patch.setattr(Recall, "take", fail)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                learn(config(data, "replay"), tmp_path / "run")
        again = learn(config(data, "replay"), tmp_path / "run")
    assert sum(shown) == 2 * batches
    assert not list((tmp_path / "run").glob("trained*"))
    assert [step.confusion for step in again.steps] == [step.confusion for step in whole.steps]


@pytest.mark.parametrize("selection", ["herding", "random", "kmeans"])
def test_a_fixed_total_makes_room_for_new_classes(data: Path, tmp_path: Path, selection: str) -> None:
    folder, kept = tmp_path / "run", []
    original = Recall.take

    def watch(self: Recall, *arguments: Any) -> None:
        original(self, *arguments)
        kept.append({label: ids_of(self.memory, label) for label in self.memory.classes})

    def ids_of(memory: Memory, label: int) -> list[bytes]:
        rows = np.flatnonzero(memory.samples.labels == label)
        return [values.tobytes() for values in memory.samples.read(rows)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recall, "take", watch)
        learn(config(data, "replay", **{"memory.exemplars": selection, "memory.total": 24}), folder)
    assert [sum(map(len, step.values())) for step in kept] == [24, 24, 24]
    for before, after in itertools.pairwise(kept):
        for label, samples in before.items():
            assert after[label] == samples[: len(after[label])]


def test_exemplars_may_be_stored_with_loss(data: Path, tmp_path: Path) -> None:
    settings = {"memory.exemplars": "herding", "memory.codec": "transform", "memory.preset": "linear"}
    result = learn(
        config(data, "replay", **settings, **{"memory.per_class": 20, "memory.ratio": 8.0}), tmp_path / "run"
    )
    memory = Memory(tmp_path / "run" / "memory")
    assert memory.classes == dict.fromkeys(range(CLASSES), 20)
    assert {entry.codec for entry in memory.manifest.stores} == {"herding"}
    assert result.steps[-1].memory_bytes <= CLASSES * TRAIN * 4 * 4 * 36 / 8


def test_exemplars_of_each_class(data: Path, tmp_path: Path) -> None:
    result = learn(config(data, "replay", **{"memory.per_class": 5}), tmp_path / "run")
    assert Memory(tmp_path / "run" / "memory").classes == dict.fromkeys(range(CLASSES), 5)
    assert result.finished


def test_a_run_whose_memory_is_lost_does_not_go_on(data: Path, tmp_path: Path) -> None:
    learn(config(data, "replay"), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "memory")
    with pytest.raises(UsageError, match="has lost 6 of the classes"):
        learn(config(data, "replay"), tmp_path / "run")


def test_a_step_done_again_does_not_take_its_own_samples_for_old_ones(data: Path, tmp_path: Path) -> None:
    """As after a kill between taking a task into the memory and saving the step."""
    whole = learn(config(data, "replay", **{"memory.per_class": 5}), tmp_path / "whole")
    original, calls = Recall.take, []

    def twice(self: Recall, number: int, samples: Any, network: Any) -> None:
        calls.append(number)
        original(self, number, samples, network)
        if number == 1 and calls.count(1) == 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recall, "take", twice)
        with pytest.raises(KeyboardInterrupt):
            learn(config(data, "replay", **{"memory.per_class": 5}), tmp_path / "run")
        again = learn(config(data, "replay", **{"memory.per_class": 5}), tmp_path / "run")
    assert [step.confusion for step in again.steps] == [step.confusion for step in whole.steps]


def test_raw_new_samples_beside_decoded_old_ones_are_told_of(data: Path, tmp_path: Path) -> None:
    notes = Noted()
    settings = {"memory.codec": "transform", "memory.preset": "linear", "memory.ratio": 4, "steps": 1, "base": 3}
    learn(config(data, "replay", **settings, **{"memory.through_codec": False}), tmp_path / "raw", progress=notes)
    assert sum("do not pass through the lossy codec" in line for line in notes.said) == 1
    notes.said.clear()
    learn(config(data, "replay", **settings), tmp_path / "through", progress=notes)
    assert not any("lossy codec" in line for line in notes.said)


def test_a_ratio_out_of_reach_says_whose_it_is(data: Path, tmp_path: Path) -> None:
    settings = {"memory.codec": "transform", "memory.ratio": 1000.0}
    with pytest.raises(TargetUnreachableError, match="task 0: of the memory's ratio, 1 bytes are for its 60 samples"):
        learn(config(data, "replay", **settings), tmp_path / "run")
