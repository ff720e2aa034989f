"""Class-incremental runs: data, scenarios, what learners may see, bytes, and going on after a kill."""

from __future__ import annotations

import copy
import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import h5py
import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from krstore.errors import ArchiveError, ConfigError, TargetUnreachableError, UnknownNameError, UsageError
from krstore.learning import harness
from krstore.learning.config import RunConfig, build_run_config
from krstore.learning.data import open_dataset
from krstore.learning.evaluation import evaluated, probed
from krstore.learning.harness import learn
from krstore.learning.learners import LEARNERS, get_learner
from krstore.learning.learners._importance import mean_over_samples, penalty
from krstore.learning.learners.base import cross_entropy
from krstore.learning.learners.ewc import EWC
from krstore.learning.learners.finetune import Finetune
from krstore.learning.learners.gfr import GFR, apart, gradient_penalty
from krstore.learning.learners.kril import KRIL, auxiliary_loss
from krstore.learning.learners.mas import MAS
from krstore.learning.network import Network, build_network
from krstore.learning.recall import Recall
from krstore.learning.report import report
from krstore.learning.results import RunResult, read_result
from krstore.learning.scenario import Scenario, Task
from krstore.learning.streams import Augmentation, Batch
from krstore.memory import Memory
from krstore.progress import _Silent

CLASSES, TRAIN, TEST = 6, 30, 10
LABELS = np.array([3, 8, 20, 21, 40, 77])


