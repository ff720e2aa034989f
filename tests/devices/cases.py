"""What is run on the pretended device, and beside it on the CPU: prints a line a case."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pretended
import torch

FEW = {"iterations": 8}
CODECS: dict[str, dict[str, Any]] = {
    "raw": {}, "pq": {"ratio": 10}, "transform": {"ratio": 10, "settings": {**FEW, "restore": True}},
    "autoencoder": {"ratio": 10, "settings": FEW}, "krnet": {"ratio": 10, "settings": {**FEW, "latent": 4}},
    "herding": {"settings": {"per_class": 5}}, "kmeans": {"settings": {"per_class": 5}},
    "mnemonics": {"settings": {"per_class": 4}}, "mnemonics_released": {"settings": {"per_class": 4}},
}  # fmt: skip
SEEN_BY = ("krnet", "herding", "mnemonics", "mnemonics_released")

EXEMPLARS = {"memory.per_class": 5, "finetuning.epochs": 1, "finetuning.batch_size": 8}
BY_CODEC = {"memory.settings": {"iterations": 4}, "memory.ratio": 3}
LEARNERS: dict[str, dict[str, Any]] = {
    "bic": EXEMPLARS, "der": {**EXEMPLARS, "options.pruning": True, "options.sparsity": 3.0}, "ewc": {},
    "finetune": {}, "gfr": {"options.epochs": 2, "training.learning_rate": 1e-4}, "icarl": EXEMPLARS, "joint": {},
    "kril": {"memory.codec": "transform", **BY_CODEC}, "kril-oracle": {"memory.codec": "raw"},
    "lucir": {
        **EXEMPLARS, "memory.exemplars": "mnemonics", "memory.exemplar_settings": {"outer_steps": 2, "steps": 2},
        "memory.adjust.epochs": 1, "memory.adjust.steps": 2, "transfer": True,
    },
    "lwf": EXEMPLARS, "lwf-mc": {}, "m2kd": {**EXEMPLARS, "options.layer": "layer1", "options.prediction": "nme"},
    "mas": {}, "memo": EXEMPLARS,
    "replay": {
        "memory.codec": "krnet", **BY_CODEC, "memory.ratio": 1.5, "alone": True, "probe": True, "analyse": True,
    },
    "wa": EXEMPLARS,
}  # fmt: skip


def codecs(folder: Path) -> Iterator[str]:
    """Encode with every codec, decode here and there, and replay from this process and from workers."""
    import krstore
    from krstore.testing import example_source

    example = example_source(120, (8, 6, 6))
    source = krstore.ArraySource(example.features, np.arange(120) % 5)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(288, 5))
    batch = torch.zeros(4, 8, 6, 6, device=pretended.DEVICE), torch.zeros(4, dtype=torch.int64, device=pretended.DEVICE)
    for name, options in CODECS.items():
        seen_by = {"task_model": network} if name in SEEN_BY else {}
        store = krstore.encode(source, folder / f"{name}.krs", name, device=pretended.DEVICE, **options, **seen_by)
        rows = np.arange(7)
        same = krstore.open(store.path, device="cpu")
        np.testing.assert_allclose(store.decode(rows), same.decode(rows), atol=1e-5)
        memory = krstore.Memory.create(folder / name, device=pretended.DEVICE)
        memory.append(store)
        for replay in (
            store.replay(device=pretended.DEVICE),
            memory.replay(device=pretended.DEVICE, balance="classes"),
        ):
            mixed = next(iter(replay.mix([batch])))
            assert {part.device.type for part in (*next(iter(replay)), *mixed)} == {pretended.NAME}
            loader = torch.utils.data.DataLoader(replay, batch_sampler=replay.sampler(), num_workers=1)
            assert {part.device.type for part in next(iter(loader))} == {"cpu"}
        yield name


def learners(folder: Path) -> Iterator[str]:
    """Run every method here and on the CPU."""
    from image_runs import config, images

    from krstore.learning import learn

    for method, options in LEARNERS.items():
        steps = []
        for device in (pretended.DEVICE, "cpu"):
            settings = {**options, "device": device, "precision": "float32"}
            result = learn(config(method, **settings), folder / f"{method}-{device}", dataset=images(30))
            steps.append([step.confusion for step in result.steps])
        assert steps[0] == steps[1], method
        yield method


def extraction(folder: Path) -> Iterator[str]:
    """Run images through a network."""
    import krstore

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3))
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    found = [
        krstore.extract(
            network, "1", krstore.ArraySource(images, channel_axis=2), folder / f"{name}.h5", device=device,
            mean=[0.5], std=[0.3],
        ).read(np.arange(20))
        for name, device in (("there", pretended.DEVICE), ("here", "cpu"))
    ]  # fmt: skip
    np.testing.assert_allclose(*found, atol=1e-6)
    yield "extract"


def strictness(folder: Path) -> Iterator[str]:
    """Be refused what a GPU refuses."""
    here, there = torch.ones(3), torch.ones(3, device=pretended.DEVICE)
    refused: dict[str, Callable[[], object]] = {
        "sum": lambda: here + there, "index": lambda: here[there.long()], "array": lambda: np.asarray(there),
        "network": lambda: torch.nn.Linear(3, 2)(there), "write": lambda: there.index_put_((here.long(),), here),
        "double": lambda: there.double(),
    }  # fmt: skip
    for name, act in refused.items():
        try:
            act()
        except (RuntimeError, TypeError):
            yield name
        else:
            raise AssertionError(f"{name} is not refused")


if __name__ == "__main__":
    pretended.install()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        for line in globals()[sys.argv[1]](Path(temporary)):
            print(line, flush=True)
