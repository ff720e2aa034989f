"""The page of a report: tables and pictures, as one HTML file that needs no other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from rich.filesize import decimal

from krstore.learning.description import described, places, together
from krstore.learning.groups import Group

__all__ = ["Picture", "page"]

STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0 1rem}
h1,h2{line-height:1.2}h2{font-size:1.15rem;margin:2rem 0 .5rem}
.table{overflow-x:auto}table{border-collapse:collapse}
td,th{padding:.25rem .6rem;text-align:right;vertical-align:top;white-space:nowrap;border-bottom:1px solid #8886}
td:first-child,.said td{white-space:normal;min-width:7rem}
td:first-child,th:first-child,.said td,.said th{text-align:left}
.note,figcaption{font-size:.9rem;opacity:.8}.note{max-width:60rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem}dd{margin:0;overflow-wrap:anywhere}dt{opacity:.8}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(32rem,100%),1fr));gap:0 2rem}
figure{margin:0}.wide{grid-column:1/-1}
svg{display:block;max-width:100%;height:auto;border-radius:4px}
"""


class Picture(NamedTuple):
    """A picture with its heading, a sentence below it, and whether it takes the whole width."""

    svg: str
    title: str
    caption: str
    wide: bool = True


class _Column(NamedTuple):
    """A figure's heading, which of its values is best, and what it is."""

    head: str
    best: Callable[[Iterable[float]], float]
    meaning: str = ""


ACCURACIES = {
    "last": _Column("last", max, "on all classes, after the last step"),
    "average_incremental": _Column("average", max, "on all classes seen, mean over the steps"),
    "average_incremental_later": _Column("average without step 0", max),
    "forgetting": _Column("forgetting", min, "a task's best accuracy less its last one, mean over tasks"),
}
TRANSFERS = {
    "initial_forgetting": _Column("F", min, "what the first task's accuracy has fallen by"),
    "backward_transfer": _Column("BWT", max, "by how much tasks' accuracies have changed since they were learnt"),
    "forward_transfer": _Column(
        "FWT", max, "a task's accuracy less that of a network of random weights that learnt from the same"
    ),
    "representation_backward_transfer": _Column("BWT of representations", max, "BWT of a linear probe"),
    "representation_forward_transfer": _Column("FWT of representations", max, "FWT of a linear probe"),
}


def page(groups: Sequence[Group], pictures: Sequence[Picture]) -> str:
    """Return the page of some groups of runs."""
    runs = sum(len(group.runs) for group in groups)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>krstore: class-incremental runs</title><style>{STYLE}</style>"
        "<h1>Class-incremental runs</h1>"
        f"<p>{groups[0].classes[-1]} classes in {len(groups[0].classes)} tasks: {runs} runs of "
        f"{', '.join(escape(group.name) for group in groups)}.</p>"
        f"{_results(groups)}<h2>What was run</h2>{_said(groups)}"
        f"<div class=figures>{''.join(map(_figure, pictures))}</div>{_forgetting(groups)}</html>\n"
    )


def _results(groups: Sequence[Group]) -> str:
    """Return the table of what runs are compared by."""
    columns = {
        "seeds": [", ".join(map(str, group.seeds)) for group in groups],
        **_figures(groups, ACCURACIES),
        "memory": [decimal(group.bytes) for group in groups],
        "network": [decimal(group.network_bytes) for group in groups],
        "time": [_duration(group.seconds) for group in groups],
    }
    best = ", the best in bold" if len(groups) > 1 else ""
    return _table(groups, columns) + (
        f"<p class=note>Accuracies in %, mean ± standard deviation over the seeds{best}. "
        f"{_meanings(groups, ACCURACIES)} Memory, with whatever else is kept beside the network, and network: the most "
        "bytes after any step. Time: training and evaluation of a run, mean.</p>"
    )


def _forgetting(groups: Sequence[Group]) -> str:
    """Return the tables of transfer, and of forgetting by task."""
    if len(groups[0].classes) == 1:
        return ""
    lost = 100 * np.array([group.forgetting_by_task for group in groups])
    by_task = {f"task {number}": [f"{value:.2f}" for value in column] for number, column in enumerate(lost.T)}
    return (
        f"<h2>Forgetting and transfer</h2>{_table(groups, _figures(groups, TRANSFERS))}"
        f"<p class=note>In %. {_meanings(groups, TRANSFERS)}</p>{_table(groups, by_task)}"
        "<p class=note>Each task's best accuracy less its last one, in %, mean over the seeds.</p>"
    )


def _figures(groups: Sequence[Group], columns: Mapping[str, _Column]) -> dict[str, list[str]]:
    """Return figures by their headings, the best of several groups in bold; empty where a group has none."""
    found = {}
    for name, column in columns.items():
        values = [group.figures().get(name) for group in groups]
        best = column.best([round(value[0], 4) for value in values if value is not None] or [0.0])
        found[column.head] = [
            "" if value is None
            else f"<b>{_percent(*value)}</b>" if len(groups) > 1 and round(value[0], 4) == best
            else _percent(*value)
            for value in values
        ]  # fmt: skip
    return found


def _meanings(groups: Sequence[Group], columns: Mapping[str, _Column]) -> str:
    known = {name for group in groups for name in group.figures()}
    said = [f"{own.head}: {own.meaning}" for name, own in columns.items() if name in known and own.meaning]
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}."


def _said(groups: Sequence[Group]) -> str:
    """Return what all runs share, and what each group has of its own, with the folders of its runs."""
    shared, own = described(groups)
    above, folders = places(groups)
    columns = {
        "options of its own": [
            " ".join(f"<code>{escape(f'{name}={value}')}</code>" for name, value in facts.items()) for facts in own
        ],
        "runs": [", ".join(escape(str(folder)) for folder in inside) for inside in folders],
    }
    return (
        f"{_pairs({**together(shared), 'folder': str(above)})}"
        f"<div class=said>{_table(groups, columns)}</div>"
        "<p class=note>Options by the names that --set takes, those left out have their defaults; and where runs "
        "differ in them, tasks, data and versions.</p>"
    )


def _figure(picture: Picture) -> str:
    svg = picture.svg[picture.svg.index("<svg") :].replace("<svg", "<svg role=img", 1)
    return (
        f"<figure{' class=wide' if picture.wide else ''}><h2>{escape(picture.title)}</h2>{svg}"
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def _table(groups: Sequence[Group], columns: Mapping[str, Sequence[str]]) -> str:
    """Return a table of cells of HTML, a row a group, without columns that have no value."""
    shown = {"method": [escape(group.name) for group in groups]}
    shown |= {head: list(cells) for head, cells in columns.items() if any(cells)}
    head = "".join(f"<th>{head}</th>" for head in shown)
    rows = zip(*shown.values(), strict=True)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class=table><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _pairs(pairs: Mapping[str, str]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in pairs.items())}</dl>"


def _percent(value: float, spread: float | None) -> str:
    return f"{100 * value:.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}")


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
