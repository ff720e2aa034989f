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
    MaxBytes,
    MaxMse,
    Output,
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
    parse_settings,
)
from krstore_cli.show import store_block

if TYPE_CHECKING:
    from krstore.store.reader import Store
    from krstore.store.snapshots import SnapshotStore

__all__ = ["EXAMPLE", "encode"]

UNLIKE = {
    "codec": "--codec", "ratio": "--ratio", "max_bytes": "--max-bytes", "max_mse": "--max-mse", "preset": "--preset",
    "settings": "--set", "decoder": "--decoder", "task_model": "--task-model", "per_step": "--per-step",
}  # fmt: skip

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
    ratio: Ratio = None,
    max_bytes: MaxBytes = None,
    max_mse: MaxMse = None,
    preset: Preset = None,
    settings: Settings = None,
    features_key: Annotated[str | None, option("--features-key", help="The samples' name in the archive.")] = None,
    labels_key: Annotated[
        str | None, option("--labels-key", help="The labels' name in the archive; for .npy, a second .npy file.")
    ] = None,
    trust: Trust = False,
    task_model: TaskModel = None,
    task_weights: TaskWeights = None,
    decoder: Annotated[
        Path | None, option("--decoder", help="A store whose decoder is used as it is; of the same codec.")
    ] = None,
    like: Annotated[
        Path | None,
        option("--like", help="A store: encode by its codec, with its decoder if that can be shared, at its rate."),
    ] = None,
    per_step: Annotated[
        str | None,
        option(
            "--per-step", metavar="PATTERNS", help="Parameters that each step has its own of, as conv1.*,fc.weight."
        ),
    ] = None,
    device: Device = "auto",
    seed: Seed = 0,
    force: Force = False,
    resume: Annotated[bool, option("--resume", help="Take up an interrupted encode of the same things.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Encode a feature archive, or with a snapshot codec a network's states, into a store.

    Give at most one of --ratio, --max-bytes and --max-mse; without any, and without a preset, a lossy codec aims at a
    ratio of 20. Without -o the store is written beside the archive, as NAME.CODEC.krs. With --like an archive is
    encoded as another one's store was, at as many bytes a sample: what a memory that grows wants of later tasks.
    """
    out = output.begin(json, quiet, verbose)
    from krstore.archives import open_archive, open_snapshots
    from krstore.codec import Kind
    from krstore.distributed import joined, processes
    from krstore.files import check_target
    from krstore.memory.alike import encode_alike
    from krstore.registry import get_codec
    from krstore.store.summary import summarise
    from krstore.store.writer import default_output, encode_snapshots
    from krstore.store.writer import encode as encode_samples

    began = time.monotonic()
    if like is not None:
        codec = _codec_of(context, like)
    targets = chosen_target(context, ratio=ratio, max_bytes=max_bytes, max_mse=max_mse)
    kind = get_codec(codec).kind
    target = default_output(archive, codec) if output_path is None else output_path
    check_target(target, force=force, inputs=(archive, labels_key, decoder, task_weights, like))
    given: dict[str, Any] = {
        "preset": preset,
        "settings": parse_settings(settings or []) | ({} if per_step is None else {"per_step": per_step}),
        "device": device,
        "seed": seed,
        "force": force,
        "resume": resume,
        "progress": out.progress(),
        **targets,
    }
    store: Store | SnapshotStore
    if kind is Kind.SNAPSHOT:
        _refuse_for_states(
            {
                "--features-key": features_key,
                "--labels-key": labels_key,
                "--task-model": task_model,
                "--decoder": str(decoder) if decoder else None,
            }
        )
        store = encode_snapshots(open_snapshots(archive, trust=trust), target, codec=codec, **given)
    elif like is not None:
        source = open_archive(archive, features_key=features_key, labels_key=labels_key, trust=trust)
        options = {name: given[name] for name in ("device", "seed", "force", "progress")}
        store = encode_alike(like, source, target, **options)
    else:
        source = open_archive(archive, features_key=features_key, labels_key=labels_key, trust=trust)
        task = load_task_model(task_model, task_weights)
        with joined() as several:
            store = encode_samples(source, target, codec, task_model=task, decoder=decoder, together=several, **given)
            if processes()[0] > 0:
                return
    with store:
        facts = summarise(store)
    seconds = time.monotonic() - began
    out.result({**facts, "seconds": seconds}, store_block(facts))
    out.status(f"wrote {store.path} in {seconds:.1f} s")


def _codec_of(context: typer.Context, like: Path) -> str:
    """Return the codec that samples of a store are stored with; options that say otherwise are refused."""
    from krstore.memory.alike import storage
    from krstore.store.reader import Store

    for name, flag in UNLIKE.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"--like {like} says how to encode; leave {flag} out")
    with Store(like) as store:
        return storage(store)[0]


def _refuse_for_states(options: dict[str, str | None]) -> None:
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"{name} {value}: a snapshot codec encodes a network's states, which have no samples")