def body() -> nn.Module:
    """A network without a classifier on samples of 4x6x6."""
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def samples(each: int, seed: int, dtype: str = "float32") -> tuple[Any, Any]:
    """Return samples (N, 4, 6, 6) whose channels tell the class, and labels with gaps, shuffled."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(CLASSES, 4, 1, 1))
    labels = rng.permutation(np.repeat(np.arange(CLASSES), each))
    x = np.maximum(2 * centres[labels] + 0.5 * rng.normal(size=(len(labels), 4, 6, 6)), 0)
    return x.astype(dtype), LABELS[labels]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, each, seed in (("train", TRAIN, 0), ("test", TEST, 1)):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["features"], file["labels"] = samples(each, seed)
    return folder


def config(data: Path, method: str = "finetune", **settings: Any) -> RunConfig:
    quick = {"epochs": 2, "milestones": (), "learning_rate": 0.05, "batch_size": 16}
    given = {
        "data": str(data), "model": "test_learning:body", "base": 2, "steps": 2, "crop": 0, "base_training": quick,
        "training": quick, "device": "cpu", "memory.codec": "raw", **settings,
    }  # fmt: skip
    return build_run_config(method, given)


# data


def test_a_folder_of_archives(data: Path) -> None:
    dataset = open_dataset(data)
    assert (dataset.train.spec.samples, dataset.test.spec.samples) == (CLASSES * TRAIN, CLASSES * TEST)
    same = open_dataset(data / "train.h5", data / "test.h5")
    np.testing.assert_array_equal(same.train.labels, dataset.train.labels)
    with pytest.raises(UsageError, match=r"name the test set too \(--test\)"):
        open_dataset(data / "train.h5")
    (data / "test.h5").unlink()
    with pytest.raises(UsageError, match="has no training and test set"):
        open_dataset(data)


def test_sets_that_do_not_belong_together(tmp_path: Path, data: Path) -> None:
    x, y = samples(5, 2)
    for name, arrays, message in (
        ("a", {"features": x}, "the test set has no labels"),
        (
            "b",
            {"features": x[:, :3], "labels": y},
            r"training samples are \(4, 6, 6\) float32, test samples \(3, 6, 6\)",
        ),
        ("c", {"features": x[y != 40], "labels": y[y != 40]}, "class 40 is only in one"),
    ):
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(ArchiveError, match=message):
            open_dataset(data / "train.h5", tmp_path / f"{name}.npz")


@pytest.mark.parametrize(("fine", "skip"), [(True, 2), (False, 1)])
def test_the_published_binary_files_of_cifar(tmp_path: Path, fine: bool, skip: int) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / ("cifar-100-binary" if fine else "cifar-10-batches-bin")
    folder.mkdir()
    names = ["train", "test"] if fine else [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    written = {}
    for name in names:
        images, labels = rng.integers(0, 256, (20, 3072), np.uint8), np.arange(20, dtype=np.uint8) % 10
        heads = np.stack([labels + 50, labels], 1)[:, -skip:]
        (folder / f"{name}.bin").write_bytes(np.concatenate([heads, images], 1).tobytes())
        written[name] = images
    dataset = open_dataset(tmp_path)
    expected = np.concatenate([written[name] for name in names[:-1]]).reshape(-1, 3, 32, 32)
    assert dataset.train.spec.samples == len(expected)
    ids = rng.integers(0, len(expected), 30)
    np.testing.assert_array_equal(dataset.train.read(ids), expected[ids])
    np.testing.assert_array_equal(dataset.test.labels, np.arange(20) % 10)
    (folder / f"{names[-1]}.bin").write_bytes(b"x" * 5000)
    with pytest.raises(ArchiveError, match="which are not records of"):
        open_dataset(tmp_path)


# scenario


def test_tasks_follow_the_order_and_labels_are_places_in_it(data: Path) -> None:
    dataset = open_dataset(data)
    scenario = Scenario(dataset, order="3", base=2, steps=2)
    assert [(task.first, task.stop) for task in scenario.tasks] == [(0, 2), (2, 4), (4, 6)]
    ordered = [name for task in scenario.tasks for name in task.names]
    assert sorted(ordered) == LABELS.tolist()
    for task in scenario.tasks:
        own = scenario.train(task.number)
        assert set(own.labels) == set(range(task.first, task.stop))  # type: ignore[arg-type]
        original = dataset.train.read(np.flatnonzero(np.isin(dataset.train.labels, task.names)))
        np.testing.assert_array_equal(own.read(np.arange(own.spec.samples)), original)
    assert scenario.test_until(1).spec.samples == 4 * TEST
    assert scenario.train_until(2).spec.samples == 6 * TRAIN


def test_equal_tasks_and_few_samples(data: Path) -> None:
    dataset = open_dataset(data)
    scenario = Scenario(dataset, order="ascending", base=0, steps=3, per_class=4, seed=1)
    assert [task.names for task in scenario.tasks] == [(3, 8), (20, 21), (40, 77)]
    assert np.bincount(scenario.train(1).labels).tolist() == [0, 0, 4, 4]  # type: ignore[arg-type]
    for base, steps, message in (
        (6, 1, "expected 0 to 5"),
        (1, 2, "5 classes do not divide into 2"),
        (0, 0, "at least 1"),
    ):
        with pytest.raises(UsageError, match=message):
            Scenario(dataset, base=base, steps=steps)


def test_validation_samples_are_not_trained_on(data: Path) -> None:
    dataset = open_dataset(data)
    scenario = Scenario(dataset, base=2, steps=2, per_class=20, validation=5, seed=3)
    trained, tested = scenario.train_until(2), scenario.test_until(2)
    assert np.bincount(trained.labels).tolist() == [20] * CLASSES  # type: ignore[arg-type]
    assert np.bincount(tested.labels).tolist() == [5] * CLASSES  # type: ignore[arg-type]
    rows = {
        name: {x.tobytes() for x in own.read(np.arange(own.spec.samples)) if x.any()}
        for name, own in (("train", trained), ("test", tested))
    }
    assert not rows["train"] & rows["test"]
    everything = {x.tobytes() for x in dataset.train.read(np.arange(CLASSES * TRAIN))}
    assert rows["test"] < everything
    with pytest.raises(UsageError, match="a class has 30 samples, and none would be left"):
        Scenario(dataset, base=2, steps=2, validation=30)


def test_crops_move_and_flips_mirror() -> None:
    x = torch.arange(2 * 3 * 5 * 5.0).reshape(2, 3, 5, 5) + 1
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(50):
        out = Augmentation(False, 1)(x, generator)
        padded = nn.functional.pad(x, (1, 1, 1, 1))
        for one, whole in zip(out, padded, strict=True):
            places = [(i, j) for i in range(3) for j in range(3) if torch.equal(one, whole[:, i : i + 5, j : j + 5])]
            assert len(places) == 1
            seen.add(places[0])
    assert len(seen) == 9
    flipped = [bool(torch.equal(Augmentation(True, 0)(x[:1], generator), x[:1].flip(3))) for _ in range(50)]
    assert 10 < sum(flipped) < 40


# config


def test_options_come_from_preset_file_and_settings_in_this_order(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('order = "icarl"\n[training]\nepochs = 7\nlearning_rate = 0.3\n')
    built = build_run_config("kril", {"data": "x", "training.epochs": "9"}, preset="paper", file=file)
    assert (built.order, built.training.epochs, built.training.learning_rate) == ("icarl", 9, 0.3)
    assert built.training.milestones == built.base_training.milestones == (80, 120)
    assert (built.memory.codec, built.memory.preset, built.memory.update) == ("krnet", "paper-cifar", "double")
    assert built.memory.through_codec is False
    other = build_run_config("kril", {"data": "x", "memory.codec": "raw"}, preset="fast")
    assert (other.memory.ratio, other.memory.preset) == (None, None)
    assert build_run_config("kril", {"data": "x"}, preset="fast").memory.ratio == 100


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"epoch": 3}, ConfigError, "unknown field `epoch`"),
        ({"training.epochs": "many"}, ConfigError, "training.epochs: Expected `int`"),
        ({"base": -1}, ConfigError, "base: Expected `int` >= 0"),
        ({"preset": "quick"}, UnknownNameError, "unknown preset 'quick'"),
        ({"file": "nothing.toml"}, UsageError, "nothing.toml cannot be read"),
    ],
)
def test_options_that_are_wrong(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    own = {name: settings.pop(name) for name in ("preset", "file") if name in settings}
    with pytest.raises(error, match=message):
        build_run_config("kril", {"data": "x", **settings}, **own)


def test_every_learner_is_registered_under_its_name() -> None:
    for name in LEARNERS:
        learner = get_learner(name)
        assert learner.name == name
        assert learner.summary
    with pytest.raises(UnknownNameError, match="Did you mean 'kril'"):
        get_learner("krill")


# losses, by hand


def two_weights() -> Network:
    """A network without a body: logits are W x + b of two numbers."""
    network = Network(nn.Identity(), 2)
    network.grow(2)
    with torch.no_grad():
        network.head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        network.head.bias.zero_()
    return network


X, Y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])


def test_the_fisher_information_is_of_single_samples() -> None:
    """Gradient of sample i: (p_i - onehot) x_i^T; squared, then averaged, not the other way round."""
    fisher = mean_over_samples(
        two_weights(), lambda count=None: iter([(X, Y)]), lambda z, y: nn.functional.cross_entropy(z, y[None]),
        lambda g: g.square(), None,
    )  # fmt: skip
    p1, p2 = torch.softmax(torch.tensor([1.0, 0.0]), 0), torch.softmax(torch.tensor([0.0, 2.0]), 0)
    target = torch.tensor([1.0, 0.0])
    expected = (torch.outer(p1 - target, X[0]).square() + torch.outer(p2 - target, X[1]).square()) / 2
    torch.testing.assert_close(fisher["head.weight"], expected)
    torch.testing.assert_close(fisher["head.bias"], ((p1 - target).square() + (p2 - target).square()) / 2)


def test_mas_takes_the_absolute_gradient_of_the_squared_norm_of_each_sample() -> None:
    """Of ||W x + b||^2: 2 z x^T. The second sample's bias gradient has the other sign and must not cancel."""
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    omega = mean_over_samples(
        two_weights(), lambda count=None: iter([(x, Y)]), lambda z, y: z.square().sum(), lambda g: g.abs(), None
    )
    torch.testing.assert_close(omega["head.bias"], torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(omega["head.weight"], torch.tensor([[2.0, 0.0], [0.0, 0.0]]))


def test_penalties_and_how_importances_are_kept() -> None:
    weights = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]])}
    anchor, importance = {"w": torch.tensor([[0.0, 2.0], [1.0, 4.0]])}, {"w": torch.tensor([[1.0, 5.0], [0.5, 7.0]])}
    assert penalty(weights, anchor, importance).item() == 1 * 1 + 0.5 * 4
    task = Task(1, 3, 4, (9,))
    for learner, expected in ((EWC({"clamp": 0.4}, two_weights(), 0), 0.75), (MAS({}, two_weights(), 0), 1.0)):
        measured = learner.importance(task, lambda count=None: iter([(X, Y)]))
        learner.load_state({name: torch.ones_like(value) for name, value in measured.items()})
        again = learner.importance(task, lambda count=None: iter([(X, Y)]))
        own = 0.25 if learner.name == "ewc" else 1.0
        torch.testing.assert_close(
            again["head.weight"], expected + own * measured["head.weight"] / (0.25 if own < 1 else 1)
        )
    assert EWC({"strength": 10}, two_weights(), 0).pull(torch.tensor(3.0)).item() == 15
    assert MAS({"strength": 10}, two_weights(), 0).pull(torch.tensor(3.0)).item() == 30
    ewc = EWC({"clamp": 0.01}, two_weights(), 0).importance(Task(0, 0, 2, (1, 2)), lambda count=None: iter([(X, Y)]))
    assert max(float(value.max()) for value in ewc.values()) == pytest.approx(0.01)


