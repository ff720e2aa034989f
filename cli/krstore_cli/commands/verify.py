"""krstore verify: whether a store is intact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from krstore_cli import errors, output
from krstore_cli.options import Device, Json, Quiet, Trust, Verbose, option
from krstore_cli.show import figure

__all__ = ["EXAMPLE", "verify"]

EXAMPLE = "Example: krstore verify features.krnet.krs --against features.h5"


def verify(
    stores: Annotated[list[Path], typer.Argument(help="The .krs files.", show_default=False)],
    decode: Annotated[bool, option("--decode", help="Decode every sample, or state, too.")] = False,
    against: Annotated[
        Path | None, option("--against", help="The archive that was encoded: measure the quality again.")
    ] = None,
    trust: Trust = False,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Check stores: structure, checksums, decoding.

    By default the structure and every checksum; --decode and --against go further. Exits with 4 when a store is
    damaged, and with 1 when its quality is not what its header says.
    """
    out = output.begin(json, quiet, verbose)
    reports: list[dict[str, Any]] = []

    def check(path: Path) -> int:
        import msgspec

        from krstore.store.verify import verify as verify_store

        report = verify_store(path, decode=decode, against=against, trust=trust, device=device, progress=out.progress())
        facts = msgspec.to_builtins(report)
        reports.append({"path": facts.pop("path"), "ok": report.ok, **facts})
        if report.ok:
            return errors.OK
        listed = ", ".join(
            f"{name} {figure(new)} (header: {figure(old)})" for name, (old, new) in report.differences.items()
        )
        out.error(f"{path}: the quality measured again is not the header's: {listed}")
        return errors.FAILURE

    code = max(errors.attempt(lambda path=path: check(path)) for path in stores)  # type: ignore[misc]
    lines = [_line(report) for report in reports if report["ok"]]
    if len(stores) > 1:
        out.result(reports, *lines)
    elif reports:
        out.result(reports[0], *lines)
    if code:
        raise typer.Exit(code)


def _line(report: dict[str, Any]) -> str:
    said = [f"{len(report['members'])} members, {sum(report['members'].values()):,} bytes match their checksums"]
    if report["decoded"]:
        said.append(f"{report['decoded']:,} {'states' if report['kind'] == 'snapshot' else 'samples'} decode")
    if report["quality"] is not None:
        said.append(f"mse {figure(report['quality']['mse'])} as the header says")
    return f"{report['path']}: ok: {'; '.join(said)}"
