"""A run that is killed as a task begins to be trained on, or has just been, ends as if it had not been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from image_runs import config, images
from safetensors.torch import load_file, save_file

from krstore.learning.harness import learn
from krstore.learning.learners import LEARNERS, get_learner
from krstore.learning.learners.base import Learner, Rehearsal
from krstore.learning.results import read_result
from krstore.learning.scenario import Task
from krstore.learning.state import RunState
from krstore.learning.training import Trainer

TUNED = {"finetuning.epochs": 1, "finetuning.batch_size": 8}
OPTIONS: dict[str, dict[str, Any]] = {
    "gfr": {"options.epochs": 5, "training.learning_rate": 1e-4}, "icarl": TUNED,
    "der": {**TUNED, "options.pruning": True, "options.sparsity": 3.0},
    "m2kd": {"options.layer": "layer1"}, "kril-oracle": {"memory.codec": "raw"},
}  # fmt: skip
FITTED = {
    "memory.codec": "transform", "memory.settings": {"iterations": 4}, "memory.update": "merge", "memory.ratio": 3,
}  # fmt: skip
REHEARSING = (Rehearsal.MEMORY, Rehearsal.OPTIONAL)


def case(method: str) -> Any:
    exemplars = {"memory.per_class": 5} if get_learner(method).rehearsal in REHEARSING else {}
    return pytest.param(method, {**exemplars, **OPTIONS.get(method, {})}, id=method)


@pytest.mark.parametrize(("method", "settings"), [*map(case, LEARNERS), ("replay", FITTED)])
def test_a_run_killed_within_a_step_ends_as_if_it_had_not_been(
    method: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(method, **settings)
    learn(run, tmp_path / "whole", dataset=images(60))
    save, train, cut = RunState.save, Trainer.train, tmp_path / "cut"
    instants = ["trained0", "training1", "trained1"]

    def reached(instant: str) -> None:
        if instant in instants:
            instants.remove(instant)
            raise KeyboardInterrupt

    def saved(self: RunState, path: Path, seconds: float | None = None) -> None:
        save(self, path, seconds)
        reached(path.stem)

    def trained(self: Trainer, learner: Learner, task: Task, *rest: Any) -> None:
        reached(f"training{task.number}")
        train(self, learner, task, *rest)

    monkeypatch.setattr(RunState, "save", saved)
    monkeypatch.setattr(Trainer, "train", trained)
    for _ in list(instants):
        with pytest.raises(KeyboardInterrupt):
            learn(run, cut, dataset=images(60))
    trained = load_file(cut / "trained1.safetensors")
    save_file({**trained, "time/seconds": trained["time/seconds"] + 500}, cut / "trained1.safetensors")
    learn(run, cut, dataset=images(60))
    assert read_result(cut).steps[1].seconds > 500, "the training before the kill counts"
    last = "step2.safetensors"
    assert (cut / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()
    assert [step.confusion for step in read_result(cut).steps] == [
        step.confusion for step in read_result(tmp_path / "whole").steps
    ]
