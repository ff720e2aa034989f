"""Runs of learners that live on exemplars: what is kept, trained, adjusted, and told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learning_runs import CLASSES, KilledAfter, body, config
from safetensors import safe_open
from safetensors.torch import save_file

from krstore.backbones import resnet8
from krstore.errors import UsageError
from krstore.learning.budget import Budget
from krstore.learning.building import build_run_config
from krstore.learning.harness import learn
from krstore.learning.learners import get_learner
from krstore.learning.network import Network, stored_bytes
from krstore.learning.recall import Recall
from krstore.learning.results import read_result
from krstore.memory import Memory

METHODS = ("lwf", "lwf-mc", "icarl", "bic", "lucir", "wa")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_with_exemplars_and_its_bytes_are_told(method: str, data: Path, tmp_path: Path) -> None:
    settings = {"memory.codec": None, "memory.exemplars": "herding", "memory.per_class": 5}
    rate = 1.0 if method in ("icarl", "lwf-mc") else 0.05
    quick = {"epochs": 8, "milestones": (), "learning_rate": rate, "batch_size": 16}
    result = learn(config(data, method, base_training=quick, training=quick, **settings), tmp_path / "run")
    assert Memory(tmp_path / "run" / "memory").classes == dict.fromkeys(range(CLASSES), 5)
    assert result.steps[-1].accuracy > 1.5 / CLASSES
    assert result.steps[-1].memory_bytes == Memory(tmp_path / "run" / "memory").bytes
    assert read_result(tmp_path / "run").steps[-1].other_accuracy.keys() == ({"cnn"} if method == "icarl" else set())


def test_exemplars_may_be_trained_by_the_network_that_learns(data: Path, tmp_path: Path) -> None:
    settings = {
        "memory.codec": None, "memory.exemplars": "mnemonics", "memory.per_class": 5,
        "memory.exemplar_settings": {"epochs": 1, "steps": 2},
    }  # fmt: skip
    learn(config(data, "lucir", **settings), tmp_path / "run")
    memory = Memory(tmp_path / "run" / "memory")
    assert {entry.codec for entry in memory.manifest.stores} == {"mnemonics"}
    assert memory.classes == dict.fromkeys(range(CLASSES), 5)
    assert all(store.quality.mse > 0 for store in memory.stores)


@pytest.mark.parametrize("exemplars", ["random", "mnemonics"])
def test_old_exemplars_are_adjusted_once_a_task_and_new_ones_are_not(
    exemplars: str,
    data: Path,
    tmp_path: Path,
) -> None:
    settings = {
        "memory.codec": None, "memory.exemplars": exemplars, "memory.per_class": 6, "training.epochs": 0,
        "memory.adjust": {"epochs": 2, "rate": 3.0},
    }  # fmt: skip
    if exemplars == "mnemonics":
        settings["memory.exemplar_settings"] = {"epochs": 1}
    kept: list[dict[int, Any]] = []
    original = Recall.adjust

    def watch(self: Recall, *arguments: Any) -> None:
        before = dict(enumerate(self.memory.samples.read(np.arange(len(self.memory)))))
        original(self, *arguments)
        after = self.memory.samples.read(np.arange(len(self.memory)))
        kept.append({int(label): [] for label in self.memory.samples.labels})
        for row, label in enumerate(self.memory.samples.labels):
            kept[-1][int(label)].append(bool((before[row] == after[row]).all()))
        generation = self.memory.manifest.generation
        original(self, *arguments)
        assert self.memory.manifest.generation == generation  # as after a kill

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recall, "adjust", watch)
        learn(config(data, "lucir", **settings), tmp_path / "run")
    assert Memory(tmp_path / "run" / "memory").classes == dict.fromkeys(range(CLASSES), 6)
    for step, same in enumerate(kept):
        for label, unchanged in same.items():
            assert all(unchanged) if label >= 2 * step else not any(unchanged)


def test_weight_transfer_leaves_convolutions_and_trains_their_factors(data: Path, tmp_path: Path) -> None:
    settings = {"memory.codec": None, "memory.per_class": 6, "transfer": True}
    states = []
    original = Network.forward

    def watch(self: Network, x: torch.Tensor) -> torch.Tensor:
        convolution: Any = self.body[0]
        if hasattr(convolution, "parametrizations"):
            weight = convolution.parametrizations.weight
            states.append((weight.original.detach().clone(), weight[0].scale.detach().clone()))
        return original(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "forward", watch)
        whole = learn(config(data, "wa", **settings), tmp_path / "whole")
    assert states
    assert all(torch.equal(weight, states[0][0]) for weight, _ in states)
    assert states[0][1].eq(1).all()
    assert not states[-1][1].eq(1).any()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recall, "take", _stopping(2))
        with pytest.raises(KeyboardInterrupt):
            learn(config(data, "wa", **settings), tmp_path / "run")
    again = learn(config(data, "wa", **settings), tmp_path / "run")
    assert [step.confusion for step in again.steps] == [step.confusion for step in whole.steps]


def test_a_budget_counts_the_factors_of_weight_transfer_before_there_are_any(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(resnet8(), 64)
    before, added = stored_bytes(network), network.scale_bytes
    network.transfer()
    assert (stored_bytes(network) - before, network.scale_bytes) == (added, 0)
    reckoned: list[int] = []
    left = Budget.left
    monkeypatch.setattr(Budget, "left", lambda self, own: (reckoned.append(own), left(self, own))[1])
    for transfer in (False, True):
        settings = {"memory.codec": None, "memory.exemplars": "herding", "transfer": transfer}
        learn(config(data, "replay", budget=10_000, **settings), tmp_path / str(transfer))
    plain, scaled = reckoned[: len(reckoned) // 2], reckoned[len(reckoned) // 2 :]
    assert {own - other for own, other in zip(scaled, plain, strict=True)} == {4 * 4 * 8}


def test_a_method_without_a_memory_says_that_options_of_one_are_left_aside(data: Path, tmp_path: Path) -> None:
    class Noted(KilledAfter):
        def note(self, message: str) -> None:
            said.append(message)

    said: list[str] = []
    learn(config(data, "finetune", **{"memory.exemplars": "herding"}), tmp_path, progress=Noted(9))
    assert any("finetune has no memory" in message for message in said)


def _stopping(number: int) -> Any:
    original = Recall.take

    def take(self: Recall, task: int, *arguments: Any) -> None:
        if task == number:
            raise KeyboardInterrupt
        original(self, task, *arguments)

    return take


def test_finetuning_is_on_balanced_exemplars_alone(data: Path, tmp_path: Path) -> None:
    once = {"epochs": 1, "milestones": (), "learning_rate": 0.05, "batch_size": 1000}
    settings = {"memory.codec": None, "memory.per_class": 6, "finetuning": once}
    seen: list[list[int]] = []
    original = Network.forward

    def watch(self: Network, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            seen.append([len(x)])
        return original(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "forward", watch)
        learn(config(data, "wa", **settings), tmp_path / "run")
    assert [4 * 6] in seen
    assert [6 * 6] in seen


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory.adjust": {}}, "adjust trains exemplars; name some"),
        ({"memory.codec": "transform", "memory.exemplar_settings": {"candidates": 3}}, "exemplar_settings are of exem"),
        ({"memory.adjust": {}, "memory.per_class": 3, "memory.codec": "transform"}, "codec transform is lossy"),
        ({"memory.per_class": 3, "memory.update": "merge"}, "would choose among exemplars again"),
        ({"memory.per_class": 3, "memory.exemplar_settings": {"codec": "raw"}}, "say memory.codec instead"),
        ({"memory.total": 5}, "total=5 is less than an exemplar of each of 6 classes"),
        ({"method": "ewc", "transfer": True}, "ewc holds on to weights by their names"),
        ({"method": "finetune", "finetuning": {}}, "this run of finetune has none"),
    ],
)
def test_what_cannot_be(settings: dict[str, Any], message: str, data: Path, tmp_path: Path) -> None:
    method = settings.get("method", "lucir")
    with pytest.raises(UsageError, match=message):
        learn(config(data, **{"memory.codec": None, **settings, "method": method}), tmp_path / "run")


def test_presets_give_way_to_what_is_asked_for() -> None:
    def memory(method: str, preset: str, **own: Any) -> Any:
        given = {f"memory.{name}": value for name, value in own.items()}
        return build_run_config(method, {"data": "x", **given}, preset=preset).memory

    asked = memory("icarl", "paper", per_class=20)
    assert (asked.exemplars, asked.per_class, asked.total) == ("herding", 20, None)
    asked = memory("icarl", "fast", codec="raw")
    assert (asked.exemplars, asked.codec, asked.per_class) == ("herding", "raw", 20)
    asked = memory("icarl", "fast", budget=10**6)
    assert (asked.exemplars, asked.budget, asked.per_class) == ("herding", 10**6, None)
    asked = memory("icarl", "fast", budget=10**6, codec="transform")
    assert (asked.exemplars, asked.codec, asked.per_class) == ("herding", "transform", 20)
    asked = memory("kril", "fast", exemplars="herding")
    assert (asked.exemplars, asked.codec, asked.ratio, asked.settings) == ("herding", None, None, {})


@pytest.mark.parametrize(("method", "trained"), [("wa", False), ("icarl", True), ("lucir", True)])
def test_a_given_classifier_is_used_by_those_who_can(method: str, trained: bool, data: Path, tmp_path: Path) -> None:
    given = Network(body(), 8)
    given.grow(2)
    state = {**given.body.state_dict(), **{f"fc.{name}": value for name, value in given.head.state_dict().items()}}
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "weights.safetensors")
    before = next(iter(given.body.parameters())).detach().clone()
    settings = {
        "memory.codec": None,
        "memory.per_class": 4,
        "training.epochs": 0,
        "weights": str(tmp_path / "weights.safetensors"),
    }
    learn(config(data, method, **settings), tmp_path / "run")
    (path,) = (tmp_path / "run").glob("step*.safetensors")
    with safe_open(path, "pt") as file:
        after = file.get_tensor("network/body.0.weight")
    assert torch.equal(before, after) != trained


@pytest.mark.parametrize("method", ["lwf", "lwf-mc"])
def test_lwf_needs_no_memory(method: str, data: Path, tmp_path: Path) -> None:
    result = learn(config(data, method, **{"memory.codec": None}), tmp_path / "run")
    assert [step.memory_bytes for step in result.steps] == [0, 0, 0]
    assert not (tmp_path / "run" / "memory").exists()


def test_bic_goes_on_with_its_pairs(data: Path, tmp_path: Path) -> None:
    settings = {"memory.codec": None, "memory.exemplars": "random", "memory.per_class": 10}
    whole = learn(config(data, "bic", **settings), tmp_path / "whole")
    original, steps = get_learner("bic").calibrate, []

    def stop(self: Any, samples: Any) -> None:
        steps.append(1)
        if len(steps) == 2:
            raise KeyboardInterrupt
        original(self, samples)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(get_learner("bic"), "calibrate", stop)
        with pytest.raises(KeyboardInterrupt):
            learn(config(data, "bic", **settings), tmp_path / "run")
        again = learn(config(data, "bic", **settings), tmp_path / "run")
    assert [step.confusion for step in again.steps] == [step.confusion for step in whole.steps]
    assert whole.steps[-1].held_bytes == {"pairs": CLASSES * 8}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("preset", ["paper", "fast"])
def test_presets_name_exemplars_where_the_paper_has_them(method: str, preset: str) -> None:
    memory = build_run_config(method, {"data": "x"}, preset=preset).memory
    assert memory.asked_for == (not method.startswith("lwf"))
    assert memory.codec is None