def test_a_cross_entropy_over_new_classes_leaves_old_ones_alone() -> None:
    logits = torch.tensor([[9.0, 1.0, 2.0], [9.0, 3.0, 1.0]])
    y = torch.tensor([1, 2])
    expected = nn.functional.cross_entropy(logits[:, 1:], y - 1)
    torch.testing.assert_close(cross_entropy(logits, y, 1, "new"), expected)
    torch.testing.assert_close(cross_entropy(logits, y, 1, "all"), nn.functional.cross_entropy(logits, y))
    mixed = torch.tensor([0, 2])
    torch.testing.assert_close(cross_entropy(logits, mixed, 1, "new"), nn.functional.cross_entropy(logits, mixed))


def test_the_auxiliary_loss_is_a_mean_of_squared_distances() -> None:
    assert auxiliary_loss(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 4.0]])).item() == 15


def test_kril_teaches_only_what_is_recited_and_slows_the_body_down() -> None:
    network = Network(nn.Linear(2, 2), 2)
    network.grow(3)
    learner = KRIL({"auxiliary": 3.0}, network, 0)
    learner.begin_step(Task(1, 2, 3, (0,)))
    before = network.body(X).detach()
    with torch.no_grad():
        network.body.bias += torch.tensor([0.0, 2.0])  # type: ignore[operator]
    x = torch.cat([X, 5 * X])
    batch = Batch(x, torch.tensor([0, 1, 2, 2]), torch.tensor([True, True, False, False]))
    terms = learner.losses(batch)
    assert terms["aux"].item() == pytest.approx(3 * 4)
    torch.testing.assert_close(terms["ce"], nn.functional.cross_entropy(network(x), batch.y))
    torch.testing.assert_close(before + torch.tensor([0.0, 2.0]), network.body(X).detach())
    groups = learner.parameter_groups(Task(1, 2, 3, (0,)))
    assert [group.get("rate", 1.0) for group in groups] == [0.05, 1.0]
    assert [group.get("rate", 1.0) for group in learner.parameter_groups(Task(0, 0, 2, (0, 1)))] == [1.0, 1.0]
    learner.begin_step(Task(0, 0, 2, (0, 1)))
    assert "aux" not in learner.losses(batch)


