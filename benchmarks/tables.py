"""The Markdown of every benchmark's JSON: a table, and sentences whose numbers come from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from benchmarks.incremental import learning_tables
from benchmarks.markdown import Document, archive, footer, table

__all__ = ["TABLES"]

_SPEEDS = {"encode": "write quicker than raw", "decode": "read quicker", "decode_cpu": "read with less processor time"}
CHUNKS = {None: "", "default": "h5py's choosing", "samples": "whole samples"}


def compare(document: Document) -> str:
    """The stores of a `krstore compare`, by codec and ratio."""
    source, setup = document["source"], document["setup"]
    head = [
        "", "asked", "ratio", "bytes", "NMSE", "MSE in [0, 1]", "PSNR, dB", "cosine", "encode s", "decode s",
    ]  # fmt: skip
    facts = {"shape": [source["samples"], *source["shape"]], "dtype": source["dtype"], "bytes": source["bytes"]}
    cores = f"{setup['cpus']} core{'s' if setup['cpus'] != 1 else ''}"
    footer = f"{setup['device']}, {cores}; krstore {setup['krstore_version']}, torch {setup['torch_version']}."
    picture = "![NMSE against ratio, a line a codec](rate_distortion.png)"
    cells = [_compared(row) for row in document["rows"]]
    return f"{table(head, cells)}\n\n{archive({'archive': facts})}\n\n{picture}\n\n<sub>{footer}</sub>"


def lossless(document: Document) -> str:
    """Size and speed of raw and of HDF5 filters, raw's standing in words."""
    rows = document["rows"]
    raw, others = rows[0], rows[1:]
    zstd = [row for row in others if row["name"].startswith("zstd")]
    best = min(others, key=lambda row: row["bytes"])
    head = [
        "", "chunks", "bytes", "ratio", "write s", "processor s", "read s", "processor s", "raw reads x as fast",
        "processor",
    ]  # fmt: skip
    cells = [
        [
            row["name"], CHUNKS[row["chunks"]], f"{row['bytes']:,}", f"{row['ratio']:.3f}", f"{row['encode']:.1f}",
            f"{row['encode_cpu']:.1f}", f"{row['decode']:.3f}", f"{row['decode_cpu']:.3f}",
            _times(row, raw, "decode"), _times(row, raw, "decode_cpu"),
        ]
        for row in [raw, *sorted(others, key=lambda row: int(row["bytes"]))]
    ]  # fmt: skip
    smallest = min(zstd, key=lambda row: row["bytes"])
    fastest = min(zstd, key=lambda row: row["decode"])
    said = [
        f"{archive(document)} raw's file is {1 - raw['bytes'] / best['bytes']:.1%} smaller than the smallest of the "
        f"others ({_name(best)}). Reading, it is {_times(smallest, raw, 'decode')} times as fast as h5py with the "
        f"smallest of the zstd files ({_name(smallest)}; {_times(smallest, raw, 'decode_cpu')} in processor time), and "
        f"{_times(fastest, raw, 'decode')} times as fast as with the fastest of them ({_name(fastest)}; "
        f"{_times(fastest, raw, 'decode_cpu')} in processor time).",
        *(_behind(others, raw, key, verb) for key, verb in _SPEEDS.items()),
    ]
    return f"{table(head, cells)}\n\n{' '.join(said)}\n\n{footer(document)}"


def memory(document: Document) -> str:
    """Peak resident memory of the commands."""
    cells = [
        [
            row["name"], f"{row['peak_bytes'] / 1e6:,.0f}", f"{row['seconds']:,.0f}", f"{row['cpu_seconds']:,.0f}",
            f"`{row['command']}`",
        ]
        for row in document["rows"]
    ]  # fmt: skip
    worst = max(row["peak_bytes"] for row in document["rows"])
    said = (
        f"{archive(document)} The most is {worst / 1e6:,.0f} MB, {worst / document['archive']['bytes']:.1%} of the "
        f"archive; the limit is {document['limit_bytes'] / 1e6:,.0f} MB."
    )
    return f"{table(['', 'peak MB', 's', 'processor s', 'command'], cells)}\n\n{said}\n\n{footer(document)}"


