"""krstore codecs: which codecs there are, and what their options mean."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from krstore_cli import output
from krstore_cli.options import Json, Quiet, Verbose, complete_codec
from krstore_cli.show import settings_text

__all__ = ["EXAMPLE", "codecs"]

EXAMPLE = "Example: krstore codecs krnet"


def codecs(
    name: Annotated[
        str | None, typer.Argument(help="Show this codec's options and presets.", autocompletion=complete_codec)
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """List the codecs, or show one's options."""
    out = output.begin(json, quiet, verbose)
    from krstore.describe import describe_codec
    from krstore.registry import codec_names

    if name is not None:
        facts = describe_codec(name)
        out.result(facts, *_one(facts))
        return
    listed = [_describe_or_error(codec) for codec in codec_names()]
    rows = [
        (f["name"], f["kind"] or "-", _answer(f["lossless"]), f["package"] or "-", f["summary"] or "") for f in listed
    ]
    out.result(listed, output.table(("codec", "kind", "lossless", "package", "what it is"), rows))
    for facts in listed:
        if facts["error"]:
            out.warning(f"codec {facts['name']} cannot be loaded: {facts['error']}")


def _describe_or_error(name: str) -> dict[str, Any]:
    """Return a codec's line of the list; one that cannot be imported must not hide the others."""
    from krstore.describe import describe_codec

    keys = ("name", "kind", "lossless", "package", "summary")
    try:
        facts = describe_codec(name)
    except Exception as error:  # a third party's code runs at import, and may raise anything
        return {**dict.fromkeys(keys), "name": name, "error": f"{type(error).__name__}: {error}"}
    return {**{key: facts[key] for key in keys}, "error": None}


def _answer(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "no"


def _one(facts: dict[str, Any]) -> list[Any]:
    pairs = [
        ("kind", facts["kind"]),
        ("lossless", _answer(facts["lossless"])),
        ("package", facts["package"] or "-"),
        *((f"preset {preset}", settings_text(values) or "defaults") for preset, values in facts["presets"].items()),
    ]
    shown: list[Any] = [output.block(facts["name"], pairs)]
    if facts["options"]:
        rows = [(o["name"], o["type"], str(o["default"]), o["description"]) for o in facts["options"]]
        shown += ["", output.table(("option", "type", "default", "what it does"), rows)]
    return [*shown, "", facts["doc"]]
