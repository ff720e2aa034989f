"""The replay memory of a learner: a folder of immutable stores, which changes by one atomic rename of its manifest."""

from krstore.memory.memory import Memory

__all__ = ["Memory"]
