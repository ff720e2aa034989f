"""krstore learn: class-incremental learning with one method, on one protocol."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from krstore.errors import UsageError
from krstore_cli import output
from krstore_cli.methods import method_facts, method_shown, methods_table
from krstore_cli.options import (
    Json,
    Quiet,
    Ratio,
    Verbose,
    complete_codec,
    option,
    parse_bytes,
    parse_settings,
)
from krstore_cli.show import size_text

if TYPE_CHECKING:
    from krstore.learning.results import RunResult

__all__ = ["EXAMPLE", "learn"]

EXAMPLE = "Example: krstore learn kril --data features --base 50 --steps 10 --ratio 100 --preset fast -o run"


def learn(
    method: Annotated[
        str | None,
        typer.Argument(help="The method, or package.module:Class of your own; --list shows all.", show_default=False),
    ] = None,
    data: Annotated[Path | None, option("--data", help="Training and test set; see the page.")] = None,
    test: Annotated[Path | None, option("--test", help="The test set, where --data is the training set alone.")] = None,
    folder: Annotated[Path | None, option("--output", "-o", help="The run's folder.")] = None,
    base: Annotated[int | None, option("--base", help="Classes of the first task; 0: all tasks are equal.")] = None,
    steps: Annotated[int | None, option("--steps", help="Tasks after the first; without a base, all tasks.")] = None,
    order: Annotated[str | None, option("--order", help="Of the classes: lucir, icarl, gfr, ascending, a seed")] = None,
    model: Annotated[
        str | None, option("--model", metavar="PACKAGE.MODULE:FACTORY", help="The network, without its classifier.")
    ] = None,
    weights: Annotated[Path | None, option("--weights", help="Its weights, a .safetensors file.")] = None,
    codec: Annotated[
        str | None, option("--codec", help="Of the memory; see krstore codecs.", autocompletion=complete_codec)
    ] = None,
    exemplars: Annotated[
        str | None,
        option("--exemplars", help="Keep some samples of each class: herding, mnemonics, random, kmeans; or none."),
    ] = None,
    adjust: Annotated[bool, option("--adjust", help="Train old exemplars against each other after each task.")] = False,
    no_pruning: Annotated[bool, option("--no-pruning", help="m2kd: keep every earlier network whole.")] = False,
    ratio: Ratio = None,
    budget: Annotated[
        int | None,
        option(
            "--budget",
            parser=parse_bytes,
            metavar="SIZE",
            help="Of network and memory, with all classes: 500kB, 5MB, 7.6MiB.",
        ),
    ] = None,
    preset: Annotated[
        str | None, option("--preset", help="Hyper-parameters: paper; fast or small for minutes; see the page.")
    ] = None,
    config: Annotated[Path | None, option("--config", help="A TOML file of options.")] = None,
    settings: Annotated[
        list[str] | None,
        option("--set", metavar="NAME=VALUE", help="One option, as training.epochs=5; may be repeated."),
    ] = None,
    seed: Annotated[int | None, option("--seed", min=0, help="Of the first run; default 0.")] = None,
    seeds: Annotated[int, option("--seeds", min=1, help="How many runs, of this seed and those that follow.")] = 1,
    device: Annotated[str | None, option("--device", help="Where to compute: auto, cpu, cuda.")] = None,
    listing: Annotated[
        bool, option("--list", help="Show all methods, or the options of the one that is named.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Learn the classes of a data set task by task, and measure what is kept of them in how many bytes.

    A run that was interrupted goes on after its last finished step when it is called again. Options come from the
    preset, then the TOML file, then the command line. With --seeds each run has a folder of its own in the output.
    """
    out = output.begin(json, quiet, verbose)
    from krstore.learning.building import build_run_config
    from krstore.learning.harness import learn as run
    from krstore.learning.learners import get_learner

    if listing:
        _list(out, method, preset)
        return
    if method is None or folder is None or (data is None and config is None):
        raise UsageError("name a method, --data and -o; krstore learn --list shows the methods")
    get_learner(method)
    given: dict[str, Any] = {
        "data": _text(data), "test": _text(test), "base": base, "steps": steps, "order": order, "model": model,
        "weights": _text(weights), "memory.codec": codec, "memory.exemplars": exemplars,
        "memory.adjust": {} if adjust else None, "memory.ratio": ratio, "budget": budget, "device": device,
        "options.pruning": False if no_pruning else None, "seed": seed, **parse_settings(settings or []),
    }  # fmt: skip
    first = build_run_config(method, given, preset=preset, file=config)
    others = range(first.seed + 1, first.seed + seeds)
    configs = [build_run_config(method, {**given, "seed": number}, preset=preset, file=config) for number in others]
    results = []
    for built in (first, *configs):
        place = folder if seeds == 1 else folder / f"seed{built.seed}"
        if seeds > 1:
            out.status(f"seed {built.seed}: {place}")
        results.append(run(built, place, progress=out.progress()))
    facts = [_facts(result) for result in results]
    out.result(facts[0] if seeds == 1 else facts, _table(results), _summary(facts))


