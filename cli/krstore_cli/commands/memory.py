"""krstore memory: the replay memory of a learner, a folder of stores."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from krstore_cli import output
from krstore_cli.options import (
    Device,
    Json,
    MaxBytes,
    MaxMse,
    Preset,
    Quiet,
    Ratio,
    Seed,
    Settings,
    TaskModel,
    TaskWeights,
    Trust,
    Verbose,
    chosen_target,
    complete_codec,
    load_task_model,
    option,
    parse_bytes,
    parse_classes,
    parse_settings,
)
from krstore_cli.show import figure, shape_text, size_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from krstore.memory import Memory

__all__ = ["EXAMPLE", "app"]

EXAMPLE = "Example: krstore memory append memory task1.krs task2.krs"

app = typer.Typer(help="Keep stores together as the replay memory of a learner.", epilog=EXAMPLE)

Folder = Annotated[Path, typer.Argument(help="The memory, a folder.", show_default=False)]
CodecName = Annotated[str | None, option("--codec", help="Encode with this one.", autocompletion=complete_codec)]


@app.command(epilog="Example: krstore memory create memory")
def create(folder: Folder, json: Json = False, quiet: Quiet = False, verbose: Verbose = 0) -> None:
    """Make an empty memory in a new folder."""
    out = output.begin(json, quiet, verbose)
    from krstore.memory import Memory

    _report(out, Memory.create(folder))


@app.command(epilog=EXAMPLE)
def append(
    folder: Folder,
    stores: Annotated[list[Path], typer.Argument(help="The .krs files.", show_default=False)],
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Copy stores into the memory, all or none.

    Their checksums are compared first. What several stores share, such as a decoder, is kept once. A store that is in
    the memory already is not taken twice.
    """
    out = output.begin(json, quiet, verbose)
    _change(out, folder, "auto", lambda memory: memory.append(*stores, progress=out.progress()))


