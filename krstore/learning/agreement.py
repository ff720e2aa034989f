"""What of a run's options does not go together."""

from __future__ import annotations

import msgspec

from krstore.errors import ConfigError
from krstore.learning.config import NO_EXEMPLARS, MemoryConfig, RunConfig
from krstore.learning.learners.base import Learner, Rehearsal

__all__ = ["agreed_memory"]


def agreed_memory(config: RunConfig, learner: Learner) -> MemoryConfig | None:
    """Return what memory a run of a learner has; `None` for none.

    Raises:
        ConfigError: options that contradict each other or the learner.
    """
    method, memory = config.method, config.memory
    if config.frozen_until is not None and learner.rebuilds:
        raise ConfigError(f"frozen_until={config.frozen_until}: {method} says itself which parts stay; leave it out")
    if config.features:
        if config.frozen_until is None:
            raise ConfigError("features=true: of which layer? Say frozen_until, for example layer3.0")
        if config.analyse or config.transfer or not learner.transferable:
            other = "analyse" if config.analyse else "transfer" if config.transfer else method
            raise ConfigError(f"features=true: {other} needs the network whole; leave one of them out")
    if config.transfer and not learner.transferable:
        raise ConfigError(f"transfer=true: {method} holds on to weights by their names; leave it out")
    if config.budget is not None and memory.budget is not None:
        raise ConfigError(f"budget={config.budget} of all, and memory.budget={memory.budget}; give one of them")
    if learner.rehearsal is Rehearsal.MEMORY and memory.exemplars == NO_EXEMPLARS:
        raise ConfigError(f"memory: exemplars={NO_EXEMPLARS}, but {method} lives on a memory; leave it out")
    if learner.codec is not None:
        if memory.codec not in (None, learner.codec):
            raise ConfigError(f"memory: codec={memory.codec}, but {method} keeps what it has seen by {learner.codec}")
        memory = msgspec.structs.replace(memory, codec=learner.codec)
    asked = learner.rehearsal is Rehearsal.OPTIONAL and memory.asked_for
    if learner.rehearsal is Rehearsal.MEMORY or asked:
        return memory if memory.counted else msgspec.structs.replace(memory, budget=config.budget or memory.budget)
    if learner.needs_exemplars:
        raise ConfigError(f"these options of {method} need exemplars; name some (--exemplars herding)")
    if config.finetuning is not None:
        raise ConfigError(f"finetuning is on what a memory holds, and this run of {method} has none")
    return None
