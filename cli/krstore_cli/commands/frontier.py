"""krstore frontier: methods at equal bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from krstore.errors import UsageError
from krstore_cli import output
from krstore_cli.options import Json, Quiet, Verbose, option, parse_bytes, parse_settings
from krstore_cli.show import size_text

__all__ = ["EXAMPLE", "frontier"]

EXAMPLE = (
    "Example: krstore frontier --data images --budgets 1MB,2MB,4MB --methods icarl,der,memo,kril --preset small -o grid"
)


def frontier(
    budgets: Annotated[
        str, option("--budgets", metavar="SIZE,...", help="Of network and memory together: 1MB,7.6MiB.")
    ],
    folder: Annotated[Path, option("--output", "-o", help="The grid's folder.")],
    methods: Annotated[str | None, option("--methods", metavar="NAME,...", help="See krstore learn --list.")] = None,
    data: Annotated[Path | None, option("--data", help="Training and test set; as krstore learn takes them.")] = None,
    test: Annotated[Path | None, option("--test", help="The test set, where --data is the training set alone.")] = None,
    preset: Annotated[str | None, option("--preset", help="As of krstore learn.")] = None,
    config: Annotated[
        Path | None, option("--config", help="A TOML file: options of all runs, and runs of their own; see the page.")
    ] = None,
    settings: Annotated[
        list[str] | None, option("--set", metavar="NAME=VALUE", help="One option of all runs; may be repeated.")
    ] = None,
    seed: Annotated[int, option("--seed", min=0, help="Of the first runs.")] = 0,
    seeds: Annotated[int, option("--seeds", min=1, help="How many runs of each, of this seed and those after it.")] = 1,
    device: Annotated[str | None, option("--device", help="Where to compute: auto, cpu, cuda.")] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Run methods at equal bytes, and draw accuracy against budget.

    What is there is not run again: a grid that was interrupted goes on, and one that is asked for other methods,
    budgets or seeds grows.
    """
    out = output.begin(json, quiet, verbose)
    from krstore.learning.frontier import frontier as run
    from krstore.learning.frontier import read_grid, summarised

    named, shared = ({}, {}) if config is None else read_grid(config)
    asked = [name for name in (methods or "").split(",") if name]
    plain: dict[str, tuple[str, dict[str, Any]]] = {name.replace(":", "."): (name, {}) for name in asked}  # folders too
    if named.keys() & plain.keys():
        raise UsageError(f"--methods and the runs of {config} both have {', '.join(named.keys() & plain.keys())}")
    named |= plain
    sizes = [parse_bytes(size) for size in budgets.split(",")]
    given: dict[str, Any] = {**shared, **parse_settings(settings or [])}
    given |= {name: str(path) for name, path in (("data", data), ("test", test)) if path is not None}
    given |= {} if device is None else {"device": device}
    if not named or "data" not in given:
        raise UsageError("name --data, and --methods or runs in a --config")
    rows = run(
        named, sizes, folder, given, preset=preset, seeds=range(seed, seed + seeds), progress=out.progress()
    )  # fmt: skip
    found = summarised(rows, "average_incremental")
    columns = sorted({budget for own in found.values() for budget in own})
    lines = [(name, *(_shown(own, budget) for budget in columns)) for name, own in found.items()]
    out.result(rows, output.table(("average %", *map(size_text, columns)), lines))
    out.status(f"wrote {folder / 'frontier.png'} and frontier.json; - is a budget that the method cannot keep to")


def _shown(own: dict[int, tuple[float, float | None] | None], budget: int) -> str:
    if budget not in own:
        return ""
    at = own[budget]
    if at is None:
        return "-"
    return output.percent(*at)
