"""What the blocks of a network do while it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from image_runs import config, images, tiny
from torch import nn

from krstore.errors import UsageError
from krstore.learning import learn, report
from krstore.learning.blocks import ANALYSIS, Blocks, alignment, centred_kernel, read_analysis
from krstore.learning.expansion import Extractors


def test_centred_kernel_alignment_by_hand() -> None:
    x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]]), torch.tensor([[1.0], [2.0], [6.0]])
    centred_x, centred_y = x - torch.tensor([1.0, 1.0]), y - 3.0
    expected = (centred_x.T @ centred_y).square().sum() / (
        (centred_x.T @ centred_x).norm() * (centred_y.T @ centred_y).norm()
    )
    assert alignment(centred_kernel(x), centred_kernel(y)) == pytest.approx(float(expected))
    rotation = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    assert alignment(centred_kernel(x), centred_kernel(3 * x @ rotation + 7)) == pytest.approx(1.0)


def test_gradients_and_movement_by_hand() -> None:
    body = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    watched = Blocks(body)
    with torch.no_grad():
        for number, layer in enumerate(body):
            layer.weight.fill_(0.0)
            layer.bias.fill_(0.0)
            layer.weight.grad = torch.full((2, 2), 1.0 + number)
            layer.bias.grad = torch.zeros(2)
        watched.after_backward()
        body[0].weight.grad = torch.full((2, 2), 3.0)
        watched.after_backward()
        watched.after_epoch()
        body[1].weight.fill_(0.5)
    found = watched.measured(body, [(torch.randn(4, 2), torch.zeros(4))])
    torch.testing.assert_close(found["gradients"], torch.tensor([[4.0, 4.0]]))  # the means of 2, 6 and of 4, 4
    torch.testing.assert_close(found["moved"], torch.tensor([0.0, 4 * 0.25 / 6]))
    assert found["kernels"].shape == (2, 4, 4)
    with pytest.raises(UsageError, match="blocks that have weights"):
        Blocks(nn.Sequential(nn.Flatten()))


def test_of_several_extractors_the_last_is_watched() -> None:
    body = Extractors(tiny())
    body.extractors.append(tiny())
    watched = Blocks(body)
    body.fix()
    body(torch.randn(2, 3, 8, 8)).sum().backward()
    watched.after_backward()
    watched.after_epoch()
    gradients = watched.measured(body, [(torch.randn(4, 3, 8, 8), torch.zeros(4))])["gradients"]
    assert gradients.shape == (1, 2)
    assert (gradients > 0).all()


def test_a_run_is_analysed_and_drawn(tmp_path: Path) -> None:
    dataset = images()
    settings = {"memory.per_class": 5, "steps": 4, "memory.exemplars": "random"}
    plain = learn(config("replay", **settings), tmp_path / "plain", dataset=dataset)
    result = learn(config("replay", analyse=True, **settings), tmp_path / "run", dataset=dataset)
    assert [step.confusion for step in result.steps] == [step.confusion for step in plain.steps]
    steps = read_analysis(tmp_path / "run")
    assert [*steps] == [0, 1, 2, 3]
    assert all(found["gradients"].shape == (2, 2) and found["moved"].shape == (2,) for found in steps.values())
    alike = [alignment(steps[0]["kernels"][0], found["kernels"][0]) for found in steps.values()]
    assert alike[0] == pytest.approx(1.0, abs=1e-5)
    assert np.all(np.array(alike) <= 1 + 1e-5)
    report([tmp_path / "run"], tmp_path / "report")
    picture = (tmp_path / "report" / "blocks_0.svg").read_text()
    assert picture[picture.index("<svg") + 4 :] in (tmp_path / "report" / "report.html").read_text()
    (tmp_path / "run" / ANALYSIS).write_bytes(b"spoiled")
    with pytest.raises(UsageError, match="cannot be read"):
        read_analysis(tmp_path / "run")


def test_blocks_that_are_not_trained_have_no_gradient(tmp_path: Path) -> None:
    settings = {"memory.per_class": 5, "memory.exemplars": "random", "analyse": True, "options.train_shared": False}
    learn(config("memo", **settings), tmp_path, dataset=images())
    first, second = read_analysis(tmp_path).values()
    assert (first["gradients"] > 0).all()
    assert (second["gradients"][:, 0] == 0).all()
    assert second["moved"][0] == 0
    assert (second["gradients"][:, 1] > 0).all()
