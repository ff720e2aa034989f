"""replay: cross-entropy on the new task and on what the memory replays."""

from __future__ import annotations

from krstore.learning.learners.base import Rehearsal
from krstore.learning.learners.finetune import Finetune

__all__ = ["ExperienceReplay"]


class ExperienceReplay(Finetune):
    """Experience replay: of images or features, of any store."""

    name = "replay"
    summary = "cross-entropy on the new task and on what the memory replays"
    rehearsal = Rehearsal.MEMORY