def random_access(document: Document) -> str:
    """Reading a few samples against reading all."""
    few = document["picked"]
    head = [
        "", "ratio", "all, s", f"{few}, s", "share", "limit", "newly opened: all, s", f"{few}, s",
        "samples/s", "multiplications a sample",
    ]  # fmt: skip
    cells = [
        [
            row["codec"], f"{row['ratio']:.1f}", f"{row['all']:.3f}", f"{row['some']:.4f}", f"{row['share']:.1%}",
            f"{row['limit']:.0%}", f"{row['fresh_all']:.3f}", f"{row['fresh_some']:.3f}",
            f"{row['samples_per_second']:,.0f}",
            "" if row["multiplications"] is None else f"{row['multiplications'] / 1e6:,.2f} M",
        ]
        for row in document["rows"]
    ]  # fmt: skip
    return f"{table(head, cells)}\n\n{archive(document)}\n\n{footer(document)}"


def startup(document: Document) -> str:
    """Starting the command line."""
    cells = [
        [
            f"`{row['command']}`", f"{row['seconds']:.3f}", f"{row['slowest']:.3f}", f"{row['cpu_seconds']:.3f}",
            f"{row['limit']}", f"{row['peak_bytes'] / 1e6:.0f}",
        ]
        for row in document["rows"]
    ]  # fmt: skip
    head = ["", "s", "slowest", "processor s", "limit", "peak MB"]
    return f"{table(head, cells)}\n\nMedian of {document['repeats']} processes.\n\n{footer(document)}"


def paper_training(document: Document) -> str:
    """The loss of KRNet's own training."""
    every, losses = document["every"], document["losses"]
    shown = sorted({0, *range(1, len(losses), 4), len(losses) - 1})
    cells = [[str((at + 1) * every), f"{losses[at]:.3e}"] for at in shown]
    speed = document["iterations"] / document["seconds"]
    said = (
        f"{document['iterations']} iterations on {document['samples']} samples, {document['batch']} at a time: "
        f"{speed:.2f} iterations/s. Decoded from its file of {document['bytes'] / 1e6:.1f} MB, the mean squared error "
        f"in [0, 1] units is {document['mse_normalised']:.3e} (NMSE {document['nmse']:.3f})."
    )
    return f"{table(['iteration', 'loss'], cells)}\n\n{said}\n\n{footer(document)}"


def frontier(document: Document) -> str:
    """NMSE of every method at every ratio, with how the best peer stands to transform in words."""
    rows = document["rows"]
    ratios = sorted({row["asked"] for row in rows if row["asked"] is not None})
    names = list(dict.fromkeys(row["name"] for row in rows if row["asked"] is not None))
    found = {(row["name"], row["asked"]): row for row in rows}
    cells = []
    for name in names:
        own = [found.get((name, ratio)) for ratio in ratios]
        times = [row for row in own if row]
        cells.append(
            [
                name, *("-" if row is None else f"{row['nmse']:.4f}" for row in own),
                _span(row["encode"] for row in times), _span(row["decode"] for row in times),
            ]
        )  # fmt: skip
    fixed = [
        f"{row['setting']}: ratio {row['ratio']:.1f}, NMSE {row['nmse']:.2g}" for row in rows if row["asked"] is None
    ]
    head = ["NMSE at ratio", *map(str, ratios), "encode s", "decode s"]
    said = [archive(document)]
    if fixed:
        said.append(f"Integers of a channel's range through zstd 19: {'; '.join(fixed)}.")
    said.append("A dash: the method cannot be so small.")
    return f"{table(head, cells)}\n\n{' '.join(said)}\n\n{footer(document)}"


def accuracy(document: Document) -> str:
    """Accuracy of task networks trained on decoded features, against bytes a sample."""
    rows = document["rows"]
    cells = [
        [
            row["name"], f"{row['sample_bytes']:,.0f}", f"{row['ratio']:.0f}",
            f"{row['kept']:,} kept" if row["nmse"] is None else f"{row['nmse']:.3f}",
            f"{100 * row['mean']:.1f}" + (f" ± {100 * row['deviation']:.1f}" if row["deviation"] is not None else ""),
            " ".join(f"{100 * value:.1f}" for value in row["accuracy"]),
        ]
        for row in sorted(rows, key=lambda row: float(row.get("asked") or 0))
    ]  # fmt: skip
    said = (
        f"{archive(document)} {document['epochs']} epochs from fresh weights, tested on {document['test']:,} held-out "
        "samples as they are."
    )
    head = ["", "bytes a sample", "ratio", "NMSE", "accuracy, %", "by seed"]
    return f"{table(head, cells)}\n\n{said}\n\n{footer(document)}"


