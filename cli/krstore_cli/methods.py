"""Learners as people read them: the list of all, and one's options and presets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from krstore_cli.output import block, table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

__all__ = ["method_facts", "method_shown", "methods_table"]

REPLAYED = {
    "nothing": "nothing",
    "optional": "a memory, where one is asked for",
    "memory": "a memory",
    "everything": "all samples of all tasks",
}


def method_facts(name: str) -> dict[str, Any]:
    """Return a learner's line of the list; one that cannot be imported must not hide the others."""
    from krstore.learning.describe import describe_learner

    keys = ("method", "package", "summary")
    try:
        facts = describe_learner(name)
    except Exception as error:  # another's code runs at import, and may raise anything
        return {**dict.fromkeys(keys), "method": name, "error": str(error)}
    return {**{key: facts[key] for key in keys}, "error": None}


def methods_table(listed: Sequence[Mapping[str, Any]]) -> Table:
    """Return the list of learners."""
    rows = [(facts["method"], facts["package"] or "-", facts["summary"] or "") for facts in listed]
    return table(("method", "package", "summary"), rows)


def method_shown(facts: Mapping[str, Any], presets: Sequence[str]) -> list[RenderableType]:
    """Return one learner (`krstore.learning.describe.describe_learner`), with what these presets change."""
    from krstore.learning.building import as_text

    pairs = [
        ("what it is", facts["summary"]),
        ("package", facts["package"] or "-"),
        ("replays", REPLAYED[facts["rehearsal"]]),
    ]
    shown: list[RenderableType] = [block(facts["method"], pairs)]
    if facts["options"]:
        options = [
            (f"options.{option['name']}", option["type"], as_text(option["default"]), option["description"])
            for option in facts["options"]
        ]
        shown += ["", table(("option", "type", "default", "what it does"), options)]
    return [*shown, "", _changes(facts, presets), "", facts["doc"]]


def _changes(facts: Mapping[str, Any], presets: Sequence[str]) -> Table:
    """Return what these presets change, in the order of a run's options."""
    from krstore.learning.building import as_text

    defaults, given = facts["defaults"], [facts["presets"][preset] for preset in presets]
    order = list(dict.fromkeys(name.partition(".")[0] for own in (defaults, *given) for name in own))
    named = sorted({name: None for own in given for name in own}, key=lambda name: order.index(name.partition(".")[0]))
    rows = [
        (name, as_text(defaults.get(name)), *(as_text(own[name]) if name in own else "" for own in given))
        for name in named
        if not name.startswith("alone_training.")  # of the network that is trained beside, where that is asked for
    ]
    return table(("with a preset", "default", *presets), rows)
