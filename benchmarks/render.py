"""Write the tables of the pages from benchmarks/results/*.json, between their markers, and draw the pictures.

`compare.json` there is the one that `krstore compare` writes.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from benchmarks.overview import OVERVIEWS
from benchmarks.tables import TABLES
from krstore.plots import plot_rate_distortion

__all__ = ["rendered"]

ROOT = Path(__file__).parents[1]
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
PAGES = [DOCS / "results.md", DOCS / "methods.md", ROOT / "README.md"]


def rendered(page: str, results: Path) -> str:
    """Return the page with what stands between its markers made anew.

    A marked place stays empty while its JSON is missing.
    """

    def fill(match: re.Match[str]) -> str:
        if match["name"] in OVERVIEWS:
            return f"{match['begin']}{OVERVIEWS[match['name']](results)}\n{match['end']}"
        path = results / f"{match['name']}.json"
        document = json.loads(path.read_text()) if path.exists() else None
        body = TABLES[document.get("benchmark", "compare")](document) + "\n" if document else ""
        return f"{match['begin']}{body}{match['end']}"

    pattern = r"(?P<begin><!-- begin (?P<name>\w+) -->\n).*?(?P<end><!-- end (?P=name) -->)"
    return re.sub(pattern, fill, page, flags=re.DOTALL)


def main() -> None:
    """Write the pages, or only say whether they are up to date."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.render", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a page is not up to date")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of JSON")
    parser.add_argument("--page", type=Path, nargs="+", default=PAGES, dest="pages", help="the first has the pictures")
    given = parser.parse_args()
    for page in given.pages:
        old = page.read_text()
        new = rendered(old, given.results)
        if given.check and new != old:
            raise SystemExit(f"{page} is not what its JSON says; run python -m benchmarks.render")
        if not given.check:
            page.write_text(new)
    if given.check:
        return
    from benchmarks.pictures import PICTURES  # only those who draw need matplotlib

    for path in sorted(given.results.glob("*.json")):
        document, folder = json.loads(path.read_text()), given.pages[0].parent
        if path.stem == "compare":
            plot_rate_distortion(document["rows"], folder / "rate_distortion.png")
        elif document["benchmark"] in PICTURES:
            PICTURES[document["benchmark"]](document, folder / f"{path.stem}.png")


if __name__ == "__main__":
    main()