def scaling(document: Document) -> str:
    """Error, bytes, time and memory against the number of samples."""
    cells = [
        [
            row["name"], f"{row['samples']:,}", f"{row['nmse']:.4f}", f"{row['bytes']:,}",
            f"{row['network'] / row['bytes']:.1%}", str(row["width"]), f"{row['encode_cpu']:.0f}",
            f"{row['decode']:.1f}", f"{row['encode_peak'] / 1e6:,.0f}", f"{row['decode_peak'] / 1e6:,.0f}",
        ]
        for row in sorted(document["rows"], key=lambda row: (row["name"], row["samples"]))
    ]  # fmt: skip
    head = [
        "", "samples", "NMSE", "bytes", "network", "width", "encode processor s", "decode s", "encode peak MB",
        "decode peak MB",
    ]  # fmt: skip
    return f"{table(head, cells)}\n\nRatio {document['ratio']}.\n\n{footer(document)}"


def replay(document: Document) -> str:
    """Decoded samples a second beside those that a network trains on."""
    trained = document["trained"]
    cells = [
        [
            row["name"],
            *(
                said
                for how in ("uncached", "cached", "mixed")
                for said in (f"{row[how]:,.0f}", f"{row[how] / trained:.1f}")
            ),
        ]
        for row in document["rows"]
    ]
    head = ["", "samples a second", "times training", "from the cache", "times training", "mixed in", "times training"]
    said = f"{archive(document)} Training: {trained:,.0f} samples a second."
    return f"{table(head, cells)}\n\n{said}\n\n{footer(document)}"


def family(document: Document) -> str:
    """krnet's family at one file size."""
    cells = [
        [
            row["name"], f"{row['code_bytes']:.1f}", f"{row['network'] / row['bytes']:.0%}", f"{row['ratio']:.1f}",
            f"{row['nmse']:.4f}",
        ]
        for row in document["rows"]
    ]  # fmt: skip
    head = ["", "bytes of codes a sample", "network", "ratio", "NMSE"]
    said = f"{archive(document)} {document['iterations']} iterations each."
    return f"{table(head, cells)}\n\n{said}\n\n{footer(document)}"


def _span(values: Iterable[float]) -> str:
    listed = sorted(values)
    return f"{listed[0]:.1f} to {listed[-1]:.1f}" if listed else ""


TABLES: dict[str, Callable[[Document], str]] = {
    **learning_tables.TABLES,
    "accuracy": accuracy,
    "compare": compare,
    "family": family,
    "frontier": frontier,
    "lossless": lossless,
    "memory": memory,
    "replay": replay,
    "paper_training": paper_training,
    "random_access": random_access,
    "scaling": scaling,
    "startup": startup,
}


def _compared(row: Document) -> list[str]:
    asked = "" if row["asked_ratio"] is None else f"{row['asked_ratio']:g}"
    if row["error"] is not None:
        return [row["codec"], asked, "not reached", *[""] * 5, f"{row['seconds']:.1f}", ""]
    quality = row["quality"]
    return [
        row["codec"], asked, f"{row['ratio']:.2f}", f"{row['bytes']['file']:,}", f"{quality['nmse']:.4f}",
        f"{quality['mse_normalised']:.3g}", "" if quality["psnr"] is None else f"{quality['psnr']:.2f}",
        f"{quality['cosine']:.4f}", f"{row['seconds']:.1f}", f"{row['decode_seconds']:.2f}",
    ]  # fmt: skip


def _name(row: Document) -> str:
    return f"{row['name']}, chunks of {CHUNKS[row['chunks']]}"


def _times(row: Document, raw: Document, key: str) -> str:
    return f"{row[key] / raw[key]:.2f}"


def _behind(rows: Sequence[Document], raw: Document, key: str, verb: str) -> str:
    """Say how many are quicker than raw, and by how much the quickest."""
    quicker = [row for row in rows if row[key] < raw[key]]
    if not quicker:
        return f"None of the others {verb}."
    quickest = min(quicker, key=lambda row: float(row[key]))
    return (
        f"{len(quicker)} of the {len(rows)} others {verb}, the quickest ({_name(quickest)}) "
        f"{raw[key] / quickest[key]:.1f} times as fast."
    )
