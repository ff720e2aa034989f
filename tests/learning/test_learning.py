"""Class-incremental runs: what learners may see, bytes, and going on after a kill."""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pytest
import torch
from learning_runs import CLASSES, LABELS, TEST, TRAIN, KilledAfter, Named, body, config, samples
from safetensors.torch import load_file, save_file
from torch import nn

from krstore.errors import (
    ConfigError,
    CorruptStoreError,
    OutputError,
    TargetUnreachableError,
    UnknownNameError,
    UsageError,
)
from krstore.learning.data import Dataset
from krstore.learning.harness import learn
from krstore.learning.learners import LEARNERS, get_learner
from krstore.learning.network import Network, build_network
from krstore.learning.results import read_result
from krstore.learning.scenario import Task
from krstore.learning.streams import Batch
from krstore.memory import Memory
from krstore.progress import SILENT
from krstore.testing import ArraySource, example_source


def test_weights_bring_their_classifier(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    example = torch.randn(3, 4, 6, 6)
    state = {**body().state_dict(), "fc.weight": torch.randn(2, 8), "fc.bias": torch.randn(2)}
    save_file(state, tmp_path / "w.safetensors")
    network = build_network("learning_runs:body", tmp_path / "w.safetensors", example)
    assert network.classes == 2
    torch.testing.assert_close(network.head.weight.detach(), state["fc.weight"])
    with pytest.raises(UsageError, match="fails on samples of shape"):
        build_network("learning_runs:body", None, torch.randn(3, 5, 6, 6))


@pytest.mark.parametrize("name", ["fc", "head", "classifier"])
def test_a_classifier_is_taken_off_and_its_weights_are_taken_up(name: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = Named(name).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    network = build_network("learning_runs:Named", tmp_path / "w.safetensors", torch.randn(3, 4, 6, 6), {"name": name})
    assert (network.width, network.classes) == (8, 2)
    torch.testing.assert_close(network.head.weight.detach(), state[f"{name}.weight"])
    assert network.body(torch.randn(3, 4, 6, 6)).shape == (3, 8)


def test_a_last_layer_that_may_be_a_classifier_is_told_of(data: Path, tmp_path: Path) -> None:
    said: list[str] = []

    class Listening(KilledAfter):
        def note(self, message: str) -> None:
            said.append(message)

    def model(**arguments: Any) -> dict[str, Any]:
        return {"model": "learning_runs:Named", "model_args": arguments}

    learn(config(data, **model(name="logits")), tmp_path / "one", progress=Listening(0))
    assert said[0].startswith("learning_runs:Named ends in a linear layer, logits: if that is its classifier")
    for number, arguments in enumerate(({"name": "fc"}, {"name": "head"}, {"name": "head", "first": True})):
        said.clear()
        learn(config(data, **model(**arguments)), tmp_path / str(number), progress=Listening(0))
        assert not any("linear layer" in message for message in said)


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory.per_class": 3, "memory.total": 9}, "per_class=3 and total=9; give one of them"),
        ({"memory.total": 5}, "total=5 is less than an exemplar of each of 6 classes"),
        ({"memory.exemplars": "raw"}, "exemplars=raw is no codec of exemplars"),
        ({"memory.codec": "transform", "memory.ratio": 3.0, "memory.budget": 9}, "give one of them"),
        ({"options": {"auxilliary": 1}}, "unknown option of method kril 'auxilliary'. Did you mean 'auxiliary'"),
        ({"base": 3, "steps": 2}, "do not divide"),
        ({"training": {"learning_rate": 1e30, "milestones": ()}}, "no longer finite"),
    ],
)
def test_runs_that_cannot_be(data: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        learn(config(data, "kril", **settings), tmp_path / "run")


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("train", np.nan, r"step 0 of 2: the loss is no longer finite .*; 1 training samples of the batch are not fin"),
        ("test", np.inf, "scores of test samples are not finite; nor are the samples"),
    ],
)
def test_data_that_are_not_finite(data: Path, tmp_path: Path, part: str, value: float, message: str) -> None:
    with h5py.File(data / f"{part}.h5", "r+") as file:
        file["features"][int(np.flatnonzero(file["labels"][()] == LABELS[0])[0]), 0, 0, 0] = value
    with pytest.raises(UsageError, match=message):
        learn(config(data, order="ascending"), tmp_path / "run")


def test_weights_that_the_last_update_has_blown_up(data: Path, tmp_path: Path) -> None:
    once = {"epochs": 1, "batch_size": 60, "learning_rate": 1e38, "milestones": ()}
    with pytest.raises(UsageError, match="scores of test samples are not finite; lower the learning rate"):
        learn(config(data, base_training=once), tmp_path / "run")


