"""The memory of a run: what its learner has seen, in stores of one codec, within a ratio or a budget."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from krstore.codec import Kind
from krstore.config import build_config
from krstore.errors import ConfigError, TargetUnreachableError, UsageError
from krstore.learning.adjusting import adjusted
from krstore.learning.config import MemoryConfig
from krstore.learning.scenario import Scenario, Task
from krstore.memory import Memory
from krstore.memory.alike import encode_alike, storage
from krstore.memory.beside import encode_beside
from krstore.memory.samples import MemorySamples
from krstore.progress import Progress
from krstore.registry import get_sample_codec
from krstore.source import Held, Subset
from krstore.store.rate import bytes_at
from krstore.store.reader import Store
from krstore.store.writer import encode

__all__ = ["Recall"]

ADJUSTED = "adjusted_after_task"
SAID = {"codec": "codec", "codec_preset": "preset", "codec_settings": "settings", "per_class": "per_class",
        "total": "total"}  # fmt: skip
ENTRY_BYTES, CLASS_BYTES = 700, 24  # of the manifest, a store and a class of it


class Recall:
    """Takes tasks into a memory, one after another; a task that is there already is not taken twice.

    Args:
        config: codec, rate and way of updating.
        folder: where the memory is, or will be.
        scenario: whose tasks these are.
        seed, device, progress: see `krstore.encode`.

    Attributes:
        memory: the memory, from `open` on.
        scenario: whose tasks these are.
        budget: bytes of the memory when all classes have come; what the next tasks are taken in by.
        through_codec: whether new samples are learnt from as the codec gives them back.
        takes_first: whether that is out of the memory, which has all of them before they are learnt from.
        unlike: whether new samples are sharper than what a lossy codec makes of old ones.
        scored: whether `take` needs a network of scores, not of embeddings.

    Raises:
        ConfigError: contradictory options.
    """

    memory: Memory

    def __init__(
        self, config: MemoryConfig, folder: Path, scenario: Scenario, *, seed: int, device: str, progress: Progress
    ) -> None:
        self._config, self.scenario, self._progress = config, scenario, progress
        self.budget = config.budget
        self._seed, self._device = seed, device
        self._selection = _selection(config)
        self._settings = dict(config.settings)
        name, preset = config.codec or "transform", config.preset
        if self._selection is not None:
            own = {"codec": config.codec, "codec_preset": preset, "codec_settings": config.settings}
            self._settings = {**{key: value for key, value in own.items() if value}, **config.exemplar_settings}
            name, preset = self._selection, None
        if self._selection is not None and config.update in ("merge", "double"):
            raise ConfigError(f"memory: update={config.update} would choose among exemplars again; they are appended")
        if config.exemplar_settings and self._selection is None:
            raise ConfigError("memory: exemplar_settings are of exemplars; name some (exemplars, per_class or total)")
        for option in sorted(config.exemplar_settings.keys() & SAID.keys()):
            raise ConfigError(f"memory: exemplar_settings has {option}; say memory.{SAID[option]} instead")
        if config.adjust is not None and self._selection is None:
            raise ConfigError("memory: adjust trains exemplars; name some (exemplars, per_class or total)")
        if config.adjust is not None and config.codec is not None and not get_sample_codec(config.codec).lossless:
            raise ConfigError(f"memory: adjust stores exemplars anew after each task; codec {config.codec} is lossy")
        self._codec, self._preset = get_sample_codec(name), preset
        build_config(name, self._codec.Config, self._codec.presets, preset, self._settings)
        self.scored = self._codec.scored
        exact = self._selection is not None and (config.codec is None or get_sample_codec(config.codec).lossless)
        self._filled = exact and config.budget is not None and config.per_class is None and config.total is None
        self._update = config.update
        if config.update == "auto":
            self._update = "double" if self._codec.refits else "append"
        lossy = not exact and not self._codec.lossless
        self.through_codec = lossy if config.through_codec is None else config.through_codec and lossy
        self.unlike = lossy and not self.through_codec
        self.takes_first = self.through_codec and self._selection is None
        self._path, self._folder = folder, folder.parent
        self._quota(scenario.classes)

    def open(self) -> None:
        """Open the memory, made first where there is none.

        Raises:
            OutputError: it cannot be made.
        """
        self.memory = Memory.ensure(self._path, device=self._device)

    def check(self, steps: int) -> None:
        """Make sure that the memory has the tasks of the steps that are finished.

        Raises:
            UsageError: it has been lost.
        """
        known = self.memory.classes
        missing = [c for task in self.scenario.tasks[:steps] for c in range(task.first, task.stop) if c not in known]
        if missing:
            raise UsageError(
                f"{self.memory.path} has lost {len(missing)} of the classes that the run has learnt; "
                "begin it anew in another folder"
            )

    def before(self, task: Task) -> MemorySamples:
        """Return what is replayed of the tasks before one."""
        later = [label for label in self.memory.classes if label >= task.first]
        pairs = self.memory.pairs()
        return MemorySamples(
            self.memory.path, [store for _, store in pairs], [[*entry.dropped, *later] for entry, _ in pairs]
        )

    def passed(self, number: int, samples: Subset) -> Store:
        """Return the new samples of a task as the codec of the exemplars gives them back, at the exemplars' rate."""
        path = self._passed(number)
        if not path.exists():
            encode_alike(
                self.memory.stores[-1], samples, path, device=self._device, seed=self._seed, progress=self._progress
            )
        return Store(path, device=self._device)

    def take(self, number: int, samples: Subset, network: nn.Module) -> None:
        """Encode the samples of a task and take them into the memory.

        Args:
            network: maps stored samples to embeddings or scores, frozen; for codecs that look at what a task sees.
        """
        self._passed(number).unlink(missing_ok=True)
        task = self.scenario.tasks[number]
        first = 1 if self._update == "double" else 0
        merging = self._update in ("merge", "double") and number > first
        seen_by = network if self._config.task_model or self._selection is not None else None
        if task.first not in self.memory.classes:
            if self._filled and number:
                self._make_room(task)
            path = self._folder / f"task{number}.krs"
            if merging:
                encode(samples, path, "raw", force=True)
            else:
                asked = {"per_class": self._quota(task.stop)} if self._config.per_class or self._config.total else {}
                target = self._target(task.first, task.stop)
                try:
                    encode_beside(
                        self.memory, next(iter(self.memory.stores), None), samples, path, self._codec.name,
                        preset=self._preset, settings={**self._settings, **asked}, device=self._device,
                        seed=self._seed, force=True, resume="auto", task_model=seen_by, progress=self._progress,
                        **target,
                    )  # fmt: skip
                except TargetUnreachableError as error:
                    if not target:
                        raise
                    size, said = target["max_bytes"], "budget" if self._config.ratio is None else "ratio"
                    raise TargetUnreachableError(
                        f"task {number}: of the memory's {said}, {size:,} bytes are for its {samples.spec.samples:,} "
                        f"samples, after what the manifest takes: {error}"
                    ) from error
            self.memory.append(path)
            path.unlink()
        if self._config.total is not None:
            self.memory.trim(self._quota(task.stop))
        elif self._filled and number:
            self.memory.trim(max(count for label, count in self.memory.classes.items() if label < task.first))
        names = [entry.name for entry in self.memory.manifest.stores][first:]
        if merging and len(names) > 1:
            self.memory.merge(
                self._codec.name, names=names, preset=self._preset, settings=self._settings, seed=self._seed,
                progress=self._progress, task_model=seen_by,
                **self._target(self.scenario.tasks[first].first, task.stop),
            )  # fmt: skip

    def adjust(self, task: Task, network: Callable[[bool], nn.Module]) -> None:
        """Train the exemplars of the tasks before one against each other (mnemonics paper, Eq. 10).

        One half of each class is what the other one is to help a network with, and the other way round. Stores that
        have been adjusted after this task already are left as they are.

        Args:
            network: returns, asked for scores, what maps stored samples to them, frozen.
        """
        if self._config.adjust is None or task.number == 0:
            return
        memory = self.memory
        old = [
            (entry, store) for entry, store in zip(memory.manifest.stores, memory.stores, strict=True)
            if min(entry.classes) < task.first and store.source.attributes.get(ADJUSTED) != task.number
        ]  # fmt: skip
        if not old:
            return
        samples = MemorySamples(memory.path, [store for _, store in old], [entry.dropped for entry, _ in old])
        values = adjusted(samples, network(True), self._config.adjust, self._device)
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            stores = []
            for number, (_, store) in enumerate(old):
                rows = np.flatnonzero(samples.store_of == number)
                spec = replace(samples.spec, samples=len(rows), attributes={ADJUSTED: task.number})
                held = Held(spec, values[rows], samples.labels[rows], None)
                codec, settings = storage(store)
                path = Path(folder) / f"{number}.krs"
                stores.append(encode(held, path, codec, settings=settings, device=self._device))
            memory.replace([entry for entry, _ in old], stores)

    def _passed(self, number: int) -> Path:
        return self._folder / f"passed{number}.krs"

    def _make_room(self, task: Task) -> None:
        """Let go of exemplars, the least of each class first, until earlier tasks leave a new one its share.

        Raises:
            TargetUnreachableError: the budget does not hold an exemplar of each class.
        """
        assert self.budget is not None
        limit = (self.budget - ENTRY_BYTES - CLASS_BYTES * (task.stop - task.first)) * task.first // task.stop
        while self.memory.bytes > limit:
            each = max(self.memory.classes.values())
            fewer = min(each - 1, each * limit // self.memory.bytes)
            if fewer < 1:
                raise TargetUnreachableError(
                    f"memory: {self.budget} bytes do not hold an exemplar of each of {task.stop} classes"
                )
            self.memory.trim(fewer)

    def _quota(self, classes: int) -> int:
        """Return how many exemplars of each class are kept when so many have been seen.

        Raises:
            ConfigError: not one.
        """
        if self._config.total is None:
            return self._config.per_class or 0
        if self._config.total < classes:
            raise ConfigError(
                f"memory: total={self._config.total} is less than an exemplar of each of {classes} classes"
            )
        return self._config.total // classes

    def _target(self, first: int, stop: int) -> dict[str, Any]:
        """Return what a store of the classes first..stop-1 may take."""
        if self.budget is not None and self._filled:
            share = self.budget - self.memory.bytes
        elif self.budget is not None:
            share = self.budget * (stop - first) // self.scenario.classes
        elif self._config.ratio is not None:
            tasks = [task for task in self.scenario.tasks if first <= task.first < stop]
            share = bytes_at(self._config.ratio, sum(self.scenario.train(task.number).spec.bytes for task in tasks))
        else:
            return {}
        return {"max_bytes": max(1, share - ENTRY_BYTES - CLASS_BYTES * (stop - first))}


def _selection(config: MemoryConfig) -> str | None:
    """Return the codec that chooses exemplars; `None` where all samples are kept.

    Raises:
        ConfigError: contradictory options.
    """
    for one, other in (("ratio", "budget"), ("per_class", "total")):
        if getattr(config, one) is not None and getattr(config, other) is not None:
            raise ConfigError(
                f"memory: {one}={getattr(config, one)} and {other}={getattr(config, other)}; give one of them"
            )
    lossless = config.codec is not None and get_sample_codec(config.codec).lossless
    if config.exemplars is not None:
        if get_sample_codec(config.exemplars).kind is not Kind.EXEMPLAR:
            raise ConfigError(f"memory: exemplars={config.exemplars} is no codec of exemplars; herding is one")
        return config.exemplars
    some = config.per_class or config.total or (lossless and (config.budget or config.ratio))
    return "random" if some else None
