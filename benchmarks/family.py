"""krnet's family at one file size: from a network that recites all it knows from IDs to codes for each sample.

Beside it the autoencoder, which has no IDs, and the paper's network in float32, as large as the same bytes allow.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks._common import Run, archive_facts, main
from krstore import encode
from krstore.errors import TargetUnreachableError

RATIO, ITERATIONS = 50, 1500
LATENTS = (0, 1, 4, 16, 64)
PAPER = {
    "style": "paper", "weights": "float32", "batch_size": 100, "learning_rate": 3e-3, "plateau": None,
    "group_size": 64, "c0": 16,
}  # fmt: skip


def measure(run: Run) -> dict[str, Any]:
    """Encode the archive by every member of the family; rows of an earlier run on the same archive are kept."""
    source = run.source()
    facts = {"archive": archive_facts(source), "ratio": RATIO, "iterations": ITERATIONS}
    same = all(run.earlier.get(key) == value for key, value in facts.items())
    done = {row["name"]: row for row in (run.earlier["rows"] if same else [])}
    rows = []
    for name, codec, settings in _members(tiny=run.tiny):
        row = done.pop(name, None)
        if row is None:
            given = {"iterations": 2 if run.tiny else ITERATIONS} | settings
            path = run.folder / "x.krs"
            try:
                store = encode(source, path, codec, ratio=10 if run.tiny else RATIO, settings=given, force=True)
            except TargetUnreachableError as error:
                print(f"{name}: {error}", file=sys.stderr)
                continue
            codes = sum(m.bytes for n, m in store.header.members.items() if n.startswith("payload/latent/codes"))
            row = {
                "name": name, "codec": codec, "latent": store.config["latent"], "bytes": store.bytes.file,
                "ratio": store.ratio, "network": store.bytes.network, "code_bytes": codes / len(store),
                "nmse": store.quality.nmse,
            }  # fmt: skip
        rows.append(row)
        print(f"{name:24} {row['code_bytes']:6.1f} {row['nmse']:.5f}", file=sys.stderr)
        run.save({**facts, "rows": [*rows, *done.values()]})
    return {**facts, "rows": rows}


def _members(*, tiny: bool) -> list[tuple[str, str, dict[str, Any]]]:
    members: list[tuple[str, str, dict[str, Any]]] = [
        (f"krnet, {latent} codes" if latent else "krnet", "krnet", {"latent": latent}) for latent in LATENTS
    ]
    others = [("autoencoder", "autoencoder", {}), ("krnet, the paper's in float32", "krnet", PAPER)]
    return members[1:2] if tiny else members + others


if __name__ == "__main__":
    main("family", __doc__, measure)
