"""krstore snapshot: a network's states after each step, as one archive."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from krstore_cli import output
from krstore_cli.options import Force, Json, Quiet, Verbose, option
from krstore_cli.show import size_text

__all__ = ["EXAMPLE", "snapshot"]

EXAMPLE = "Example: krstore snapshot step0.safetensors step1.safetensors step2.safetensors -o snaps.h5"


def snapshot(
    states: Annotated[
        list[Path],
        typer.Argument(help="A file for each step, in order: .safetensors, or torch's .pt.", show_default=False),
    ],
    output_path: Annotated[Path, option("--output", "-o", help="The .h5 file to write.", show_default=False)],
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Put a network's states after each step into one archive.

    Checkpoints of torch.save are read without executing anything in them. Negative zeros become zeros.
    """
    out = output.begin(json, quiet, verbose)
    from krstore.archives.states import snapshot as write

    began = time.monotonic()
    source = write(states, output_path, force=force, progress=out.progress())
    steps = source.spec.steps
    facts = {
        "path": str(output_path), "steps": len(steps), "arrays": [len(step) for step in steps],
        "elements": [sum(array.elements for array in step.values()) for step in steps],
        "bytes": output_path.stat().st_size, "seconds": time.monotonic() - began,
    }  # fmt: skip
    last = f"{len(steps[-1])} arrays, {facts['elements'][-1]:,} elements at the last"  # type: ignore[index]
    out.result(facts, f"{output_path}: {len(steps)} steps, {last}, {size_text(output_path.stat().st_size)}")
