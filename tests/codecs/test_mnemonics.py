"""Mnemonics: the meta-gradient, and exemplars that a network learns more from than from random ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import krstore
from krstore.bilevel import meta_gradient
from krstore.errors import UsageError
from krstore.learning.network import Network
from krstore.testing import ArraySource


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.BatchNorm1d(6), nn.Linear(6, 3)).double().eval()


def after_training(
    model: nn.Module, exemplars: torch.Tensor, labels: torch.Tensor, x: Any, y: Any, steps: int
) -> float:
    """Return the loss on (x, y) of a copy trained on the exemplars by torch's own SGD."""
    copy = network()
    copy.load_state_dict(model.state_dict())
    optimiser = torch.optim.SGD(copy.parameters(), lr=0.3)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(copy(exemplars), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        return float(F.cross_entropy(copy(x), y))


@pytest.mark.parametrize("steps", [1, 3])
def test_the_meta_gradient_is_that_of_finite_differences(steps: int) -> None:
    model = network()
    generator = torch.Generator().manual_seed(1)
    exemplars = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    x, y = torch.randn(9, 4, generator=generator, dtype=torch.float64), torch.arange(9) % 3
    labels = torch.tensor([0, 1, 2])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradient, loss = meta_gradient(model, exemplars, labels, x, y, steps=steps, rate=0.3)
    assert loss == pytest.approx(after_training(model, exemplars, labels, x, y, steps), rel=1e-12)
    for place in np.ndindex(3, 4):
        change = torch.zeros_like(exemplars)
        change[place] = 1e-5
        up, down = (after_training(model, exemplars + sign * change, labels, x, y, steps) for sign in (1, -1))
        assert float(gradient[place]) == pytest.approx((up - down) / 2e-5, abs=1e-8)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_temporary_network_moves_what_weight_transfer_moves() -> None:
    torch.manual_seed(0)
    model = Network(nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten()), 12, cosine=False)
    model.grow(2)
    model.transfer()
    model.double().eval()
    exemplars, labels = torch.randn(4, 2, 3, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1])
    _, loss = meta_gradient(model, exemplars, labels, exemplars, labels, steps=2, rate=0.3)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3)
    for _ in range(2):
        optimiser.zero_grad()
        F.cross_entropy(model(exemplars), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert loss == pytest.approx(float(F.cross_entropy(model(exemplars), labels).detach()), rel=1e-12)


class Scores(nn.Module):
    """Scores of three classes, of samples of so many elements."""

    def __init__(self, elements: int, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.scale = scale
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(elements, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.layers(x / self.scale))


def features(seed: int = 0) -> ArraySource:
    """Return samples (300, 4, 4, 4) whose classes overlap."""
    rng = np.random.default_rng(seed)
    labels = np.arange(300) % 3
    centres = np.random.default_rng(9).normal(size=(3, 4, 1, 1))
    values = np.maximum(centres[labels] + 1.5 * rng.normal(size=(300, 4, 4, 4)), 0)
    return ArraySource(values.astype(np.float32), labels)


def learnt(model: nn.Module, store: krstore.Store, source: ArraySource) -> float:
    """Return the loss on a source of a copy that was trained on a store's exemplars."""
    exemplars, labels = torch.from_numpy(store.read(store.ids)).float(), torch.from_numpy(store.labels)
    x, y = torch.from_numpy(source.features).float(), torch.from_numpy(source.labels)
    return meta_gradient(model, exemplars, labels, x, y, steps=10, rate=0.05)[1]


def test_a_network_learns_more_from_them_than_from_what_they_began_as(tmp_path: Path) -> None:
    source, model = features(), Scores(64)
    given = {"per_class": 2, "epochs": 20, "batch_size": 50, "rate": 3.0, "inner_rate": 0.05, "steps": 10}
    store = krstore.encode(source, tmp_path / "a.krs", "mnemonics", settings=given, task_model=model, device="cpu")
    began = krstore.encode(source, tmp_path / "b.krs", "random", settings={"per_class": 2}, device="cpu")
    assert store.ids.tolist() == began.ids.tolist()
    assert store.quality.mse > 0
    assert learnt(model, store, features(1)) < learnt(model, began, features(1)) - 0.05
    values = store.read(store.ids)
    for channel in range(4):
        own = source.features[:, channel]
        assert own.min() <= values[:, channel].min()
        assert values[:, channel].max() <= own.max()


def test_images_stay_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    images = np.where(rng.random((90, 4, 4, 3)) < 0.3, 255, 40 * labels[:, None, None, None]).astype(np.uint8)
    given = {"per_class": 4, "rate": 300.0, "inner_rate": 0.5, "epochs": 3}
    store = krstore.encode(
        ArraySource(images, labels), tmp_path / "a.krs", "mnemonics", settings=given, task_model=Scores(48, 255.0),
        device="cpu",
    )  # fmt: skip
    values = store.read(store.ids)
    assert values.dtype == np.uint8
    moved = values.astype(int) - images[store.ids]
    assert np.abs(moved).max() > 3
    assert values[images[store.ids] == 255].mean() > 230  # nothing wraps around


def test_the_same_seed_trains_the_same_exemplars(tmp_path: Path) -> None:
    given = {"per_class": 2, "epochs": 1}
    first, same = (
        krstore.encode(features(), tmp_path / f"{n}.krs", "mnemonics", settings=given, task_model=Scores(64))
        for n in (0, 1)
    )
    assert first.path.read_bytes() == same.path.read_bytes()


def test_what_it_needs_is_said(tmp_path: Path) -> None:
    source = features()
    with pytest.raises(UsageError, match="--task-model"):
        krstore.encode(source, tmp_path / "a.krs", "mnemonics")
    with pytest.raises(UsageError, match="give per_class or total, not a target"):
        krstore.encode(source, tmp_path / "a.krs", "mnemonics", ratio=20, task_model=Scores(64))
    with pytest.raises(UsageError, match=r"\(1, 3\); expected scores \(1, C\) of at least 8 classes"):
        krstore.encode(
            ArraySource(source.features, source.labels + 5), tmp_path / "a.krs", "mnemonics", task_model=Scores(64)
        )
    with pytest.raises(UsageError, match="there are no labels"):
        krstore.encode(
            ArraySource(source.features), tmp_path / "a.krs", "mnemonics", settings={"total": 9}, task_model=Scores(64)
        )


def embedded(model: nn.Module, values: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return F.normalize(model(values.float()).flatten(1))


def test_released_codes_prototypes_classify_better_than_those_of_herding(tmp_path: Path) -> None:
    source, model = features(), nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh()).eval()
    x, y = torch.from_numpy(source.features), torch.from_numpy(source.labels)

    def loss(store: krstore.Store) -> float:
        exemplars = torch.from_numpy(store.read(store.ids))
        with torch.no_grad():
            means = torch.stack([model(exemplars[store.labels == label]).mean(0) for label in range(3)])
        return float(F.cross_entropy(embedded(model, x) @ F.normalize(means).T, y))

    given = {"per_class": 3, "rate": 5.0, "epochs": 10}
    trained, herded = (
        krstore.encode(source, tmp_path / f"{name}.krs", name, settings=own, task_model=model, device="cpu")
        for name, own in (("mnemonics_released", given), ("herding", {"per_class": 3}))
    )
    assert trained.ids.tolist() == herded.ids.tolist()
    assert loss(trained) < loss(herded) - 0.02
    with pytest.raises(UsageError, match="maps samples to embeddings"):
        krstore.encode(source, tmp_path / "a.krs", "mnemonics_released", device="cpu")


def test_the_released_codes_step_is_sgd_with_decay(tmp_path: Path) -> None:
    """One exemplar each of two classes, of mean 2 and deviation 1, and a network that changes nothing: by hand."""
    values, labels = np.array([[1.0, 3.0], [3.0, 1.0]], np.float32), np.array([0, 1])
    store = krstore.encode(
        ArraySource(values, labels), tmp_path / "a.krs", "mnemonics_released", device="cpu", task_model=nn.Identity(),
        settings={"per_class": 1, "rate": 1e-3, "weight_decay": 10.0, "momentum": 0.0, "batch_size": 2},
    )  # fmt: skip
    # cosines of the samples with the prototypes: 1 with their own, 0.6 with the other
    other = float(np.exp(0.6) / (np.exp(0.6) + np.exp(1.0)))
    own, away = values / np.sqrt(10)
    slope = other * (away - own) / 2  # of the mean over both samples, along the first prototype
    pulled = (slope - own * (own @ slope)) / np.sqrt(10)
    expected = values[0] - 1e-3 * (pulled + 10.0 * (values[0] - 2))
    np.testing.assert_allclose(store.read([0])[0], expected, rtol=1e-6)
