"""The memory of a run: what its learner has seen, in stores of one codec, within a ratio or a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from krstore.config import build_config
from krstore.errors import ConfigError, TargetUnreachableError, UsageError
from krstore.learning.config import MemoryConfig
from krstore.learning.scenario import Scenario, Task
from krstore.memory import Memory
from krstore.memory.samples import MemorySamples
from krstore.progress import Progress
from krstore.registry import get_sample_codec
from krstore.source import Subset, class_indices
from krstore.store.writer import encode

__all__ = ["Recall"]

ENTRY_BYTES, CLASS_BYTES = 700, 24  # of the manifest, a store and a class of it


class Recall:
    """Takes tasks into a memory, one after another; a task that is there already is not taken twice.

    Args:
        config: codec, rate and way of updating.
        folder: where the memory is, or will be.
        scenario: whose tasks these are.
        seed, device, progress: see `krstore.encode`.

    Attributes:
        memory: the memory.
        lossy: whether its codec loses anything.

    Raises:
        ConfigError: contradictory options.
    """

    def __init__(
        self, config: MemoryConfig, folder: Path, scenario: Scenario, *, seed: int, device: str, progress: Progress
    ) -> None:
        if config.ratio is not None and config.budget is not None:
            raise ConfigError(f"memory: ratio={config.ratio} and budget={config.budget}; give one of them")
        self._config, self._scenario, self._progress = config, scenario, progress
        self._seed, self._device = seed, device
        self._codec = get_sample_codec(config.codec)
        self._update = config.update
        if config.update == "auto":
            self._update = "double" if self._codec.refits else "append"
        self.lossy = not self._codec.lossless
        if not self.lossy and config.ratio is not None:
            raise ConfigError(
                f"memory: ratio={config.ratio}: codec {config.codec} is lossless; give it exemplars or a budget"
            )
        build_config(config.codec, self._codec.Config, self._codec.presets, config.preset, config.settings)
        self.through_codec = self.lossy if config.through_codec is None else config.through_codec
        if self.through_codec and (config.exemplars is not None or (config.budget is not None and not self.lossy)):
            raise ConfigError("memory: exemplars need through_codec=false; all of a task cannot pass through the codec")
        self._folder = folder.parent
        self.memory = Memory(folder, device=device) if folder.exists() else Memory.create(folder, device=device)

    def check(self, steps: int) -> None:
        """Make sure that the memory has the tasks of the steps that are finished.

        Raises:
            UsageError: it has been lost.
        """
        known = self.memory.classes
        missing = [c for task in self._scenario.tasks[:steps] for c in range(task.first, task.stop) if c not in known]
        if missing:
            raise UsageError(
                f"{self.memory.path} has lost {len(missing)} of the classes that the run has learnt; "
                "begin it anew in another folder"
            )

    def before(self, task: Task) -> MemorySamples:
        """Return what is replayed of the tasks before one."""
        later = [label for label in self.memory.classes if label >= task.first]
        return MemorySamples(self.memory.path, self.memory.stores, [later] * len(self.memory.stores))

    def take(self, number: int, samples: Subset, network: nn.Module) -> None:
        """Encode the samples of a task and take them into the memory.

        Args:
            network: maps stored samples to embeddings, frozen; for codecs that look at what a task sees.
        """
        task = self._scenario.tasks[number]
        first = 1 if self._update == "double" else 0
        merging = self._update in ("merge", "double") and number > first
        seen_by = network if self._config.task_model else None
        if task.first not in self.memory.classes:
            kept = _exemplars(samples, self._config.exemplars, self._seed)
            path = self._folder / f"task{number}.krs"
            if merging:
                encode(kept, path, "raw", force=True)
            elif not self.lossy and self._config.budget is not None:
                self._encode_fitting(kept, path, self._target(task.first, task.stop, 0)["max_bytes"])
            else:
                self._encode(number, kept, path, seen_by)
            self.memory.append(path)
            path.unlink()
        names = [entry.name for entry in self.memory.manifest.stores][first:]
        if merging and len(names) > 1:
            self.memory.merge(
                self._config.codec, names=names, preset=self._config.preset, settings=self._config.settings,
                seed=self._seed, progress=self._progress, task_model=seen_by,
                **self._target(self._scenario.tasks[first].first, task.stop, 0),
            )  # fmt: skip

    def _encode(self, number: int, samples: Subset, path: Path, task_model: nn.Module | None) -> None:
        task, stores = self._scenario.tasks[number], self.memory.stores
        decoder = stores[0] if stores and self._codec.shares_decoder else None
        shared = 0 if decoder is None else sum(map(self.memory.folder.network_bytes, self.memory.manifest.networks))
        encode(
            samples, path, self._config.codec, preset=self._config.preset, settings=self._config.settings,
            device=self._device, seed=self._seed, decoder=decoder, force=True, resume=True, task_model=task_model,
            progress=self._progress,
            **self._target(task.first, task.stop, shared),
        )  # fmt: skip

    def _encode_fitting(self, samples: Subset, path: Path, limit: int) -> None:
        """Encode as many samples, equally many of each class, as a lossless codec gets into `limit` bytes.

        Raises:
            TargetUnreachableError: not one of each class fits.
        """
        assert samples.labels is not None
        count = max(map(len, class_indices(samples.labels).values()))
        while True:
            kept = _exemplars(samples, count, self._seed)
            size = encode(
                kept, path, self._config.codec, preset=self._config.preset, settings=self._config.settings,
                device=self._device, seed=self._seed, force=True,
            ).bytes.file  # fmt: skip
            if size <= limit:
                return
            if count == 1:
                raise TargetUnreachableError(
                    f"memory: budget={self._config.budget} leaves {limit:,} bytes for a task; one sample of each of "
                    f"its classes takes {size:,} with codec {self._config.codec}"
                )
            count = max(1, min(count - 1, count * limit // size))

    def _target(self, first: int, stop: int, shared: int) -> dict[str, Any]:
        """Return what a store of the classes first..stop-1 may take, with `shared` bytes that are counted already."""
        if self._config.budget is not None:
            share = self._config.budget * (stop - first) // self._scenario.classes
        elif self._config.ratio is not None:
            tasks = [task for task in self._scenario.tasks if first <= task.first < stop]
            share = int(sum(self._scenario.train(task.number).spec.bytes for task in tasks) / self._config.ratio)
        else:
            return {}
        return {"max_bytes": max(1, share - ENTRY_BYTES - CLASS_BYTES * (stop - first)) + shared}


def _exemplars(samples: Subset, count: int | None, seed: int) -> Subset:
    """Return `count` random samples of each class."""
    if count is None:
        return samples
    assert samples.labels is not None
    rng = np.random.default_rng(seed)
    ids = np.sort(np.concatenate([rng.permutation(own)[:count] for own in class_indices(samples.labels).values()]))
    return Subset(samples, ids, samples.labels[ids])
