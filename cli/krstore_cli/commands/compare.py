"""krstore compare: one archive through several codecs at several ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from krstore.errors import TargetUnreachableError, UsageError
from krstore_cli import errors, output
from krstore_cli.options import Device, Json, Quiet, Trust, Verbose, option
from krstore_cli.show import figure

if TYPE_CHECKING:
    from rich.table import Table

    from krstore.comparison_folder import Comparison

__all__ = ["EXAMPLE", "compare", "comparison_facts", "comparison_table", "report_failures"]

EXAMPLE = "Example: krstore compare features.h5 --codecs raw,autoencoder,krnet,pq --ratios 10,20,40 -o comparison"


def compare(
    archive: Annotated[
        Path, typer.Argument(help="An archive (.h5, .npy, .npz, .safetensors) or a store.", show_default=False)
    ],
    output_path: Annotated[
        Path, option("--output", "-o", help="The folder for stores, table and picture.", show_default=False)
    ],
    codecs: Annotated[
        str, option("--codecs", metavar="NAMES", help="Names of codecs, with commas between them.")
    ] = "raw,pq,transform,autoencoder,krnet",
    ratios: Annotated[
        str, option("--ratios", metavar="NUMBERS", help="How many times smaller the files shall at least be.")
    ] = "10,20,40",
    settings: Annotated[
        list[str] | None,
        option("--set", metavar="CODEC.KEY=VALUE", help="One option of one codec; may be repeated."),
    ] = None,
    features_key: Annotated[str | None, option("--features-key", help="The samples' name in the archive.")] = None,
    labels_key: Annotated[
        str | None, option("--labels-key", help="The labels' name in the archive; for .npy, a second .npy file.")
    ] = None,
    trust: Trust = False,
    device: Device = "auto",
    seed: Annotated[int, option("--seed", help="Of everything random.")] = 0,
    force: Annotated[bool, option("--force", help="Encode again what the folder has already.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Encode an archive with every codec at every ratio, and show sizes, quality and times side by side.

    The folder gets the stores, compare.json, compare.csv and rate_distortion.png. Stores that an earlier run has left
    there are not encoded again. Lossless codecs take no ratio and are encoded once.
    """
    out = output.begin(json, quiet, verbose)
    from krstore.archives import open_archive
    from krstore.comparison import compare as compare_codecs

    names, numbers = _names(codecs), _numbers(ratios)
    chosen = parse_codec_settings(settings or [])
    source = open_archive(archive, features_key=features_key, labels_key=labels_key, trust=trust)
    comparison = compare_codecs(
        source, output_path, names, numbers, settings=chosen, device=device, seed=seed, force=force,
        progress=out.progress(),
    )  # fmt: skip
    out.result(comparison_facts(comparison), comparison_table(comparison.rows))
    out.status(f"wrote {output_path}: stores, compare.json, compare.csv, {comparison.picture.name}")
    if code := report_failures(comparison):
        raise typer.Exit(code)


def comparison_facts(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as JSON holds it."""
    return {"folder": str(comparison.folder), "source": comparison.source, "setup": comparison.setup,
            "rows": comparison.rows}  # fmt: skip


def comparison_table(rows: Sequence[Mapping[str, Any]], extra: tuple[str, Sequence[str]] | None = None) -> Table:
    """Return a comparison as a table, with one more column where there is one."""
    columns = [
        "codec", "asked", "ratio", "file", "network", "latent", "mse", "mse_normalised", "nmse", "psnr",
        "encode s", "decode s", *((extra[0],) if extra else ()),
    ]  # fmt: skip
    cells = [_cells(row) for row in rows]
    for number, row in enumerate(cells):
        row += [extra[1][number]] if extra else []
    return output.table(columns, cells)


def report_failures(comparison: Comparison) -> int:
    """Say which ratios could not be reached; return the exit code."""
    code = errors.OK
    for row in comparison.failed:
        code = errors.report(TargetUnreachableError(f"{row['codec']} at ratio {row['asked_ratio']:g}: {row['error']}"))
    return code


def parse_codec_settings(pairs: list[str]) -> dict[str, dict[str, str]]:
    """Read ``codec.key=value`` settings."""
    settings: dict[str, dict[str, str]] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        codec, dot, key = name.strip().partition(".")
        if not (codec and dot and key and equals):
            raise UsageError(f"--set {pair}: expected codec.key=value")
        settings.setdefault(codec, {})[key] = value.strip()
    return settings


def _cells(row: Mapping[str, Any]) -> list[str]:
    asked = "-" if row["asked_ratio"] is None else f"{row['asked_ratio']:g}"
    if row["error"] is not None:
        return [row["codec"], asked, *["-"] * 8, f"{row['seconds']:.1f}", "-"]
    sizes, quality = row["bytes"], row["quality"]
    return [
        row["codec"],
        asked,
        f"{row['ratio']:.2f}",
        *(f"{sizes[part]:,}" for part in ("file", "network", "latent")),
        *(figure(quality[name]) for name in ("mse", "mse_normalised", "nmse")),
        "-" if quality["psnr"] is None else f"{quality['psnr']:.2f}",
        f"{row['seconds']:.1f}",
        f"{row['decode_seconds']:.3f}",
    ]


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--ratios {text}: expected numbers with commas between them, as 10,20,40") from None
