"""The network of a run, loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from image_runs import config, images

from krstore.errors import UsageError
from krstore.learning import learn, load_network, read_result
from krstore.learning.feed import Feed
from krstore.learning.harness import scenario_of

MEMORY = {"memory.per_class": 5}
TUNED = {**MEMORY, "finetuning.epochs": 1}


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("finetune", {}),
        ("lucir", MEMORY),
        ("memo", MEMORY),
        ("der", {**TUNED, "options.pruning": True, "options.sparsity": 3.0}),
        ("replay", {**TUNED, "transfer": True}),
        ("replay", {**MEMORY, "frozen_until": "layer1", "features": True}),
        ("m2kd", {"options.layer": "layer1"}),
    ],
    ids=lambda given: given if isinstance(given, str) else ",".join(given),
)
def test_the_network_of_a_run_is_the_one_that_was_tested(method: str, settings: dict[str, Any], tmp_path: Path) -> None:
    data, run = images(), config(method, **settings)
    result = learn(run, tmp_path, dataset=data)
    network = load_network(str(tmp_path))
    scenario = scenario_of(run, data)
    right = [network(x).argmax(1) == y for x, y in Feed.of(run, data, scenario, "cpu").test(scenario.tasks[-1])]
    assert float(torch.cat(right).float().mean()) == pytest.approx(result.steps[-1].accuracy)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert read_result(str(tmp_path)) == result


def test_what_has_no_network(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is no run: it has no run.json"):
        load_network(tmp_path)
    learn(config("finetune"), tmp_path, dataset=images())
    run = (tmp_path / "run.json").read_text()
    (tmp_path / "run.json").write_text(run.replace('"sample":[3,8,8],', ""))
    with pytest.raises(UsageError, match="does not say what shape its samples have"):
        load_network(tmp_path)
    (tmp_path / "run.json").write_text(run)
    load_network(tmp_path)
    whole = (tmp_path / "step2.safetensors").read_bytes()
    (tmp_path / "step2.safetensors").write_bytes(whole[:100])
    with pytest.raises(UsageError, match=r"step2.safetensors cannot be read"):
        load_network(tmp_path)
    (tmp_path / "step2.safetensors").unlink()
    with pytest.raises(UsageError, match=r"has lost the network of its last step, step2.safetensors"):
        load_network(tmp_path)
    (tmp_path / "run.json").write_text(run[: run.index('"steps":[{')] + '"steps":[]}')
    with pytest.raises(UsageError, match="has no finished step yet"):
        load_network(tmp_path)
