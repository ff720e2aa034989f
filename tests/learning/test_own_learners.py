"""Learners that are not krstore's: found by an entry point or by module and class, listed, run and refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from learning_runs import KilledAfter, config
from torch import Tensor

from krstore import plugins
from krstore.errors import ConfigError, KrstoreError, UnknownNameError, UsageError
from krstore.learning import LEARNERS, build_run_config, get_learner, learn, learner_names
from krstore.learning.building import PRESETS
from krstore.learning.describe import describe_learner
from krstore.learning.learners import GROUP
from krstore.learning.learners.base import SampleBatches
from krstore.learning.learners.finetune import Finetune
from krstore.learning.scenario import Task
from krstore_cli.app import run

FAKE = Path(__file__).parents[1] / "fake_codec"
OWN = "fakecodec.smoothed:Smoothed"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third party's distribution with the learner smoothed."""
    monkeypatch.syspath_prepend(str(FAKE))


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """Entry points of learners as the installed distributions give them; a test adds its own."""
    found: list[EntryPoint] = []
    monkeypatch.setattr(plugins, "entry_points", lambda *, group, **more: found if group == GROUP else [])
    return found


def test_a_package_adds_a_learner(fake: None) -> None:
    assert learner_names() == sorted([*LEARNERS, "smoothed"])
    assert get_learner("smoothed") is get_learner(OWN)
    assert [describe_learner(name)["package"] for name in ("smoothed", OWN, "kril")] == ["fake", None, "krstore"]


@pytest.mark.parametrize("method", ["smoothed", OWN])
def test_it_runs_with_its_options_counts_its_state_and_goes_on(
    fake: None, data: Path, tmp_path: Path, method: str
) -> None:
    built = config(data, method, **{"options.smoothing": "0.1"})
    whole = learn(built, tmp_path / "whole")
    assert whole.steps[-1].held_bytes == {"seen": 8}
    with pytest.raises(KeyboardInterrupt):
        learn(built, tmp_path / "cut", progress=KilledAfter(1))
    learn(built, tmp_path / "cut")
    assert (tmp_path / "cut" / "step3.safetensors").read_bytes() == (
        tmp_path / "whole" / "step3.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_train_it_as_they_train_methods_that_they_say_nothing_of(preset: str) -> None:
    own, finetune = (build_run_config(name, {"data": "x"}, preset=preset) for name in (OWN, "kril-oracle"))
    assert (own.base_training, own.training, own.memory) == (finetune.base_training, finetune.training, finetune.memory)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("krill", UnknownNameError, r"unknown method 'krill'. Did you mean 'kril'\?.*package.module:Class"),
        ("nothing.here:Own", UsageError, "'nothing.here' of 'nothing.here:Own' cannot be imported: No module"),
        (":Own", UsageError, "names no class; expected package.module:class"),
        ("krstore.learning:Larner", UnknownNameError, r"unknown class of krstore.learning 'Larner'. Did you mean"),
        ("krstore.learning:Dataset", UsageError, "is no learner; expected a subclass of krstore.learning.Learner"),
        ("krstore.learning:Learner", UsageError, "is no complete learner: it lacks name, summary, losses"),
    ],
)
def test_what_is_no_learner(name: str, error: type[KrstoreError], message: str) -> None:
    with pytest.raises(error, match=message):
        get_learner(name)


def test_mistakes_of_packages(entries: list[EntryPoint]) -> None:
    for name, value in (("kril", "other:KRIL"), ("other", "krstore.learning.learners.kril:KRIL"),
                        ("absent", "no.such.module:Own"), ("data", "krstore.learning:Dataset")):  # fmt: skip
        entries.append(EntryPoint(name, value, GROUP))
    assert {"absent", "other", "data"} < set(learner_names()), "listing imports nothing"
    with pytest.raises(
        KrstoreError, match=r"method 'kril' is registered more than once: krstore.*kril:KRIL, other:KRIL"
    ):
        get_learner("kril")
    with pytest.raises(KrstoreError, match=r"entry point 'other' = .* is a learner with another name, 'kril'"):
        get_learner("other")
    with pytest.raises(KrstoreError, match=r"entry point 'absent' = .* cannot be imported: ModuleNotFoundError"):
        get_learner("absent")
    with pytest.raises(UsageError, match=r"entry point 'data' = 'krstore.learning:Dataset' is no learner"):
        get_learner("data")