def test_the_gradient_penalty_of_a_linear_critic() -> None:
    """Its gradient is the same everywhere: (||w|| - 1)^2."""
    weight = torch.tensor([3.0, 4.0])
    critic = LinearCritic(weight)
    assert gradient_penalty(critic, torch.randn(5, 2), torch.randn(5, 2), torch.zeros(5)).item() == pytest.approx(16)


class LinearCritic(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def test_gfr_weighs_its_terms_by_the_old_classes_of_each_new_one() -> None:
    network = Network(nn.Linear(2, 2), 2)
    network.grow(2)
    learner = GFR({"epochs": 1, "hidden": 4, "replayed": 6, "distillation": 0.5}, network, 0)
    learner.begin_step(Task(0, 0, 2, (0, 1)))
    batch = Batch(X, torch.tensor([0, 1]), torch.tensor([False, False]))
    assert learner.losses(batch).keys() == {"ce"}
    learner.end_step(Task(0, 0, 2, (0, 1)), lambda count=None: iter([(X, torch.tensor([0, 1]))]))
    network.grow(3)
    learner.begin_step(Task(1, 2, 3, (2,)))
    before = network.body(X).detach()
    with torch.no_grad():
        network.body.bias += torch.tensor([3.0, 0.0])  # type: ignore[operator]
    batch = Batch(X, torch.tensor([2, 2]), torch.tensor([False, False]))
    torch.manual_seed(0)
    terms = learner.losses(batch)
    k = 2.0
    assert terms["distillation"].item() == pytest.approx(0.5 * k * np.sqrt(2 * 9), rel=1e-5)
    torch.testing.assert_close(terms["ce"], nn.functional.cross_entropy(network(X), batch.y) / (k + 1))
    torch.manual_seed(0)
    features, labels = learner._generated(6, X.device)
    assert labels.max() < 2
    expected = k * nn.functional.cross_entropy(network.head(features), labels) / (k + 1)
    torch.testing.assert_close(terms["replay"], expected)
    learner.train_mode()
    assert not network.training
    state = {name: value.clone() for name, value in learner.state().items()}
    again = GFR({"epochs": 1, "hidden": 4}, network, 0)
    again.load_state(state)
    assert all(torch.equal(state[name], value) for name, value in again.state().items())
    assert before.shape == (2, 2)


def test_the_classifier_keeps_what_it_has_when_it_grows() -> None:
    network = two_weights()
    before = network(X).detach()
    network.grow(5)
    torch.testing.assert_close(network(X)[:, :2], before)
    assert network(X).shape == (2, 5)


def test_weights_bring_their_classifier(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    example = torch.randn(3, 4, 6, 6)
    state = {**body().state_dict(), "fc.weight": torch.randn(2, 8), "fc.bias": torch.randn(2)}
    save_file(state, tmp_path / "w.safetensors")
    network = build_network("test_learning:body", tmp_path / "w.safetensors", example)
    assert network.classes == 2
    torch.testing.assert_close(network.head.weight.detach(), state["fc.weight"])
    with pytest.raises(UsageError, match="fails on samples of shape"):
        build_network("test_learning:body", None, torch.randn(3, 5, 6, 6))


# runs


@pytest.mark.parametrize("method", [name for name in LEARNERS if name != "memo"])  # its network must have stages
def test_every_method_runs_learns_and_counts_its_bytes(data: Path, tmp_path: Path, method: str) -> None:
    own = {"gfr": {"epochs": 2, "hidden": 16}, "m2kd": {"layer": "2", "pruning": False}}
    result = learn(config(data, method, options=own.get(method, {})), tmp_path / "run")
    assert result.finished
    assert [len(step.by_task) for step in result.steps] == [1, 2, 3]
    assert result.steps[0].accuracy > 0.6
    last = result.steps[-1]
    assert np.sum(last.confusion) == CLASSES * TEST
    assert np.trace(last.confusion) / np.sum(last.confusion) == pytest.approx(last.accuracy)
    summary = result.summary()
    assert summary["last"] == last.accuracy
    memory = tmp_path / "run" / "memory"
    assert memory.exists() == (get_learner(method).rehearsal.value in ("memory", "optional"))
    if memory.exists():
        assert last.memory_bytes == Memory(memory).bytes
        assert Memory(memory).classes == dict.fromkeys(range(CLASSES), TRAIN)
    weights = sum(p.numel() for p in (*body().parameters(), *nn.Linear(8, CLASSES).parameters()))
    held = {"bic": 2 * CLASSES, "ewc": weights, "mas": weights, "gfr": (200 + 1 + CLASSES) * 16 + 16 * 17 + 17 * 8}
    if method == "m2kd":  # two networks, of 2 and 4 classes, with auxiliary classifiers, and the last one's
        norm = 4 * 2 * 8 + 8  # its running statistics, and a counter of 8 bytes
        sizes = [4 * sum(p.numel() for p in (*body().parameters(), *two.parameters(), *two.parameters())) + norm
                 for two in (nn.Linear(8, 2), nn.Linear(8, 4))]  # fmt: skip
        assert last.held_bytes == {"snapshots": sum(sizes), "auxiliary": 4 * 9 * CLASSES}
    else:
        assert sum(last.held_bytes.values()) == 4 * held.get(method, 0)


def test_rehearsal_forgets_less(data: Path, tmp_path: Path) -> None:
    longer = {"epochs": 8, "milestones": (), "learning_rate": 0.05, "batch_size": 16}
    runs = {
        method: learn(config(data, method, training=longer, **{"options.logits": "all"}), tmp_path / method).summary()
        for method in ("finetune", "replay", "joint")
    }
    assert runs["finetune"]["last"] + 0.2 < min(runs["replay"]["last"], runs["joint"]["last"])
    assert runs["finetune"]["forgetting"] > runs["replay"]["forgetting"]


def test_a_learner_never_sees_samples_of_other_tasks(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[int]] = []
    original = get_learner("finetune").losses

    def watch(self: Any, batch: Batch) -> Any:
        seen[-1].update(batch.y.tolist())
        return original(self, batch)

    monkeypatch.setattr("krstore.learning.learners.finetune.Finetune.losses", watch)
    monkeypatch.setattr(
        "krstore.learning.learners.finetune.Finetune.begin_step", lambda self, task: seen.append(set()), raising=False
    )
    learn(config(data), tmp_path / "run")
    assert seen == [{0, 1}, {2, 3}, {4, 5}]


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory.per_class": 3, "memory.total": 9}, "per_class=3 and total=9; give one of them"),
        ({"memory.total": 5}, "total=5 is less than an exemplar of each of 6 classes"),
        ({"memory.exemplars": "raw"}, "exemplars=raw is no codec of exemplars"),
        ({"memory.codec": "transform", "memory.ratio": 3.0, "memory.budget": 9}, "give one of them"),
        ({"options": {"auxilliary": 1}}, "options of kril: .*auxilliary"),
        ({"base": 3, "steps": 2}, "do not divide"),
        ({"training": {"learning_rate": 1e30, "milestones": ()}}, "no longer finite"),
    ],
)
def test_runs_that_cannot_be(data: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        learn(config(data, "kril", **settings), tmp_path / "run")


def test_the_same_seed_gives_the_same_results(data: Path, tmp_path: Path) -> None:
    first, same, other = (
        learn(config(data, "replay", seed=seed), tmp_path / f"run{n}") for n, seed in enumerate((1, 1, 2))
    )
    assert [step.confusion for step in first.steps] == [step.confusion for step in same.steps]
    assert [step.confusion for step in first.steps] != [step.confusion for step in other.steps]


KILLED = """
import sys
sys.path.insert(0, sys.argv[3])
import msgspec
from krstore.learning.config import RunConfig
from krstore.learning.evaluation import evaluated, probed
from krstore.learning.harness import learn
class Progress:
    def note(self, message): print(message, flush=True)
    def task(self, *a, **k):
        from krstore.progress import SILENT
        return SILENT.task(*a, **k)
learn(msgspec.json.decode(sys.argv[1], type=RunConfig), sys.argv[2], progress=Progress())
"""


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(data: Path, tmp_path: Path) -> None:
    built = config(data, "kril", **{"memory.codec": "transform", "memory.preset": "linear", "memory.ratio": 8.0})
    whole = learn(built, tmp_path / "whole")
    arguments = [msgspec.json.encode(built).decode(), str(tmp_path / "killed"), str(Path(__file__).parent)]
    for wait in (1, 0):
        with subprocess.Popen([sys.executable, "-c", KILLED, *arguments], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            while wait and "step 0" not in process.stdout.readline():
                pass
            time.sleep(0.02 * wait)
            process.send_signal(signal.SIGKILL if wait else 0)
            process.stdout.read()
    ended = read_result(tmp_path / "killed")
    assert ended.finished
    assert [step.confusion for step in ended.steps] == [step.confusion for step in whole.steps]
    assert [step.memory_bytes for step in ended.steps] == [step.memory_bytes for step in whole.steps]


def test_forward_transfer_is_against_a_network_of_random_weights(data: Path, tmp_path: Path) -> None:
    plain = learn(config(data, "replay"), tmp_path / "plain")
    beside = learn(config(data, "replay", alone=True), tmp_path / "beside")
    assert [step.confusion for step in beside.steps] == [step.confusion for step in plain.steps]
    alone = [step.alone for step in beside.steps]
    assert alone[0] is None
    own = np.diagonal(beside.matrix)
    expected = np.mean([own[1] - alone[1], own[2] - alone[2]])  # type: ignore[operator]
    assert beside.summary()["forward_transfer"] == pytest.approx(expected)
    assert "forward_transfer" not in plain.summary()


def test_what_is_frozen_stays_after_the_first_task(data: Path, tmp_path: Path) -> None:
    states = {}
    original = Network.grow

    def watch(self: Network, classes: int) -> None:
        states[classes] = {name: value.clone() for name, value in self.body.state_dict().items()}
        original(self, classes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "grow", watch)
        learn(config(data, "replay", frozen_until="1"), tmp_path / "run")
    assert states[4].keys() == states[6].keys()
    changed = {name for name, value in states[6].items() if not torch.equal(value, states[4][name])}
    assert changed == set(), "the body is a convolution and its norm, both frozen"
    with pytest.raises(UnknownNameError, match="unknown module to freeze 'conv9'"):
        learn(config(data, "replay", frozen_until="conv9"), tmp_path / "other")


def test_a_folder_is_of_one_run(data: Path, tmp_path: Path) -> None:
    learn(config(data), tmp_path / "run")
    assert learn(config(data), tmp_path / "run").finished
    with pytest.raises(UsageError, match=r"is of another run \(seed: 0 there, 1 here\)"):
        learn(config(data, seed=1), tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(json.dumps({"config": 1}))
    with pytest.raises(Exception, match="malformed"):
        read_result(tmp_path / "run")


def test_images_are_normalised(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, each, seed in (("train", 6, 0), ("test", 3, 1)):
        x, y = samples(each, seed)
        np.savez(folder / f"{name}.npz", features=(40 * x).clip(0, 255).astype(np.uint8), labels=y)
    built = config(folder, "replay", mean=(0.5,), std=(0.25,), crop=1)
    assert learn(built, tmp_path / "run").finished


# reports


def test_a_report_of_runs(data: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        learn(config(data, "replay", seed=seed), tmp_path / "runs" / f"raw{seed}")
    learn(config(data, "replay", **{"memory.per_class": 3}), tmp_path / "runs" / "few")
    learn(config(data), tmp_path / "finetune")
    groups = report([tmp_path / "runs", tmp_path / "finetune"], tmp_path / "report", tsne=True)
    assert [(group.name, len(group.runs)) for group in groups] == [
        ("replay 3 a class", 1), ("replay", 2), ("finetune", 1)
    ]  # fmt: skip
    for group in groups:
        last = [run.steps[-1].accuracy for run in group.runs]
        assert group.figures()["last"][0] == pytest.approx(np.mean(last))
        assert group.classes == [2, 4, 6]
    facts = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [one["bytes"] for one in facts] == [group.bytes for group in groups]
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("<svg") == 2 + 3 + 2, "finetune has no memory to draw"
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert {path.name for path in (tmp_path / "report").iterdir()} >= {"accuracy.svg", "bytes.svg", "confusion_0.svg"}


def test_runs_that_cannot_be_reported(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no finished run"):
        report([tmp_path], tmp_path / "report")
    learn(config(data), tmp_path / "a")
    learn(config(data, steps=4), tmp_path / "b")
    with pytest.raises(UsageError, match="tasks of different sizes"):
        report([tmp_path / "a", tmp_path / "b"], tmp_path / "report")


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(data: Path, tmp_path: Path) -> None:
    quick = {"epochs": 1, "milestones": (), "batch_size": 16}
    for number, rate in enumerate((0.05, 0.01)):
        learn(config(data, training={**quick, "learning_rate": rate}), tmp_path / f"rate{number}")
    learn(config(data, training={**quick, "learning_rate": 0.05, "gamma": 0.5}), tmp_path / "gamma")
    groups = report([tmp_path, tmp_path / "rate0", tmp_path / "rate0"], tmp_path / "report")
    assert sorted((group.name, len(group.runs)) for group in groups) == [
        ("finetune learning rate 0.01", 1),
        ("finetune learning rate 0.05 (1)", 1),
        ("finetune learning rate 0.05 (2)", 1),
    ]


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


def test_upper_bounds_keep_what_they_see(data: Path, tmp_path: Path) -> None:
    result = learn(config(data, "joint"), tmp_path / "run")
    assert [step.memory_bytes for step in result.steps] == [classes * TRAIN * 4 * 4 * 36 for classes in (2, 4, 6)]


def test_a_rate_takes_the_place_of_the_presets() -> None:
    memory = build_run_config("kril", {"data": "x", "memory.budget": 5_000_000}, preset="fast").memory
    assert (memory.codec, memory.preset, memory.ratio, memory.budget) == ("transform", "fast", None, 5_000_000)


def test_joint_begins_each_step_where_the_first_task_left_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(body(), 8)
    network.grow(2)
    joint = get_learner("joint")({"anew": True}, network, 0)
    joint.begin_step(Task(0, 0, 2, ("0", "1")))
    joint.end_step(Task(0, 0, 2, ("0", "1")), lambda count=None: iter(()))
    left = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(1)
    network.grow(4)
    joint.begin_step(Task(1, 2, 4, ("2", "3")))
    state = network.state_dict()
    assert state["head.weight"].shape == (4, 8)
    for name, value in left.items():
        assert torch.equal(state[name][: len(value)] if value.ndim else state[name], value), name

    run = config(data, "joint", **{"options.anew": True})
    whole = learn(run, tmp_path / "whole")
    real = harness.save_result

    def killed(folder: Path, result: RunResult) -> None:
        real(folder, result)
        if len(result.steps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(harness, "save_result", killed)
    with pytest.raises(KeyboardInterrupt):
        learn(run, tmp_path / "cut")
    monkeypatch.undo()
    assert [s.confusion for s in learn(run, tmp_path / "cut").steps] == [s.confusion for s in whole.steps]
    with pytest.raises(ConfigError, match="transfer=true: joint holds on to weights"):
        learn(config(data, "joint", **{"options.anew": True, "transfer": True}), tmp_path / "transfer")


def test_the_oracle_is_kril_with_all_as_it_was(data: Path, tmp_path: Path) -> None:
    oracle = learn(config(data, "kril-oracle", **{"memory.codec": None}), tmp_path / "oracle")
    raw = learn(config(data, "kril"), tmp_path / "raw")
    assert [step.confusion for step in oracle.steps] == [step.confusion for step in raw.steps]
    with pytest.raises(ConfigError, match="codec=pq, but kril-oracle keeps what it has seen by raw"):
        learn(config(data, "kril-oracle", **{"memory.codec": "pq"}), tmp_path / "pq")


def test_what_is_trained_alone_is_not_trained_in_a_methods_own_way() -> None:
    for method, rate in (("icarl", 0.05), ("m2kd", 0.05), ("lwf-mc", 0.05)):
        built = build_run_config(method, {"data": "x", "alone": True}, preset="small")
        assert built.training.learning_rate == 2.0
        assert built.alone_training is not None
        assert built.alone_training.learning_rate == rate
    assert build_run_config("lucir", {"data": "x"}, preset="small").alone_training is None


def test_the_order_may_follow_the_seed(data: Path) -> None:
    orders = [
        [task.names for task in Scenario(open_dataset(data), order="seed", base=2, steps=2, seed=seed).tasks]
        for seed in (4, 5)
    ]
    assert orders[0] != orders[1]
    named = Scenario(open_dataset(data), order="4", base=2, steps=2, seed=9).tasks
    assert orders[0] == [task.names for task in named]


def test_raw_new_samples_beside_decoded_old_ones_are_told_of(data: Path, tmp_path: Path) -> None:
    class Noted(_Silent):
        said: ClassVar[list[str]] = []

        def note(self, message: str) -> None:
            self.said.append(message)

    settings = {"memory.codec": "transform", "memory.preset": "linear", "memory.ratio": 4, "steps": 1, "base": 3}
    learn(config(data, "replay", **settings, **{"memory.through_codec": False}), tmp_path / "raw", progress=Noted())
    assert sum("do not pass through the lossy codec" in line for line in Noted.said) == 1
    Noted.said.clear()
    learn(config(data, "replay", **settings), tmp_path / "through", progress=Noted())
    assert not any("lossy codec" in line for line in Noted.said)


def test_top_5_by_hand() -> None:
    class Fixed(Finetune):
        def predict(self, x: torch.Tensor) -> torch.Tensor:
            return x

    network = Network(nn.Identity(), 7)
    network.grow(7)
    scores = torch.tensor([[7.0, 6, 5, 4, 3, 2, 1]] * 4)  # the classes' ranks are their numbers
    found = evaluated(Fixed({}, network, 0), [(scores, torch.tensor([0, 4, 5, 6]))], [Task(0, 0, 7, ())])
    assert (found["accuracy"], found["top5"]) == (0.25, 0.5)


def test_a_generator_stays_near_an_earlier_one() -> None:
    assert apart(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 0.0]])).item() == 1 + 4 + 9


def test_a_memory_that_is_no_table_is_refused() -> None:
    with pytest.raises(ConfigError, match="memory: Expected `object`, got `int`"):
        build_run_config("der", {"data": "x", "memory": 3}, preset="small")


def test_a_budget_takes_the_place_of_the_presets_count_where_the_codec_is_lossless() -> None:
    for codec, count in (("webp_lossless", None), ("webp", 20), (None, None)):
        built = build_run_config("lucir", {"data": "x", "memory.codec": codec, "memory.budget": 9}, preset="small")
        assert (built.memory.per_class, built.memory.exemplars) == (count, "herding")


def test_the_seed_may_come_from_a_file(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("seed = 5\n")
    assert build_run_config("kril", {"data": "x", "seed": None}, file=file).seed == 5


def test_a_probe_judges_representations_by_training_samples_of_all_classes() -> None:
    class Known(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x[:, 0], x[:, 1]], 1)

    tasks = [Task(0, 0, 2, (0, 1)), Task(1, 2, 4, (2, 3))]
    y = torch.arange(4).repeat(20)
    x = torch.stack([y % 2, y // 2, torch.zeros_like(y)], 1).float()
    assert probed(Known(), [(x, y)], [(x, y)], tasks) == [1.0, 1.0]
    assert probed(Known(), [(x, y)], [(x, y)], [Task(0, 0, 1, (0,))]) == [1.0]
    wrong = torch.where(y < 2, y, 5 - y)  # 2 and 3 for one another
    assert probed(Known(), [(x, y)], [(x, wrong)], tasks) == [1.0, 0.0]


def test_transfer_of_representations_is_told_apart_from_that_of_predictions(data: Path, tmp_path: Path) -> None:
    settings = config(data, "finetune", alone=True, probe=True)
    plain = learn(config(data, "finetune"), tmp_path / "plain")
    result = learn(settings, tmp_path / "run")
    assert [step.confusion for step in result.steps] == [step.confusion for step in plain.steps]
    (first,), (a, b), (c, d, e) = (step.probed for step in result.steps)
    one, two = (step.alone_probed for step in result.steps[1:])
    assert one is not None
    assert two is not None
    summary = result.summary()
    assert summary["representation_backward_transfer"] == pytest.approx(((a - first) / 2 + (c - first + d - b) / 3) / 2)
    assert summary["representation_forward_transfer"] == pytest.approx((b - one + e - two) / 2)
    assert c > result.steps[-1].by_task[0]  # forgotten by the classifier, not by the embeddings
    assert "representation_backward_transfer" not in plain.summary()


def test_what_was_trained_alone_is_kept_with_a_step_that_was_not_taken(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(data, "replay", alone=True, probe=True)
    whole = learn(settings, tmp_path / "whole")
    real = Recall.take

    def killed(self: Recall, number: int, *given: Any) -> None:
        if number == 1:
            raise KeyboardInterrupt
        real(self, number, *given)

    monkeypatch.setattr(Recall, "take", killed)
    with pytest.raises(KeyboardInterrupt):
        learn(settings, tmp_path / "cut")
    monkeypatch.undo()
    again = learn(settings, tmp_path / "cut")
    assert [step.alone_probed for step in again.steps] == [step.alone_probed for step in whole.steps]
