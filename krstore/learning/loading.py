"""The network of a run, for one's own evaluation."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from krstore.errors import CorruptStoreError, UsageError
from krstore.learning.front import cut
from krstore.learning.learners import get_learner
from krstore.learning.learners.base import frozen
from krstore.learning.network import build_network
from krstore.learning.results import read_result
from krstore.learning.state import load_state, state_path
from krstore.tensors import resolve_device

__all__ = ["load_network"]


def load_network(folder: str | Path, device: str = "cpu") -> nn.Module:
    """Return the network of a run as its last finished step left it, frozen, in eval mode.

    It maps samples (B, *shape) as the network takes them (images with channels first, of uint8 divided by 255, then
    normalised by the run's `mean` and `std`) to logits (B, classes seen), in the order of learning: that of the
    classes in `krstore.learning.RunResult.tasks`. What a learner makes of them, BiC's correction or iCaRL's nearest
    mean, is not the network's. Neither the data nor the weights that the run began with are needed; a factory or a
    learner of one's own is.

    Args:
        folder: of the run.
        device: where the network goes; see `krstore.encode`.

    Raises:
        UsageError: the folder is of no run, or has no finished step, or the network cannot be built again.
        CorruptStoreError: the run's results are malformed, or its network is another.
    """
    folder, device = Path(folder), resolve_device(device)
    result = read_result(folder)
    config, steps, path = result.config, len(result.steps), state_path(folder, "step", len(result.steps))
    if not steps:
        raise UsageError(f"{folder} has no finished step yet; go on with the run first")
    if not result.sample:
        raise UsageError(f"{folder} does not say what shape its samples have; an earlier krstore began it")
    if not path.is_file():
        raise UsageError(f"{folder} has lost the network of its last step, {path.name}; begin the run anew")
    method = get_learner(config.method)
    example = torch.zeros(1, *result.sample)
    network = build_network(config.model, None, example, config.model_args, cosine=method.cosine).to(device)
    learner = method(config.options, network, config.seed)
    network.grow(sum(map(len, result.tasks[:steps])))
    if config.transfer and steps > 1:
        network.transfer()
    front = cut(network, str(config.frozen_until)) if config.features else None
    parts = load_state(path, device)
    try:
        learner.reshape(parts["network"])
        network.load_state_dict(parts["network"])
        if front is not None:
            front.load_state_dict(parts["front"])
    except (KeyError, RuntimeError) as error:
        raise CorruptStoreError(f"{path} is not of the network of {config.model}: {error}") from error
    return frozen(network if front is None else nn.Sequential(front, network))
