"""krstore extract: a network's features of images, as an archive."""

from __future__ import annotations

import json as jsons
import time
from pathlib import Path
from typing import Annotated, Any

from krstore.errors import UsageError
from krstore_cli import output
from krstore_cli.options import Device, Force, Json, Quiet, Trust, Verbose, option
from krstore_cli.show import shape_text, size_text

__all__ = ["EXAMPLE", "extract"]

EXAMPLE = (
    "Example: krstore extract --model krstore.backbones:resnet32 --weights resnet32.safetensors --layer layer3.0 "
    "--images cifar.npz --mean 0.5071,0.4867,0.4408 --std 0.2675,0.2565,0.2761 -o features.h5"
)


def extract(
    model: Annotated[
        str,
        option(
            "--model",
            metavar="PACKAGE.MODULE:FACTORY",
            help="What returns the network: krstore.backbones:resnet32, or one of yours.",
            show_default=False,
        ),
    ],
    layer: Annotated[str, option("--layer", help="The module whose output is kept, as layer3.0.", show_default=False)],
    images: Annotated[
        Path, option("--images", help="A folder of images, or an archive with an array of them.", show_default=False)
    ],
    output_path: Annotated[Path, option("--output", "-o", help="The .h5 file to write.", show_default=False)],
    weights: Annotated[Path | None, option("--weights", help="The network's weights, a .safetensors file.")] = None,
    model_args: Annotated[
        list[str] | None,
        option("--model-arg", metavar="KEY=VALUE", help="An argument of the factory, as classes=100; may be repeated."),
    ] = None,
    images_key: Annotated[
        str | None, option("--images-key", help="The images' name in the archive; default images.")
    ] = None,
    labels_key: Annotated[
        str | None, option("--labels-key", help="The labels' name in the archive; for .npy, a second .npy file.")
    ] = None,
    layout: Annotated[str, option("--layout", help="Of arrays of images: auto, nhwc, nchw.")] = "auto",
    mean: Annotated[
        str | None, option("--mean", metavar="NUMBERS", help="Taken off the images, a number a channel.")
    ] = None,
    std: Annotated[
        str | None, option("--std", metavar="NUMBERS", help="What they are divided by then, a number a channel.")
    ] = None,
    resize: Annotated[
        int | None, option("--resize", help="Scale the shorter side of images in a folder to this.")
    ] = None,
    crop: Annotated[int | None, option("--crop", help="Cut this square out of the middle of those.")] = None,
    batch_size: Annotated[int, option("--batch-size", help="Images at a time.")] = 128,
    dtype: Annotated[str, option("--dtype", help="Of the features in the file: float32, float16.")] = "float32",
    trust: Trust = False,
    device: Device = "auto",
    force: Force = False,
    resume: Annotated[
        bool, option("--resume", help="Go on with an interrupted extraction of the same things.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Run images through a network and keep the output of one of its layers.

    uint8 images are divided by 255, then --mean and --std are applied. Labels come from the archive, or are the
    places of the class folders in alphabetical order.
    """
    out = output.begin(json, quiet, verbose)
    from krstore.extraction import extract as extract_features

    began = time.monotonic()
    source = extract_features(
        model,
        layer,
        images,
        output_path,
        weights=weights,
        model_args=_parse_arguments(model_args or []),
        images_key=images_key,
        labels_key=labels_key,
        layout=layout,
        mean=_parse_numbers("--mean", mean),
        std=_parse_numbers("--std", std),
        resize=resize,
        crop=crop,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        force=force,
        resume=resume,
        trust=trust,
        progress=out.progress(),
    )
    spec = source.spec
    facts = {
        "path": str(output_path),
        "samples": spec.samples,
        "shape": list(spec.shape),
        "dtype": spec.dtype,
        "classes": None if source.labels is None else len(set(source.labels.tolist())),
        "attributes": dict(spec.attributes),
        "bytes": output_path.stat().st_size,
        "seconds": time.monotonic() - began,
    }
    what = f"{spec.samples:,} samples of {shape_text(spec.shape)} {spec.dtype}"
    labelled = "without labels" if facts["classes"] is None else f"{facts['classes']} classes"
    size = size_text(output_path.stat().st_size)
    out.result(facts, f"{output_path}: {what}, {labelled}, {size}, {facts['seconds']:.1f} s")


def _parse_numbers(name: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{name} {text}: expected numbers with commas between them, as 0.5,0.5,0.5") from None


def _parse_arguments(pairs: list[str]) -> dict[str, Any]:
    """Read ``key=value`` arguments; a value that is JSON (100, true, [5, 5]) is that, any other is text."""
    arguments: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise UsageError(f"--model-arg {pair}: expected key=value")
        try:
            arguments[key] = jsons.loads(value)
        except ValueError:
            arguments[key] = value
    return arguments
