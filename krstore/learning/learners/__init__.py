"""The methods, one a module: what each paper adds to the harness, and nothing else.

Other packages add theirs under the entry-point group ``krstore.learners``; `docs/learner-authors.md` goes through one.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint

from krstore.errors import KrstoreError, UnknownNameError, UsageError
from krstore.learning.learners.base import Learner
from krstore.plugins import imported, loaded, registered

__all__ = ["GROUP", "LEARNERS", "get_learner", "learner_names"]

GROUP = "krstore.learners"

LEARNERS = {
    "bic": "BiC",
    "der": "DER",
    "ewc": "EWC",
    "finetune": "Finetune",
    "gfr": "GFR",
    "icarl": "ICaRL",
    "joint": "Joint",
    "kril": "KRIL",
    "kril-oracle": "KRILOracle",
    "lucir": "LUCIR",
    "lwf": "LwF",
    "lwf-mc": "LwFMC",
    "m2kd": "M2KD",
    "mas": "MAS",
    "memo": "MEMO",
    "replay": "ExperienceReplay",
    "wa": "WA",
}


def learner_names() -> list[str]:
    """Return the names of all learners, krstore's own and those that packages register, without importing them."""
    return sorted(_entries())


def get_learner(name: str) -> type[Learner]:
    """Import and return a learner.

    Args:
        name: of one of krstore's own or of one that a package registers under the entry-point group
            ``krstore.learners``; or ``"package.module:Class"``, which may be of the current folder.

    Raises:
        UnknownNameError: there is none of that name.
        UsageError: the class cannot be imported, or is no learner.
        KrstoreError: two packages register the name, or what is registered cannot be imported, or is no learner of
            that name.
    """
    if ":" in name:
        return _complete(imported(name, "class", "mylearner:MyLearner"), name)
    entries = _entries()
    if name not in entries:
        hint = f"A class of your own is named package.module:Class; a package adds one under {GROUP!r}."
        raise UnknownNameError("method", name, entries, hint=hint)
    place = f"entry point {name!r} = {entries[name][0].value!r}"
    learner = _complete(loaded("method", name, entries[name]), place)
    if learner.name != name:
        raise KrstoreError(f"{place} is a learner with another name, {learner.name!r}")
    return learner


def _entries() -> dict[str, list[EntryPoint]]:
    entries = registered(GROUP)
    for name, own in LEARNERS.items():
        entry = EntryPoint(name, f"{__name__}.{name.replace('-', '_')}:{own}", GROUP)
        entries[name] = [entry, *entries.get(name, [])]
    return entries


def _complete(found: object, place: str) -> type[Learner]:
    if not (isinstance(found, type) and issubclass(found, Learner)):
        raise UsageError(f"{place} is no learner; expected a subclass of krstore.learning.Learner")
    unsaid = [name for name in ("name", "summary") if not isinstance(getattr(found, name, None), str)]
    lacking = [*unsaid, *sorted(found.__abstractmethods__)]
    if lacking:
        raise UsageError(f"{place} is no complete learner: it lacks {', '.join(lacking)}")
    return found