def test_options_are_checked_before_anything_is_written(fake: None, data: Path, tmp_path: Path) -> None:
    for method in (OWN, "der"):
        with pytest.raises(UnknownNameError, match=r"unknown option of method \w+ 'sparsitty'"):
            learn(config(data, method, **{"options.sparsitty": 1, "memory.codec": None}), tmp_path / "run")
    with pytest.raises(UnknownNameError, match="Did you mean 'smoothing'"):
        learn(config(data, OWN, **{"options.smothing": 1}), tmp_path / "run")
    with pytest.raises(ConfigError, match="option smoothing=1 of method smoothed: Expected `float` < 1"):
        learn(config(data, OWN, **{"options.smoothing": "1"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", LEARNERS)
def test_options_say_what_they_do(method: str) -> None:
    facts = describe_learner(method)
    assert all(option["description"] for option in facts["options"])
    assert set(facts["presets"]) == set(PRESETS)
    assert all(f"options.{option['name']}" in facts["defaults"] for option in facts["options"])


def test_the_command_line_lists_them_and_their_options(
    fake: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken-1.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (broken / "entry_points.txt").write_text("[krstore.learners]\nbroken = no_such_module:Broken\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run(["learn", "--list", "--json"]) == 0
    said = capsys.readouterr()
    listed = {facts["method"]: facts for facts in json.loads(said.out)}
    assert listed["smoothed"]["package"] == "fake"
    assert listed["kril"]["package"] == "krstore"
    assert "no_such_module" in listed["broken"]["error"]
    assert "warning: method broken cannot be loaded: entry point" in said.err

    assert run(["learn", "der", "--list", "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert facts["presets"]["paper"]["memory.total"] == 2000
    assert facts["defaults"]["options.sparsity"] == 0.2
    assert run(["learn", OWN, "--list", "--preset", "fast"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "options.smoothing number 0..1 0.2 of the labels, at first" in shown
    assert "fast" in shown
    assert "paper" not in shown
    assert run(["learn", OWN, "--list", "--preset", "fats"]) == 2


def test_a_class_in_the_current_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "halved.py").write_text(
        "from krstore.learning.learners.finetune import Finetune\n\n\n"
        "class Halved(Finetune):\n"
        "    def losses(self, batch):\n"
        "        return {name: value / 2 for name, value in super().losses(batch).items()}\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["--data", str(data), "--model", "torch.nn:Flatten", "--base", "2", "--steps", "2", "--set", "crop=0",
             "--preset", "fast", "--set", "training.epochs=1", "--device", "cpu"]  # fmt: skip
    assert run(["learn", "halved:Halved", *words, "-o", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "halved:Halved"


class Hoarder(Finetune):
    """Keeps what it was lent, to look at it when the next task has come; with `begun` from a batch that it has seen."""

    name = "hoarder"
    begun = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.kept: list[Iterator[tuple[Tensor, Tensor]]] = []

    def end_step(self, task: Task, samples: SampleBatches) -> None:
        self.kept.append(samples())
        if self.begun:
            next(self.kept[0])

    def begin_step(self, task: Task) -> None:
        for samples in self.kept:
            next(samples)


class BegunHoarder(Hoarder):
    name = "begun_hoarder"
    begun = True


@pytest.mark.parametrize("method", [Hoarder, BegunHoarder])
def test_samples_that_a_learner_was_lent_are_gone_with_their_task(
    data: Path, tmp_path: Path, method: type[Hoarder]
) -> None:
    with pytest.raises(UsageError, match="samples that it was lent for an earlier call"):
        learn(config(data, f"{__name__}:{method.__name__}"), tmp_path / "run")
