"""Replay: a store or a memory as the source of (feature, label) batches in a PyTorch training loop."""

from krstore.replay.batches import CACHE_BYTES, Replay, Replayable
from krstore.replay.mixing import MixedBatch
from krstore.replay.order import BALANCES
from krstore.replay.sampler import ReplaySampler

__all__ = ["BALANCES", "CACHE_BYTES", "MixedBatch", "Replay", "ReplaySampler", "Replayable"]