@app.command(epilog="Example: krstore memory encode memory features.h5 --shards 4 --ratio 100")
def encode(
    folder: Folder,
    archives: Annotated[
        list[Path], typer.Argument(help="Archives (.h5, .npy, .npz, .safetensors) or stores.", show_default=False)
    ],
    codec: Annotated[
        str, option("--codec", help="How to encode; see krstore codecs.", autocompletion=complete_codec)
    ] = "transform",
    shards: Annotated[int, option("--shards", min=1, help="Stores that each archive is cut into.")] = 1,
    ratio: Ratio = None,
    max_mse: MaxMse = None,
    preset: Preset = None,
    settings: Settings = None,
    decoder: Annotated[Path | None, option("--decoder", help="A store whose decoder all of them use.")] = None,
    task_model: TaskModel = None,
    task_weights: TaskWeights = None,
    trust: Trust = False,
    device: Device = "auto",
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Encode archives into stores of the memory, which takes them all at once.

    Started by torchrun, each process encodes its share. What an interrupted call has finished is not encoded again.
    """
    out = output.begin(json, quiet, verbose)
    from krstore.distributed import joined, processes

    options: dict[str, Any] = {
        "shards": shards, "ratio": ratio, "max_mse": max_mse, "preset": preset, "decoder": decoder, "seed": seed,
        "settings": parse_settings(settings or []), "task_model": load_task_model(task_model, task_weights),
        "trust": trust, "progress": out.progress(),
    }  # fmt: skip
    with joined():
        first = processes()[0] == 0
        _change(out, folder, device, lambda memory: memory.extend(archives, codec, **options), report=first)


@app.command(epilog="Example: krstore memory merge memory --codec krnet --ratio 40")
def merge(
    context: typer.Context,
    folder: Folder,
    codec: CodecName = None,
    ratio: Ratio = None,
    max_bytes: MaxBytes = None,
    max_mse: MaxMse = None,
    preset: Preset = None,
    settings: Settings = None,
    task_model: TaskModel = None,
    task_weights: TaskWeights = None,
    device: Device = "auto",
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Encode all samples of the memory into one store, which takes the others' place.

    By default with the codec that most samples are in, into as many bytes as they take now. What is encoded is what the
    stores decode to: a KRNet teaches itself. An interrupted merge goes on where it was.
    """
    out = output.begin(json, quiet, verbose)
    targets = chosen_target(context, ratio=ratio, max_bytes=max_bytes, max_mse=max_mse)
    options: dict[str, Any] = {
        "preset": preset, "settings": parse_settings(settings or []), "seed": seed,
        "task_model": load_task_model(task_model, task_weights), "progress": out.progress(), **targets,
    }  # fmt: skip
    _change(out, folder, device, lambda memory: memory.merge(codec, **options))


@app.command(epilog="Example: krstore memory drop memory --classes 3,7")
def drop(
    folder: Folder,
    classes: Annotated[str, option("--classes", metavar="LABELS", help="Labels, with commas between them: 3,7.")],
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Replay some classes no more.

    A store of which nothing is left is removed. In others the samples are hidden; a merge removes their bytes.
    """
    out = output.begin(json, quiet, verbose)
    labels = parse_classes(classes)
    _change(out, folder, "auto", lambda memory: memory.drop(labels))


@app.command(epilog="Example: krstore memory shrink memory --budget 5MB")
def shrink(
    folder: Folder,
    budget: Annotated[
        int, option("--budget", parser=parse_bytes, metavar="SIZE", help="Of the whole memory: 500000, 500kB, 5MiB.")
    ],
    codec: CodecName = None,
    preset: Preset = None,
    settings: Settings = None,
    device: Device = "auto",
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Encode stores again, so that the whole memory fits a budget.

    Each gets as many bytes a sample as any other, and those that take fewer stay as they are. Stores keep a decoder
    that they share. An interrupted call goes on where it was.
    """
    out = output.begin(json, quiet, verbose)
    options: dict[str, Any] = {
        "preset": preset, "settings": parse_settings(settings or []), "seed": seed, "progress": out.progress(),
    }  # fmt: skip
    _change(out, folder, device, lambda memory: memory.shrink(budget, codec, **options))


@app.command(epilog="Example: krstore memory trim memory --per-class 10")
def trim(
    folder: Folder,
    per_class: Annotated[int, option("--per-class", min=1, help="Samples of each class to keep.")],
    device: Device = "auto",
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Keep the first samples of each class, and let the others go: of exemplars, the smaller set.

    An interrupted call goes on where it was.
    """
    out = output.begin(json, quiet, verbose)
    _change(out, folder, device, lambda memory: memory.trim(per_class, seed=seed, progress=out.progress()))


@app.command(epilog="Example: krstore memory info memory --json")
def info(folder: Folder, json: Json = False, quiet: Quiet = False, verbose: Verbose = 0) -> None:
    """Say what the memory holds: stores, samples, classes, bytes."""
    out = output.begin(json, quiet, verbose)
    from krstore.memory import Memory

    _report(out, Memory(folder))


@app.command(epilog="Example: krstore memory verify memory")
def verify(folder: Folder, json: Json = False, quiet: Quiet = False, verbose: Verbose = 0) -> None:
    """Check the manifest, and every checksum of every store."""
    out = output.begin(json, quiet, verbose)
    from krstore.memory import Memory

    checked = Memory(folder).verify(out.progress())
    total = sum(checked.values())
    out.result(
        {"path": str(folder), "ok": True, "stores": len(checked), "checked": checked},
        f"{folder}: ok: {len(checked)} stores, {total:,} bytes match their checksums",
    )


def _change(
    out: output.Output, folder: Path, device: str, change: Callable[[Memory], object], *, report: bool = True
) -> None:
    from krstore.memory import Memory

    began, memory = time.monotonic(), Memory(folder, device=device)
    before = memory.bytes
    change(memory)
    if not report:
        return
    _report(out, memory)
    out.status(f"{before:,} bytes became {memory.bytes:,} in {time.monotonic() - began:.1f} s")


def _report(out: output.Output, memory: Memory) -> None:
    from krstore.memory.summary import summarise

    facts = summarise(memory)
    out.result(facts, *_shown(facts))


def _shown(facts: dict[str, Any]) -> list[RenderableType]:
    pairs = [
        ("stores", f"{facts['stores']:,}"),
        ("samples", f"{facts['samples']:,}"),
        ("classes", f"{facts['classes']:,}"),
        ("bytes", f"{facts['bytes']:,}  {size_text(facts['bytes'])}"),
    ]
    if not facts["stores"]:
        return [output.block(facts["path"], pairs)]
    pairs[1] = ("samples", f"{facts['samples']:,} of {shape_text(facts['shape'])} {facts['dtype']}")
    pairs += [("networks", f"{facts['networks']:,}  each once"), ("ratio", f"{facts['ratio']:.2f}")]
    if facts["unfinished"]:
        pairs.append(("unfinished", f"{facts['unfinished']:,}  beside these; the same command goes on with it"))
    rows = [
        (
            entry["name"], entry["codec"], f"{entry['samples']:,}", f"{entry['bytes']:,}", f"{entry['networks']:,}",
            figure(entry["nmse"]), ",".join(map(str, entry["dropped"])) or "-",
        )
        for entry in facts["entries"]
    ]  # fmt: skip
    columns = ("store", "codec", "samples", "bytes", "networks", "nmse", "dropped")
    return [output.block(facts["path"], pairs), output.table(columns, rows)]
