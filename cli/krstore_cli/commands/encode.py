"""krstore encode: an archive in, a store out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from krstore.errors import UsageError
from krstore_cli import output
from krstore_cli.options import (
    Device,
    Force,
    Json,
    Output,
    Quiet,
    Trust,
    Verbose,
    complete_codec,
    option,
    parse_bytes,
    parse_settings,
)
from krstore_cli.show import store_block

if TYPE_CHECKING:
    import torch

    from krstore.store.reader import Store
    from krstore.store.snapshots import SnapshotStore

__all__ = ["EXAMPLE", "encode"]

EXAMPLE = "Example: krstore encode features.h5 --codec krnet --ratio 40"


def encode(
    context: typer.Context,
    archive: Annotated[
        Path, typer.Argument(help="An archive (.h5, .npy, .npz, .safetensors) or a store.", show_default=False)
    ],
    codec: Annotated[
        str, option("--codec", help="How to encode; see krstore codecs.", autocompletion=complete_codec)
    ] = "transform",
    output_path: Output = None,
    ratio: Annotated[float | None, option("--ratio", help="Make the file at least this many times smaller.")] = None,
    max_bytes: Annotated[
        int | None,
        option(
            "--max-bytes",
            parser=parse_bytes,
            metavar="SIZE",
            help="Make the file at most this large: 500000, 500kB, 5MiB.",
        ),
    ] = None,
    max_mse: Annotated[float | None, option("--max-mse", help="Keep the mean squared error at or below this.")] = None,
    preset: Annotated[str | None, option("--preset", help="A named set of the codec's options.")] = None,
    settings: Annotated[
        list[str] | None, option("--set", metavar="KEY=VALUE", help="One option of the codec; may be repeated.")
    ] = None,
    features_key: Annotated[str | None, option("--features-key", help="The samples' name in the archive.")] = None,
    labels_key: Annotated[
        str | None, option("--labels-key", help="The labels' name in the archive; for .npy, a second .npy file.")
    ] = None,
    trust: Trust = False,
    task_model: Annotated[
        str | None,
        option(
            "--task-model", metavar="PACKAGE.MODULE:FACTORY", help="A network on the features, for codecs that use one."
        ),
    ] = None,
    task_weights: Annotated[Path | None, option("--task-weights", help="Its weights, a .safetensors file.")] = None,
    decoder: Annotated[
        Path | None, option("--decoder", help="A store whose decoder is used as it is; of the same codec.")
    ] = None,
    device: Device = "auto",
    seed: Annotated[int, option("--seed", help="Of everything random: the same seed gives the same file.")] = 0,
    force: Force = False,
    resume: Annotated[bool, option("--resume", help="Take up an interrupted encode of the same things.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Encode a feature archive, or with a snapshot codec a network's states, into a store.

    Give at most one of --ratio, --max-bytes and --max-mse; without any, and without a preset, a lossy codec aims at a
    ratio of 20. Without -o the store is written beside the archive, as NAME.CODEC.krs.
    """
    out = output.begin(json, quiet, verbose)
    from krstore.archives import open_archive, open_snapshots
    from krstore.codec import Kind
    from krstore.registry import get_codec
    from krstore.store.summary import summarise
    from krstore.store.writer import default_output, encode_snapshots
    from krstore.store.writer import encode as encode_samples

    began = time.monotonic()
    targets = _effective(context, {"ratio": ratio, "max_bytes": max_bytes, "max_mse": max_mse})
    target = default_output(archive, codec) if output_path is None else output_path
    if archive.exists() and target.exists() and target.samefile(archive):
        raise UsageError(f"{target} is the archive itself, which is never replaced; name another -o")
    given: dict[str, Any] = {
        "preset": preset,
        "settings": parse_settings(settings or []),
        "device": device,
        "seed": seed,
        "force": force,
        "resume": resume,
        "progress": out.progress(),
        **targets,
    }
    store: Store | SnapshotStore
    if get_codec(codec).kind is Kind.SNAPSHOT:
        _refuse_for_states(
            {
                "--features-key": features_key,
                "--labels-key": labels_key,
                "--task-model": task_model,
                "--decoder": str(decoder) if decoder else None,
            }
        )
        store = encode_snapshots(open_snapshots(archive, trust=trust), target, codec=codec, **given)
    else:
        source = open_archive(archive, features_key=features_key, labels_key=labels_key, trust=trust)
        task = _task_model(task_model, task_weights)
        store = encode_samples(source, target, codec, task_model=task, decoder=decoder, **given)
    with store:
        facts = summarise(store)
    seconds = time.monotonic() - began
    out.result({**facts, "seconds": seconds}, store_block(facts))
    out.status(f"wrote {store.path} in {seconds:.1f} s")


def _effective(context: typer.Context, targets: dict[str, Any]) -> dict[str, Any]:
    """Return the targets without those of the environment when the command line gives one: they exclude each other."""
    sources = {name: context.get_parameter_source(name) for name in targets}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    return {name: value for name, value in targets.items() if name in given} if given else targets


def _refuse_for_states(options: dict[str, str | None]) -> None:
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"{name} {value}: a snapshot codec encodes a network's states, which have no samples")


def _task_model(factory: str | None, weights: Path | None) -> torch.nn.Module | None:
    if factory is None:
        if weights is not None:
            raise UsageError("--task-weights needs --task-model, the network they belong to")
        return None
    from krstore.modules import load_module

    return load_module(factory, weights)
