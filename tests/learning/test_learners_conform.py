"""The conformance suite of learners: what passes it, and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from krstore.errors import UsageError
from krstore.learning import LEARNERS, Batch, LearnerConfig
from krstore.learning.learners.finetune import Finetune
from krstore.learning.learners.replay import ExperienceReplay
from krstore.testing import check_learner

FAKE = Path(__file__).parents[1] / "fake_codec"
SETTINGS: dict[str, dict[str, Any]] = {
    "gfr": {"options.epochs": 2, "options.hidden": 16}, "m2kd": {"options.layer": "layer1"},
    "der": {"options.pruning": True, "options.sparsity": 3.0},
}  # fmt: skip
QUICK = ("bic", "icarl", "der")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in LEARNERS])
def test_learners_conform(name: str, tmp_path: Path) -> None:
    check_learner(name, tmp_path, settings=SETTINGS.get(name))


def test_a_third_partys_learner_conforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FAKE))
    check_learner("smoothed", tmp_path, settings={"options.smoothing": 0.1})


class Forgetful(ExperienceReplay):
    """Predicts by what it has seen in training, and keeps none of it."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._seen = torch.zeros(6)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        self._seen += torch.bincount(batch.y, minlength=6)
        return super().losses(batch)

    def predict(self, x: Tensor) -> Tensor:
        return self.network(x) + self._seen[: self.network.classes]


class Uncounted(Finetune):
    """Keeps something that it does not count."""

    def state(self) -> dict[str, Tensor]:
        return {"seen": torch.ones(3)}

    def held(self) -> dict[str, int]:
        return {}


class Demanding(Finetune):
    """Has an option without a default."""

    class Config(LearnerConfig, frozen=True, kw_only=True):
        strength: float


class Narrow(Finetune):
    """Predicts by two classes alone."""

    def predict(self, x: Tensor) -> Tensor:
        return self.network(x)[:, -2:]


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        (Forgetful, "a run that was killed has learnt something else; is there in state"),
        (Uncounted, r"keeps seen between steps, and held\(\) counts none of it"),
        (Demanding, "every option needs a default"),
        (Narrow, r"predict returned \(40, 2\); expected \(40, 4\)"),
    ],
)
def test_what_a_learner_may_not_do(learner: type[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, UsageError), match=message):
        check_learner(learner, tmp_path)
