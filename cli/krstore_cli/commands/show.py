"""krstore show: a store's samples beside what they were encoded from, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from krstore_cli import output
from krstore_cli.options import Device, Force, Json, Quiet, Trust, Verbose, option

__all__ = ["EXAMPLE", "show"]

EXAMPLE = "Example: krstore show images.herding.krs --against images.h5 -o sheet.png"


def show(
    store: Annotated[Path, typer.Argument(help="The .krs file.", show_default=False)],
    against: Annotated[Path, option("--against", help="The archive that was encoded.", show_default=False)],
    picture: Annotated[Path, option("--output", "-o", help="The .png file.", show_default=False)],
    tsne: Annotated[bool, option("--tsne", help="Points in a plane instead of images.")] = False,
    classes: Annotated[int, option("--classes", min=1, help="How many classes.")] = 10,
    each: Annotated[int | None, option("--each", min=1, help="Samples of each; default 10, or 200 in a plane.")] = None,
    device: Device = "auto",
    trust: Trust = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Draw samples of a store below those that they were encoded from, a pair of rows a class.

    With --tsne, samples of each class are dots in a plane, and those of the store are crosses: do exemplars spread as
    their class does?
    """
    out = output.begin(json, quiet, verbose)
    from krstore.files import check_target
    from krstore.pictures import EACH, POINTS, plot_plane, plot_sheet
    from krstore.store.reader import Store
    from krstore.store.verify import open_encoded

    check_target(picture, force=force, inputs=(store, against))
    opened = Store(store, device=device)
    source = open_encoded(opened, against, trust=trust)
    if tsne:
        plot_plane(opened, source, picture, classes=classes, points=each or POINTS)
    else:
        plot_sheet(opened, source, picture, classes=classes, each=each or EACH)
    out.result({"path": str(picture)}, f"wrote {picture}")