def test_what_is_refused_leaves_the_folder_free(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown module to freeze"):
        learn(config(data, frozen_until="conv9"), tmp_path / "run")
    assert learn(config(data), tmp_path / "run").finished


def test_a_run_is_one_process_at_a_time(data: Path, tmp_path: Path) -> None:
    class Again:
        def task(self, description: str, total: int, unit: str = "samples") -> Any:
            return SILENT.task(description, total, unit)

        def note(self, message: str) -> None:
            with pytest.raises(OutputError, match=r"another process is writing .*run\.json; wait for it"):
                learn(config(data), tmp_path / "run")

    assert learn(config(data), tmp_path / "run", progress=Again()).finished


def test_a_state_of_another_network(data: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        learn(config(data), tmp_path / "run", progress=KilledAfter(0))
    state = tmp_path / "run" / "step1.safetensors"
    save_file({name.replace("body", "bode"): value for name, value in load_file(state).items()}, state)
    with pytest.raises(CorruptStoreError, match=r"step1\.safetensors is not of this run's network"):
        learn(config(data), tmp_path / "run")


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
from krstore.learning.data import Dataset
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
    said = ""
    for wait in (1, 0):
        with subprocess.Popen([sys.executable, "-c", KILLED, *arguments], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            while wait and "step 0" not in process.stdout.readline():
                pass
            time.sleep(0.02 * wait)
            process.send_signal(signal.SIGKILL if wait else 0)
            said = process.stdout.read()
    assert "killed: goes on after step " in said
    ended = read_result(tmp_path / "killed")
    assert ended.finished
    assert [step.confusion for step in ended.steps] == [step.confusion for step in whole.steps]
    assert [step.memory_bytes for step in ended.steps] == [step.memory_bytes for step in whole.steps]


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


def test_a_run_goes_on_with_the_same_data_alone(data: Path, tmp_path: Path) -> None:
    built = config(data)
    with pytest.raises(KeyboardInterrupt):
        learn(built, tmp_path / "run", progress=KilledAfter(0))
    with h5py.File(data / "train.h5", "r+") as file:
        file["features"][0] += 1
    with pytest.raises(UsageError, match="is of other data than"):
        learn(built, tmp_path / "run")


def test_data_that_have_moved_are_the_same_data(data: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        learn(config(data), tmp_path / "run", progress=KilledAfter(0))
    moved = data.rename(tmp_path / "elsewhere")
    assert learn(config(moved), tmp_path / "run").finished


def test_a_folder_is_of_one_run(data: Path, tmp_path: Path) -> None:
    learn(config(data), tmp_path / "run")
    assert learn(config(data), tmp_path / "run").finished
    with pytest.raises(
        UsageError, match=r"is of another run \(seed: 0 -> 1\); name another folder, or remove this one"
    ):
        learn(config(data, seed=1), tmp_path / "run")
    with pytest.raises(UsageError, match=r"\(training.epochs: 2 -> 3, options.logits: null -> all\)"):
        learn(config(data, **{"training.epochs": 3, "options.logits": "all"}), tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(json.dumps({"config": 1}))
    with pytest.raises(Exception, match="malformed"):
        read_result(tmp_path / "run")


@pytest.mark.parametrize(("frozen", "said"), [(None, True), ("0", False)])
def test_kril_on_images_says_that_nothing_is_frozen(tmp_path: Path, frozen: str | None, said: bool) -> None:
    notes: list[str] = []

    class Listening(KilledAfter):
        def note(self, message: str) -> None:
            notes.append(message)

    source = example_source(60, (4, 6, 6))
    images = ArraySource((255 * source.features / source.features.max()).astype(np.uint8), source.labels)
    options = {"frozen_until": frozen, "memory.codec": "raw", "base": 1, "steps": 2}
    learn(config(Path("x"), "kril", **options), tmp_path / "run", dataset=Dataset.of(images, images),
          progress=Listening(9))  # fmt: skip
    assert any("freezes what is up to that layer" in note for note in notes) == said


def test_a_ratio_out_of_reach_leaves_no_folder_in_the_way(data: Path, tmp_path: Path) -> None:
    codec = {"memory.codec": "pq", "memory.preset": None}
    with pytest.raises(TargetUnreachableError):
        learn(config(data, "kril", **codec, **{"memory.ratio": 1e6}), tmp_path / "run")
    assert not any((tmp_path / "run").iterdir())
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(TargetUnreachableError):
        learn(config(data, "kril", **codec, **{"memory.ratio": 1e6}), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]
    assert learn(config(data, "kril", **codec, **{"memory.ratio": 4}), tmp_path / "run").finished


def test_images_are_normalised(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, each, seed in (("train", 6, 0), ("test", 3, 1)):
        x, y = samples(each, seed)
        np.savez(folder / f"{name}.npz", features=(40 * x).clip(0, 255).astype(np.uint8), labels=y)
    built = config(folder, "replay", mean=(0.5,), std=(0.25,), crop=1)
    assert learn(built, tmp_path / "run").finished


def test_upper_bounds_keep_what_they_see(data: Path, tmp_path: Path) -> None:
    result = learn(config(data, "joint"), tmp_path / "run")
    assert [step.memory_bytes for step in result.steps] == [classes * TRAIN * 4 * 4 * 36 for classes in (2, 4, 6)]


def test_joint_begins_each_step_where_the_first_task_left_it(data: Path, tmp_path: Path) -> None:
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
    with pytest.raises(KeyboardInterrupt):
        learn(run, tmp_path / "cut", progress=KilledAfter(1))
    assert [s.confusion for s in learn(run, tmp_path / "cut").steps] == [s.confusion for s in whole.steps]
    with pytest.raises(ConfigError, match="transfer=true: joint holds on to weights"):
        learn(config(data, "joint", **{"options.anew": True, "transfer": True}), tmp_path / "transfer")


def test_the_oracle_is_kril_with_all_as_it_was(data: Path, tmp_path: Path) -> None:
    oracle = learn(config(data, "kril-oracle", **{"memory.codec": None}), tmp_path / "oracle")
    raw = learn(config(data, "kril"), tmp_path / "raw")
    assert [step.confusion for step in oracle.steps] == [step.confusion for step in raw.steps]
    with pytest.raises(ConfigError, match="codec=pq, but kril-oracle keeps what it has seen by raw"):
        learn(config(data, "kril-oracle", **{"memory.codec": "pq"}), tmp_path / "pq")
