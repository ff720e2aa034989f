"""The tables of learners: what they learn, and in how many bytes."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean, stdev

from benchmarks.markdown import Document, archive, footer, table

__all__ = ["TABLES"]


def learning(document: Document) -> str:
    """What each method has learnt in the end, and in how many bytes."""
    figures = ("last", "average_incremental", "average_incremental_later", "forgetting")
    cells = [
        [
            name, str(len(rows)), *(_spread([100 * row[figure] for row in rows]) for figure in figures),
            f"{max(row['bytes'] for row in rows):,}", f"{mean(row['seconds'] for row in rows):.0f}",
        ]
        for name, rows in _named(document).items()
    ]  # fmt: skip
    head = ["", "seeds", "last, %", "average, %", "without step 0, %", "forgetting, %", "bytes kept", "s"]
    return f"{table(head, cells)}\n\n{footer(document)}"


def learners(document: Document) -> str:
    """What each method has learnt on one protocol, what later tasks did to earlier ones, and the other way round."""
    figures = (
        "last", "average_incremental", "forgetting", "backward_transfer", "forward_transfer",
        "representation_backward_transfer", "representation_forward_transfer",
    )  # fmt: skip
    cells = [
        [
            name, str(len(rows)), *(_spread([100 * row[figure] for row in rows]) for figure in figures),
            f"{max(row['bytes'] for row in rows):,}", f"{max(row['network_bytes'][-1] for row in rows):,}",
        ]
        for name, rows in _named(document).items()
    ]  # fmt: skip
    head = [
        "%", "seeds", "last", "average", "forgetting", "BWT", "FWT", "BWT of representations",
        "FWT of representations", "bytes beside the network", "of the network",
    ]  # fmt: skip
    return f"{table(head, cells)}\n\n{footer(document)}"


def growing(document: Document) -> str:
    """What each method has learnt, and what its networks have come to."""
    counted = any("parameters" in row for row in document["rows"])
    cells = [
        [
            name, str(len(rows)), _spread([100 * row["last"] for row in rows]),
            _spread([100 * row["average_incremental"] for row in rows]), f"{max(row['bytes'] for row in rows):,}",
            " ".join(f"{mean(own) / 1000:.0f}" for own in zip(*(row["network_bytes"] for row in rows), strict=True)),
            *([_thousands(rows)] if counted else []),
        ]
        for name, rows in _named(document).items()
    ]  # fmt: skip
    head = ["", "seeds", "last, %", "average, %", "bytes beside the network", "the network, kB, by step"]
    head += ["#Params, k"] if counted else []
    return f"{table(head, cells)}\n\n{footer(document)}"


def _thousands(rows: list[Document]) -> str:
    """Return the mean number of parameters over steps, where they were counted."""
    counts = [count for row in rows for count in row.get("parameters", [])]
    return f"{mean(counts) / 1000:.1f}" if counts else ""


def budgets(document: Document) -> str:
    """Last accuracy at equal bytes of memory, a line a method."""
    rows = document["rows"]
    sizes = sorted({row["megabytes"] for row in rows if row["megabytes"] is not None})
    cells = []
    for name in dict.fromkeys(row["name"] for row in rows if row["megabytes"] is not None):
        found = [
            [100 * row["last"] for row in rows if (row["name"], row["megabytes"]) == (name, size)] for size in sizes
        ]
        cells.append([name, *(_spread(values) if values else "-" for values in found)])
    oracle = [row for row in rows if row["megabytes"] is None]
    said = "".join(
        f"All raw features, {max(row['bytes'] for row in oracle):,} bytes: "
        f"{_spread([100 * row['last'] for row in oracle])} %. "
        for _ in oracle[:1]
    )
    head = ["last accuracy, %, at", *(f"{size:g} MB" for size in sizes)]
    return f"{table(head, cells)}\n\n{said}A dash: not measured.\n\n{footer(document)}"


def ablations(document: Document) -> str:
    """What KRIL learns, task by task, without one of its parts."""
    cells = [
        [
            name, str(len(rows)),
            *(f"{100 * mean(values):.2f}" for values in zip(*(row["accuracy"] for row in rows), strict=True)),
        ]
        for name, rows in _named(document).items()
    ]  # fmt: skip
    steps = len(document["rows"][0]["accuracy"])
    head = ["accuracy, %, after task", "seeds", *map(str, range(steps))]
    return f"{table(head, cells)}\n\n{footer(document)}"


def strengths(document: Document) -> str:
    """What methods that hold on to weights learn, by how strongly they do."""
    cells = [
        [
            row["name"], f"{row['strength']:g}",
            *(f"{100 * row[figure]:.2f}" if figure in row else "-" for figure in ("last", "average_incremental")),
        ]
        for row in document["rows"]
    ]  # fmt: skip
    head = ["", "lambda", "last, %", "average, %"]
    return f"{table(head, cells)}\n\nA dash: the loss does not stay finite.\n\n{footer(document)}"


PAPER = {"memo": 73.16, "icarl": 71.85, "wa": 71.39, "replay": 70.61, "der": 69.52}  # average, of MEMO's comparison


def twenty_steps(document: Document) -> str:
    """What methods learn in twenty steps at equal bytes, and how far above DER that is, beside MEMO's paper."""
    named = _named(document)
    of_der = 100 * mean(row["average_incremental"] for row in named["der"]) if "der" in named else None
    cells = []
    for name, rows in named.items():
        average, last = ([100 * row[figure] for row in rows] for figure in ("average_incremental", "last"))
        paper = PAPER.get(name.partition(",")[0])
        cells.append([
            name, _spread(average), "" if of_der is None else f"{mean(average) - of_der:+.2f}",
            *(("", "") if paper is None else (f"{paper:.2f}", f"{paper - PAPER['der']:+.2f}")), _spread(last),
            f"{max(row['network_bytes'][-1] for row in rows) / 1e6:.2f}",
            f"{max(row['bytes'] for row in rows) / 1e6:.2f}",
        ])  # fmt: skip
    head = ["", "average, %", "above DER", "the paper's", "above DER", "last, %", "network, MB", "beside it, MB"]
    return f"{table(head, cells)}\n\nAt most {document['budget']:,} bytes of all.\n\n{footer(document)}"


