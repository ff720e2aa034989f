"""krstore demo: every codec on real feature maps, and a classifier retrained from each store."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from krstore_cli import output
from krstore_cli.commands.compare import comparison_facts, comparison_table, report_failures
from krstore_cli.options import Device, Json, Quiet, Verbose, option

if TYPE_CHECKING:
    from krstore.demonstration import Demonstration

__all__ = ["EXAMPLE", "demo"]

EXAMPLE = "Example: krstore demo -o krstore-demo"


def demo(
    output_path: Annotated[Path, option("--output", "-o", help="The folder to write.")] = Path("krstore-demo"),
    device: Device = "auto",
    seed: Annotated[int, option("--seed", help="Of everything random.")] = 0,
    force: Annotated[bool, option("--force", help="Replace the files of an earlier demo in the folder.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Encode the feature maps of real images with every codec, and retrain a classifier from each store alone.

    Takes about a minute on two cores: scikit-learn's digits, a small network trained on the spot, each codec at three
    ratios, and for each store the test accuracy of a classifier that has seen nothing else.
    """
    out = output.begin(json, quiet, verbose)
    from krstore.demonstration import demonstrate

    began = time.monotonic()
    found = demonstrate(output_path, device=device, seed=seed, force=force, progress=out.progress())
    seconds = time.monotonic() - began
    accuracy = ["-" if value is None else f"{100 * value:.1f} %" for value in found.accuracy]
    facts = {
        **comparison_facts(found.comparison),
        "train_images": found.train_images,
        "test_images": found.test_images,
        "iterations": found.iterations,
        "network_accuracy": found.network_accuracy,
        "accuracy": found.accuracy,
        "seconds": seconds,
    }
    out.result(facts, comparison_table(found.comparison.rows, ("accuracy", accuracy)), "", summary(found))
    out.status(f"wrote {output_path}: images, features, stores, {found.comparison.picture.name}; {seconds:.0f} s")
    if code := report_failures(found.comparison):
        raise typer.Exit(code)


def summary(found: Demonstration) -> str:
    """Say what the last column means, and what it shows."""
    source = found.comparison.source
    shape = "x".join(map(str, source["shape"]))
    pairs = zip(found.comparison.rows, found.accuracy, strict=True)
    ends = {row["codec"]: (row, value) for row, value in pairs if value is not None}
    listed = ", ".join(
        f"{codec} {100 * value:.1f} % at {row['ratio']:.1f}{' (lossless)' if row['quality']['mse'] == 0 else ''}"
        for codec, (row, value) in ends.items()
    )
    return (
        f"{source['samples']:,} feature maps of {shape} {source['dtype']}. The last column is the accuracy of a "
        f"classifier retrained from that store alone, on {found.test_images} held-out images.\n"
        f"At each codec's highest ratio: {listed}.\n"
        f"transform, autoencoder and krnet have trained for {found.iterations} steps only; by default it is far more."
    )
