"""Options that commands share, and how their values are read.

Every option can come from the environment too, as ``KRSTORE_`` and its long name; the command line wins.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from krstore.errors import UsageError

if TYPE_CHECKING:
    import torch

__all__ = [
    "Device",
    "Force",
    "Json",
    "MaxBytes",
    "MaxMse",
    "Output",
    "Preset",
    "Quiet",
    "Ratio",
    "Seed",
    "Settings",
    "TaskModel",
    "TaskWeights",
    "Trust",
    "Verbose",
    "chosen_target",
    "complete_codec",
    "load_task_model",
    "option",
    "parse_bytes",
    "parse_classes",
    "parse_ids",
    "parse_settings",
]

_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{infix}B": base**power
    for infix, base in (("", 1000), ("I", 1024))
    for power, prefix in enumerate("KMGT", start=1)
}


def option(*names: str, help: str, **more: Any) -> Any:
    """Return a Typer option that the environment sets too."""
    long = next(name for name in names if name.startswith("--"))
    return typer.Option(*names, help=help, envvar=f"KRSTORE_{long[2:].replace('-', '_').upper()}", **more)


def parse_bytes(text: str) -> int:
    """Read a size: 500000, 500kB, 5MB (powers of 1000), 5MiB (of 1024)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _UNITS:
        raise typer.BadParameter(f"{text!r} is no size; expected bytes, or a number with kB, MB, GB, KiB, MiB or GiB")
    size = float(match[1]) * _UNITS[match[2].upper()]
    if size >= 1 << 63:
        raise typer.BadParameter(f"{_shown(text)} is more than any file has")
    return int(size)


def _integer(text: str) -> int:
    """Read an integer of 64 bits.

    Raises:
        ValueError: it is none.
    """
    number = int(text)
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError(text)
    return number


def _shown(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}..."


Json = Annotated[bool, option("--json", help="Write the result as JSON to stdout.")]
Quiet = Annotated[bool, option("--quiet", "-q", help="Only results and errors.")]
Verbose = Annotated[
    int,
    option(
        "--verbose", "-v", count=True, show_default=False, help="More details; -vv shows the traceback of an error."
    ),
]
Device = Annotated[str, option("--device", help="Where to compute: auto, cpu, cuda, cuda:1, mps.")]
Force = Annotated[bool, option("--force", help="Replace an existing output.")]
Trust = Annotated[
    bool, option("--trust", help="Let an HDF5 archive read other files (external links, virtual datasets).")
]
Output = Annotated[Path | None, option("--output", "-o", help="The file to write; default beside the input.")]
Ratio = Annotated[float | None, option("--ratio", help="Make the file at least this many times smaller.")]
MaxBytes = Annotated[
    int | None,
    option(
        "--max-bytes", parser=parse_bytes, metavar="SIZE", help="Make the file at most this large: 500000, 500kB, 5MiB."
    ),
]
MaxMse = Annotated[float | None, option("--max-mse", help="Keep the mean squared error at or below this.")]
Preset = Annotated[str | None, option("--preset", help="A named set of the codec's options.")]
Settings = Annotated[
    list[str] | None, option("--set", metavar="KEY=VALUE", help="One option of the codec; may be repeated.")
]
Seed = Annotated[int, option("--seed", help="Of everything random: the same seed gives the same result.")]
TaskModel = Annotated[
    str | None,
    option(
        "--task-model", metavar="PACKAGE.MODULE:FACTORY", help="A network on the features, for codecs that use one."
    ),
]
TaskWeights = Annotated[Path | None, option("--task-weights", help="Its weights, a .safetensors file.")]


def complete_codec(incomplete: str) -> list[str]:
    """Return the names of codecs that begin so; imports none of them."""
    from krstore.registry import codec_names

    return [name for name in codec_names() if name.startswith(incomplete)]


def chosen_target(context: typer.Context, **targets: Any) -> dict[str, Any]:
    """Return the targets without those of the environment when the command line gives one: they exclude each other."""
    sources = {name: context.get_parameter_source(name) for name in targets}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    return {name: value for name, value in targets.items() if name in given} if given else targets


def load_task_model(factory: str | None, weights: Path | None) -> torch.nn.Module | None:
    """Return the frozen network that the options name, if any."""
    if factory is None:
        if weights is not None:
            raise UsageError("--task-weights needs --task-model, the network they belong to")
        return None
    from krstore.modules import load_module

    return load_module(factory, weights)


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """Read ``key=value`` settings; a value that begins as a JSON object or array is one."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise UsageError(f"--set {pair}: expected key=value")
        settings[key.strip()] = value.strip()
        if value.strip().startswith(("{", "[")):
            try:
                settings[key.strip()] = json.loads(value)
            except ValueError as error:
                raise UsageError(f"--set {pair}: not JSON ({error})") from None
    return settings


def parse_classes(text: str) -> list[int]:
    """Read labels: 3,7."""
    try:
        return [_integer(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--classes {_shown(text)}: expected integers of 64 bits with commas between them, as 3,7"
        ) from None


def parse_ids(text: str, samples: int, kept: int) -> list[int]:
    """Read IDs and ranges of samples: 0:100,500; the end of a range is left out, as in Python.

    Args:
        text: what is read.
        samples: how many the source had.
        kept: how many the store has: of a longer range, one more than that is read, among which one is not kept.
    """
    ids: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{0,18})\s*(?:(:)\s*(\d{0,18})\s*)?", part)
        if match is None or not (match[1] or match[2]):
            raise UsageError(f"--ids {_shown(text)}: expected IDs and ranges with commas between them, as 0:100,500")
        start = int(match[1] or 0)
        stop = (int(match[3]) if match[3] else samples) if match[2] else start + 1
        if not start < stop <= samples:
            raise UsageError(f"--ids {_shown(text)}: {part!r} is not within the source's samples, 0 to {samples - 1}")
        ids.extend(range(start, stop)[: kept + 1])
    return ids
