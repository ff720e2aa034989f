"""Options of a run: presets, files and settings, and what contradicts itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from krstore.errors import ConfigError, UnknownNameError, UsageError
from krstore.learning.alone import training_alone
from krstore.learning.building import build_run_config
from krstore.learning.learners import LEARNERS, get_learner


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
        ({"baze": 3}, UnknownNameError, "unknown setting of a run 'baze'. Did you mean 'base'"),
        ({"epochs": 3}, UnknownNameError, r"There is base_training.epochs and training.epochs and "),
        ({"auxiliary": 0}, UnknownNameError, r"There is options.auxiliary"),
        ({"training.epoch": 3}, UnknownNameError, "'training.epoch'. Did you mean 'training.epochs'"),
        ({"memory.adjust.rte": 3}, UnknownNameError, "Did you mean 'memory.adjust.rate'"),
        ({"training.epochs": "many"}, ConfigError, "training.epochs: Expected `int`"),
        ({"base": -1}, ConfigError, "base: Expected `int` >= 0"),
        ({"preset": "quick"}, UnknownNameError, "unknown preset 'quick'"),
        ({"file": "nothing.toml"}, UsageError, "nothing.toml is not a file"),
    ],
)
def test_options_that_are_wrong(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    own = {name: settings.pop(name) for name in ("preset", "file") if name in settings}
    with pytest.raises(error, match=message):
        build_run_config("kril", {"data": "x", **settings}, **own)


@pytest.mark.parametrize("said", ["budget = 900", "[memory]\nratio = 50.0", "[memory]\nbudget = 900"])
@pytest.mark.parametrize("rate", ["budget", "memory.budget", "memory.ratio"])
def test_a_rate_of_the_settings_is_in_the_place_of_the_files(said: str, rate: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(said)
    built = build_run_config("kril", {"data": "x", rate: 7}, file=file)
    rates = {"budget": built.budget, "memory.budget": built.memory.budget, "memory.ratio": built.memory.ratio}
    assert rates.pop(rate) == 7
    assert set(rates.values()) == {None}


def test_every_learner_is_registered_under_its_name() -> None:
    for name in LEARNERS:
        learner = get_learner(name)
        assert learner.name == name
        assert learner.summary
    with pytest.raises(UnknownNameError, match="Did you mean 'kril'"):
        get_learner("krill")


def test_a_rate_takes_the_place_of_the_presets() -> None:
    memory = build_run_config("kril", {"data": "x", "memory.budget": 5_000_000}, preset="fast").memory
    assert (memory.codec, memory.preset, memory.ratio, memory.budget) == ("transform", "fast", None, 5_000_000)


def test_what_is_trained_alone_is_not_trained_in_a_methods_own_way() -> None:
    built = build_run_config("gfr", {"data": "x", "alone": True}, preset="small")
    assert (built.training.optimiser, built.training.learning_rate) == ("adam", 1e-3)
    assert built.alone_training is not None
    assert (built.alone_training.optimiser, built.alone_training.learning_rate) == ("sgd", 0.05)
    assert build_run_config("lucir", {"data": "x"}, preset="small").alone_training is None


@pytest.mark.parametrize(("method", "epochs"), [("der", 20), ("m2kd", 30), ("lucir", 10)])
def test_what_is_trained_alone_has_the_methods_epochs(method: str, epochs: int) -> None:
    assert training_alone(build_run_config(method, {"data": "x"}, preset="small")).epochs == epochs
    schedule = {"epochs": 6, "milestones": (3, 5)}
    built = build_run_config(method, {"data": "x", "training.epochs": 12, "alone_training": schedule}, preset="small")
    assert (training_alone(built).epochs, training_alone(built).milestones) == (12, (6, 10))


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


def test_the_papers_rate_and_decay_of_a_mean_over_a_hundred_classes_are_those_of_a_sum() -> None:
    for method, later in (("icarl", 1e-5), ("lwf-mc", 1e-5), ("m2kd", 0.0)):
        built = build_run_config(method, {"data": "x"}, preset="paper")
        for training, decay in ((built.base_training, 1e-5), (built.training, later)):
            assert training.learning_rate == pytest.approx(2.0 / 100)
            assert training.learning_rate * training.weight_decay == pytest.approx(2.0 * decay)
