"""Learning from the features of a part of the network that stays: the KRNet paper's F1 and F2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_runs import config, images, tiny
from learning_runs import KilledAfter
from safetensors.torch import load_file

from krstore.errors import ConfigError, UnknownNameError, UsageError
from krstore.learning.front import cut, seen_through
from krstore.learning.harness import learn
from krstore.learning.network import Network, stored_bytes
from krstore.learning.report import report
from krstore.memory import Memory

FEATURES: dict[str, Any] = {"features": True, "frozen_until": "layer1", "memory.codec": "raw"}


def test_front_and_rest_are_the_network() -> None:
    network = Network(tiny(), 8).eval()
    x = torch.randn(5, 3, 8, 8)
    whole = network.body(x)
    front = cut(network, "layer1")
    torch.testing.assert_close(network.body(front(x)), whole)
    assert not any(weight.requires_grad for weight in front.parameters())
    dataset = images()
    seen = seen_through(dataset, front, lambda pixels: pixels.permute(0, 3, 1, 2).float(), "cpu")
    features = seen.train.read(np.array([3, 1]))
    assert features.shape == (2, *seen.train.spec.shape)
    pixels = torch.from_numpy(dataset.train.read(np.array([3, 1]))).permute(0, 3, 1, 2).float()
    np.testing.assert_allclose(features, front(pixels).numpy(), rtol=1e-5)
    assert seen.train.read(np.empty(0, np.int64)).shape == (0, *seen.train.spec.shape)


def test_a_report_draws_features_beside_what_the_memory_decodes(tmp_path: Path) -> None:
    dataset = images()
    for name, source in (("train", dataset.train), ("test", dataset.test)):
        np.savez(tmp_path / f"{name}.npz", features=source.read(np.arange(source.spec.samples)), labels=source.labels)
    lossy = {"memory.codec": "transform", "memory.preset": "linear", "memory.ratio": 3}
    learn(config("kril", **FEATURES | lossy, data=str(tmp_path)), tmp_path / "run")
    report([tmp_path / "run"], tmp_path / "report", tsne=True)
    assert "replayed" in (tmp_path / "report" / "tsne.svg").read_text()


def test_a_run_keeps_features_and_its_front_stays_and_counts(tmp_path: Path) -> None:
    run = config("kril", **FEATURES, **{"steps": 4, "base": 0})
    whole = learn(run, tmp_path / "whole", dataset=images())
    memory = Memory(tmp_path / "whole" / "memory", device="cpu")
    network = Network(tiny(), 8)
    front = cut(network, "layer1")
    assert memory.samples.decode_tensor(np.array([0])).shape[1:] == front(torch.zeros(1, 3, 8, 8)).shape[1:]
    for step in whole.steps:
        classes = len(step.by_task) * len(whole.tasks[0])
        assert step.network_bytes == stored_bytes(front) + stored_bytes(network.body) + 4 * classes * 9
    fronts = []
    for step in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            learn(run, tmp_path / "cut", dataset=images(), progress=KilledAfter(step))
        state = load_file(tmp_path / "cut" / f"step{step + 1}.safetensors")
        fronts.append({name: value for name, value in state.items() if name.startswith("front/")})
    again = learn(run, tmp_path / "cut", dataset=images())
    assert [step.confusion for step in again.steps] == [step.confusion for step in whole.steps]
    first, second = fronts
    assert first.keys() == second.keys() != set()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_a_budget_counts_the_front(tmp_path: Path) -> None:
    network = Network(tiny(), 8)
    own = stored_bytes(network.body)
    run = config("replay", **{**FEATURES, "steps": 2, "budget": own + 40_000, "memory.exemplars": "herding"})
    for step in learn(run, tmp_path, dataset=images(200)).steps:
        assert step.memory_bytes > 20_000
        assert step.network_bytes + step.memory_bytes <= own + 40_000


def test_what_features_need(tmp_path: Path) -> None:
    for settings, message in (
        ({"features": True}, "of which layer"),
        ({**FEATURES, "transfer": True}, "transfer needs the network whole"),
        ({**FEATURES, "analyse": True}, "analyse needs the network whole"),
    ):
        with pytest.raises(ConfigError, match=message):
            learn(config("kril", **settings), tmp_path / message[:4], dataset=images())
    with pytest.raises(ConfigError, match="ewc needs the network whole"):
        learn(config("ewc", features=True, frozen_until="layer1"), tmp_path / "ewc", dataset=images())
    with pytest.raises(UsageError, match="needs a body that can be cut"):
        cut(Network(torch.nn.Flatten(), 4), "layer1")
    with pytest.raises(UnknownNameError, match="layer9"):
        cut(Network(tiny(), 8), "layer9")
