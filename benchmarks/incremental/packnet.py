"""What ten networks of one set of weights take: packnet against safetensors files and zstd of them.

Those of a run of M2KD that is trained for it: `krstore learn m2kd --preset small` in ten steps of ten classes, on
ResNet-32; by packnet_quantised too, with what the last network is then worth. `--data` is that of `twenty_steps`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from safetensors.numpy import save

from benchmarks._common import Run, main
from benchmarks.incremental.exemplars import images
from krstore.inputs import Inputs
from krstore.learning.building import build_run_config
from krstore.learning.config import RunConfig
from krstore.learning.data import Dataset
from krstore.learning.evaluation import evaluated
from krstore.learning.harness import learn, scenario_of
from krstore.learning.learners.m2kd import M2KD
from krstore.learning.network import build_network
from krstore.learning.state import load_state
from krstore.learning.streams import batches_of
from krstore.snapshots import HeldStates, State
from krstore.store.writer import encode_snapshots

SETTINGS: dict[str, Any] = {
    "data": "given", "model": "krstore.backbones:resnet32", "base": 0, "steps": 10, "device": "cpu",
    "precision": "bfloat16", "base_training.epochs": 20, "training.epochs": 10,
}  # fmt: skip
TINY: dict[str, Any] = {
    "model": "krstore.backbones:resnet8", "steps": 3, "base_training.epochs": 1, "training.epochs": 1,
}  # fmt: skip
LEVEL = 19
RATIOS = (20, 30)


def measure(run: Run) -> dict[str, Any]:
    """Train, and store the states in every way."""
    config = build_run_config("m2kd", SETTINGS | (TINY if run.tiny else {}), preset="small")
    dataset = images(run)
    result = learn(config, run.folder / "run", dataset=dataset)
    learner = _learner(run.folder / "run", config.model, sum(map(len, result.tasks)), len(result.tasks))
    states = learner.states()
    store = encode_snapshots(HeldStates(tuple(states)), run.folder / "all.krs", codec="packnet", device="cpu")
    first = encode_snapshots(HeldStates(tuple(states[:1])), run.folder / "first.krs", codec="packnet", device="cpu")
    files = [save({name: np.ascontiguousarray(array) for name, array in state.items()}) for state in states]
    zstd = zstandard.ZstdCompressor(level=LEVEL)
    same = [_hash(store.network(step)) == _hash(state) for step, state in enumerate(states)]
    assert all(same), "a state has not come back bit by bit"
    return {
        "steps": len(states),
        "parameters": sum(array.size for name, array in states[0].items() if not name.startswith("head.")),
        "last": result.summary()["last"],
        "rows": [
            {"name": "safetensors", "bytes": sum(map(len, files))},
            {"name": f"safetensors, each by zstd {LEVEL}", "bytes": sum(len(zstd.compress(file)) for file in files)},
            {"name": f"safetensors, all by one zstd {LEVEL}", "bytes": len(zstd.compress(b"".join(files)))},
            {"name": "packnet", "bytes": store.bytes.file},
            {"name": "packnet, the first step alone", "bytes": first.bytes.file},
            *(_quantised(run, states, ratio, config, dataset, learner) for ratio in ((4,) if run.tiny else RATIOS)),
        ],
    }  # fmt: skip


def _quantised(
    run: Run, states: list[State], ratio: int, config: RunConfig, dataset: Dataset, learner: M2KD
) -> dict[str, Any]:
    """Store the states by packnet_quantised, and return bytes and the accuracy of the last one."""
    path = run.folder / f"{ratio}.krs"
    held = HeldStates(tuple(states))
    store = encode_snapshots(held, path, codec="packnet_quantised", ratio=ratio, device="cpu")
    learner.network.load_state_dict(store.network(len(states) - 1))
    scenario = scenario_of(config, dataset)
    test = scenario.test_until(len(states) - 1)
    prepare = Inputs.of(test.spec, "auto", config.mean, config.std)
    accuracy = evaluated(learner, batches_of(test, prepare, "cpu"), scenario.tasks)["accuracy"]
    return {"name": f"packnet_quantised at {ratio}", "bytes": store.bytes.file, "last": accuracy}


def _learner(folder: Path, model: str, classes: int, steps: int) -> M2KD:
    """Return the learner with the network of each step, from what the run has kept after the last."""
    parts = load_state(folder / f"step{steps}.safetensors")
    network = build_network(model, None, torch.zeros(1, 3, 16, 16))
    network.grow(classes)
    network.load_state_dict(parts["network"])
    learner = M2KD({}, network, 0)
    learner.load_state(parts["learner"])
    return learner


def _hash(state: State) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + np.ascontiguousarray(state[name]).tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main("packnet", __doc__, measure)