def _list(out: output.Output, method: str | None, preset: str | None) -> None:
    """Show all methods, or one's options and what the presets, or the one that is named, make of it."""
    from krstore.errors import UnknownNameError
    from krstore.learning.describe import describe_learner
    from krstore.learning.learners import learner_names

    if method is not None:
        facts = describe_learner(method)
        if preset is not None and preset not in facts["presets"]:
            raise UnknownNameError("preset", preset, facts["presets"])
        out.result(facts, *method_shown(facts, [preset] if preset else list(facts["presets"])))
        return
    listed = [method_facts(name) for name in learner_names()]
    out.result(listed, methods_table(listed))
    for facts in listed:
        if facts["error"]:
            out.warning(f"method {facts['method']} cannot be loaded: {facts['error']}")


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _facts(result: RunResult) -> dict[str, Any]:
    import msgspec

    return {
        "method": result.config.method, "seed": result.config.seed, **result.summary(),
        "steps": [
            {name: value for name, value in msgspec.to_builtins(step).items() if name != "confusion"}
            for step in result.steps
        ],
    }  # fmt: skip


def _table(results: list[RunResult]) -> Any:
    """Return the table of steps; no top-5 accuracy where there are no more than five classes to tell apart."""
    from statistics import mean

    classes = list(accumulate(len(task) for task in results[0].tasks))
    by_step = [[result.steps[number] for result in results] for number in range(len(classes))]
    of = f" (seeds {', '.join(str(result.config.seed) for result in results)})" if len(results) > 1 else ""
    top5 = [_percents(step.top5 for step in steps) for steps in by_step]
    columns = {
        "step": [str(number) for number in range(len(classes))],
        "classes": [str(count) for count in classes],
        f"accuracy %{of}": [_percents(step.accuracy for step in steps) for steps in by_step],
        f"top-5 %{of}": [text if count > 5 else "" for count, text in zip(classes, top5, strict=True)],
        "bytes": [size_text(max(s.memory_bytes + sum(s.held_bytes.values()) for s in steps)) for steps in by_step],
        "network": [size_text(max(step.network_bytes for step in steps)) for steps in by_step],
        "s": [f"{mean(step.seconds for step in steps):.0f}" for steps in by_step],
    }
    shown = {head: column for head, column in columns.items() if any(column)}
    return output.table(list(shown), list(zip(*shown.values(), strict=True)))


def _percents(values: Iterable[float]) -> str:
    return " ".join(f"{100 * value:.2f}" for value in values)


def _summary(facts: list[dict[str, Any]]) -> Any:
    from statistics import mean, stdev

    def shown(name: str) -> str:
        values = [one[name] for one in facts]
        return f"{output.percent(mean(values), stdev(values) if len(values) > 1 else None)} %"

    kept = max(one["memory_bytes"] + one["held_bytes"] for one in facts)
    network = max(one["network_bytes"] for one in facts)
    return output.block(
        facts[0]["method"],
        [
            ("last accuracy", shown("last")),
            ("average incremental accuracy", f"{shown('average_incremental')} with step 0"),
            ("", f"{shown('average_incremental_later')} without"),
            ("forgetting", shown("forgetting")),
            ("backward transfer", shown("backward_transfer")),
            *(
                (name.replace("_", " "), shown(name))
                for name in (
                    "forward_transfer",
                    "representation_backward_transfer",
                    "representation_forward_transfer",
                )
                if name in facts[0]
            ),
            ("bytes kept", f"{kept:,}  {size_text(kept)}"),
            ("of the network", f"{network:,}  {size_text(network)}"),
        ],
    )
