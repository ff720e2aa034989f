"""Stores as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from krstore_cli.output import block, table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

__all__ = ["figure", "settings_text", "shape_text", "size_text", "store_block", "store_tables"]

PARTS = ("network", "latent", "labels", "overhead")


def store_block(facts: Mapping[str, Any]) -> RenderableType:
    """Return one store's facts (`krstore.store.summary.summarise`) as an aligned block."""
    sizes, quality = facts["bytes"], dict(facts["quality"])
    parts = {"class": quality.pop("per_class", {}), "step": dict(enumerate(quality.pop("per_step", ())))}
    partial = facts.get("kept") != facts.get("samples")
    pairs = [
        ("codec", f"{facts['codec']} ({facts['kind']})"),
        ("config", settings_text(facts["config"])),
        *(_states(facts) if facts["kind"] == "snapshot" else _samples(facts)),
        *((f"  {key}", str(value)) for key, value in facts["source"]["attributes"].items()),
        ("ratio", f"{facts['ratio']:.3f}"),
        ("source", _bytes(sizes["source"])),
        ("file", _bytes(sizes["file"])),
        *((f"  {part}", f"{_bytes(sizes[part])}  {100 * sizes[part] / sizes['file']:5.1f} %") for part in PARTS),
        ("quality", ("lossless" if quality["mse"] == 0 else "lossy") + (", of what is kept" if partial else "")),
        *((f"  {name}", _quality(name, value)) for name, value in quality.items() if value is not None),
        *((f"  mse of {what} {key}", figure(e)) for what, errors in parts.items() for key, e in errors.items()),
    ]
    return block(facts["path"], pairs)


def _samples(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    kept = "" if facts["kept"] == facts["samples"] else f", {facts['kept']:,} kept"
    classes = "no labels" if facts["classes"] is None else f"{facts['classes']:,}"
    return [
        ("samples", f"{facts['samples']:,}{kept}"),
        ("shape", f"{shape_text(facts['shape'])} {facts['dtype']}"),
        ("classes", classes),
    ]


def _states(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("steps", f"{facts['steps']:,}"),
        ("network", f"{facts['arrays']:,} arrays, {facts['elements']:,} elements"),
    ]


def store_tables(stores: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Return several stores' facts as tables, one of samples and one of networks' states."""
    names = ("mse", "nmse", "psnr", "cosine")
    samples = [
        (
            facts["path"],
            facts["codec"],
            f"{facts['kept']:,}",
            shape_text(facts["shape"]),
            facts["dtype"],
            *_size_and_quality(facts, names),
        )
        for facts in stores
        if facts["kind"] != "snapshot"
    ]
    states = [
        (facts["path"], facts["codec"], f"{facts['steps']:,}", *_size_and_quality(facts, names[:2]))
        for facts in stores
        if facts["kind"] == "snapshot"
    ]
    tables = []
    if samples:
        tables.append(table(("store", "codec", "samples", "shape", "dtype", "bytes", "ratio", *names), samples))
    if states:
        tables.append(table(("store", "codec", "steps", "bytes", "ratio", *names[:2]), states))
    return tables


def _size_and_quality(facts: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    figures = [_quality(name, facts["quality"][name]) for name in names]
    return [f"{facts['bytes']['file']:,}", f"{facts['ratio']:.2f}", *figures]


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
