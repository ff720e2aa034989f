"""Stores as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from krstore_cli.output import block, table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

__all__ = ["figure", "settings_text", "shape_text", "size_text", "store_block", "store_table"]

PARTS = ("network", "latent", "labels", "overhead")


def store_block(facts: Mapping[str, Any]) -> RenderableType:
    """Return one store's facts (`krstore.store.summary.summarise`) as an aligned block."""
    sizes, quality = facts["bytes"], dict(facts["quality"])
    per_class = quality.pop("per_class", {})
    kept = "" if facts["kept"] == facts["samples"] else f", {facts['kept']:,} kept"
    classes = "no labels" if facts["classes"] is None else f"{facts['classes']:,}"
    pairs = [
        ("codec", f"{facts['codec']} ({facts['kind']})"),
        ("config", settings_text(facts["config"])),
        ("samples", f"{facts['samples']:,}{kept}"),
        ("shape", f"{shape_text(facts['shape'])} {facts['dtype']}"),
        ("classes", classes),
        *((f"  {key}", str(value)) for key, value in facts["source"]["attributes"].items()),
        ("ratio", f"{facts['ratio']:.3f}"),
        ("source", _bytes(sizes["source"])),
        ("file", _bytes(sizes["file"])),
        *((f"  {part}", f"{_bytes(sizes[part])}  {100 * sizes[part] / sizes['file']:5.1f} %") for part in PARTS),
        ("quality", ("lossless" if quality["mse"] == 0 else "lossy") + (", of what is kept" if kept else "")),
        *((f"  {name}", _quality(name, value)) for name, value in quality.items() if value is not None),
        *((f"  mse of class {label}", figure(error)) for label, error in per_class.items()),
    ]
    return block(facts["path"], pairs)


def store_table(stores: Sequence[Mapping[str, Any]]) -> Table:
    """Return several stores' facts as a table."""
    columns = ("store", "codec", "samples", "shape", "dtype", "bytes", "ratio", "mse", "nmse", "psnr", "cosine")
    rows = [
        (
            facts["path"],
            facts["codec"],
            f"{facts['kept']:,}",
            shape_text(facts["shape"]),
            facts["dtype"],
            f"{facts['bytes']['file']:,}",
            f"{facts['ratio']:.2f}",
            *(_quality(name, facts["quality"][name]) for name in ("mse", "nmse", "psnr", "cosine")),
        )
        for facts in stores
    ]
    return table(columns, rows)


def shape_text(shape: Sequence[int]) -> str:
    """Return a sample's shape as 64x8x8."""
    return "x".join(map(str, shape)) or "scalar"


def settings_text(settings: Mapping[str, Any]) -> str:
    """Return settings as they are given to ``--set``."""
    return " ".join(f"{key}={value}" for key, value in settings.items())


def size_text(count: int) -> str:
    """Return a number of bytes in the unit people use: 41.9 MB."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def figure(value: float | None) -> str:
    """Return a measured value with six digits."""
    return "-" if value is None else f"{value:.6g}"


def _bytes(count: int) -> str:
    return f"{count:>15,}  {size_text(count):>8}"


def _quality(name: str, value: float | None) -> str:
    return f"{value:.2f} dB" if name == "psnr" and value is not None else figure(value)
