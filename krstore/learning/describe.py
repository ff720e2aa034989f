"""What a learner offers: its options, and what each preset trains it with, for people who choose one."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec

from krstore.config import describe_options
from krstore.learning.building import PRESETS, dotted, preset_values
from krstore.learning.config import RunConfig
from krstore.learning.learners import GROUP, LEARNERS, get_learner
from krstore.plugins import package_of

__all__ = ["describe_learner"]


def describe_learner(method: str) -> dict[str, Any]:
    """Return what a learner is; imports its code.

    Args:
        method: as `krstore.learning.build_run_config` takes it.

    Returns:
        ``method``, ``summary``, ``rehearsal`` (``"nothing"``, ``"optional"``, ``"memory"`` or ``"everything"``),
        ``package`` (the distribution that it is of; `None` for a class that no package registers), ``doc`` (its
        docstring and its module's), ``options`` as `krstore.config.describe_options` lists them, ``defaults``, what a
        run has without a preset, and ``presets``, by name, what differs with each. The names in both are those of
        `krstore.learning.RunConfig`, dotted, ``options.`` of the learner's own.

    Raises:
        as `krstore.learning.get_learner`.
    """
    learner = get_learner(method)
    own, module = inspect.getdoc(learner) or "", inspect.getdoc(inspect.getmodule(learner)) or ""
    options = describe_options(learner.Config)
    plain = msgspec.to_builtins(RunConfig(method=method, data=""))
    plain["options"] = {option["name"]: option["default"] for option in options}
    presets = {preset: dotted(preset_values(preset, method)) for preset in PRESETS}
    defaults = dotted({name: value for name, value in plain.items() if name not in ("method", "data")})
    return {
        "method": method,
        "summary": learner.summary,
        "rehearsal": learner.rehearsal.value,
        "package": "krstore" if method in LEARNERS else package_of(GROUP, method),
        "doc": "\n\n".join(filter(None, (own, module))),
        "options": options,
        "defaults": defaults,
        "presets": {
            preset: {name: value for name, value in values.items() if value != defaults.get(name)}
            for preset, values in presets.items()
        },
    }