def equal_memory(document: Document) -> str:
    """Last and average accuracy at equal bytes of network and memory together, a line a method."""
    rows = document["rows"]
    sizes = sorted({row["budget"] for row in rows})
    cells = []
    for name in dict.fromkeys(row["name"] for row in rows):
        line = [name]
        for figure in ("last", "average_incremental"):
            for size in sizes:
                own = [row for row in rows if (row["name"], row["budget"]) == (name, size)]
                reached = [100 * row[figure] for row in own if figure in row]
                line.append(_spread(reached) if reached else "-" if own else "")
        cells.append(line)
    head = ["", *(f"{what}, %, at {size / 1e6:g} MB" for what in ("last", "average") for size in sizes)]
    said = "A dash: the method cannot keep to the budget; nothing: not measured."
    return f"{table(head, cells)}\n\n{said}\n\n{footer(document)}"


def compressed(document: Document) -> str:
    """What a byte budget is best spent on."""
    return f"{learning(document)}\n\nAt most {document['budget']:,} bytes of memory."


def packnet(document: Document) -> str:
    """Ten networks in one file, and in ten."""
    rows = {row["name"]: row["bytes"] for row in document["rows"]}
    files, store, first = rows["safetensors"], rows["packnet"], rows["packnet, the first step alone"]
    lossy = {row["name"]: f"{100 * row['last']:.2f}" for row in document["rows"] if "last" in row}
    cells = [[name, f"{size:,}", f"{files / size:.2f}", lossy.get(name, "")] for name, size in rows.items()]
    said = (
        f"{document['steps']} steps, {document['parameters']:,} elements each and a classifier; "
        f"{100 * document['last']:.2f} % last. All steps come back bit by bit from packnet. What the steps after the "
        f"first add: {store - first:,} bytes."
    )
    return f"{table(['', 'bytes', 'ratio', 'last of lossy ones, %'], cells)}\n\n{said}\n\n{footer(document)}"


def exemplars(document: Document) -> str:
    """What methods remember with each way to choose exemplars."""
    groups: dict[tuple[str, ...], list[Document]] = {}
    for row in document["rows"]:
        key = (row["method"], row["selection"], *(["adjusted"] if row["adjust"] else []))
        groups.setdefault(key, []).append(row)
    cells = [
        [
            ", ".join(key), str(len(rows)),
            *(
                _spread([100 * row[figure] for row in rows])
                for figure in ("average_incremental", "last", "initial_forgetting")
            ),
        ]
        for key, rows in groups.items()
    ]  # fmt: skip
    said = f"{max(row['seconds'] for row in document['rows']):.0f} s a run at most."
    return f"{table(['', 'seeds', 'average, %', 'last, %', 'F, %'], cells)}\n\n{said}\n\n{footer(document)}"


def mnemonics(document: Document) -> str:
    """What exemplars gain from being trained."""
    cells = [
        [
            "random" if row["rate"] is None
            else f"rate {row['rate']:g}, inner {row['inner_rate']:g}, {row['steps']} steps",
            f"{row['moved']:.2f}",
            *(f"{row[name]['loss']:.4f}" for name in ("temporary", "tuned")),
            *(f"{100 * row[name]['accuracy']:.1f}" for name in ("temporary", "tuned", "fresh")),
        ]
        for row in document["rows"]
    ]  # fmt: skip
    head = [
        "exemplars", "moved, of 255", "loss after 5 steps", "after 60", "accuracy after 5 steps, %", "after 60",
        "from random weights",
    ]  # fmt: skip
    network = document["network"]
    said = f"The network itself: loss {network['loss']:.4f}, accuracy {100 * network['accuracy']:.1f} %."
    return f"{table(head, cells)}\n\n{said}\n\n{footer(document)}"


def generations(document: Document) -> str:
    """The error of the earliest task's features as tasks come."""
    counts = [0, 1, 2, 5, 9, 10]
    cells = [
        [
            row["name"],
            *(f"{row['nmse'][n]:.4f}" if n < len(row["nmse"]) else "" for n in counts),
            f"{row['bytes'][-1]:,}",
        ]
        for row in document["rows"]
    ]
    head = ["NMSE of the earliest task after", *(f"{n} more" for n in counts), "bytes then"]
    return f"{table(head, cells)}\n\n{archive(document)} Ratio {document['ratio']}.\n\n{footer(document)}"


def blocks(document: Document) -> str:
    """What each block does while the network learns."""
    cells = [
        [
            row["name"], f"{mean(row['gradients']):.3f}", *(f"{1e6 * row['moved'][step]:.2f}" for step in (1, -1)),
            *(f"{row['alike'][step]:.3f}" for step in (1, -1)),
        ]
        for row in document["rows"]
    ]  # fmt: skip
    head = [
        "", "gradient's norm, last task", "weights' shift, 1e-6, second task", "last task",
        "CKA, first and second task", "first and last task",
    ]  # fmt: skip
    return f"{table(head, cells)}\n\n{footer(document)}"


def _named(document: Document) -> dict[str, list[Document]]:
    """Return the rows by name."""
    groups: dict[str, list[Document]] = {}
    for row in document["rows"]:
        groups.setdefault(row["name"], []).append(row)
    return groups


def _spread(values: list[float]) -> str:
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


TABLES: dict[str, Callable[[Document], str]] = {
    "ablations": ablations,
    "budgets": budgets,
    "compressed": compressed,
    "equal_memory": equal_memory,
    "exemplars": exemplars,
    "blocks": blocks,
    "generations": generations,
    "growing": growing,
    "learners": learners,
    "learning": learning,
    "mnemonics": mnemonics,
    "packnet": packnet,
    "strengths": strengths,
    "twenty_steps": twenty_steps,
}
