"""What a comparison of codecs has found, as a folder keeps it.

The folder holds the stores (``krnet-20.krs``), ``compare.json``, ``compare.csv`` and ``rate_distortion.png``. The JSON
file is rewritten after every store, so that an interrupted comparison goes on where it was, and a later one with other
codecs or ratios adds to it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from krstore.config import CodecConfig
from krstore.errors import OutputError
from krstore.files import atomic_write
from krstore.plots import plot_rate_distortion

__all__ = ["COLUMNS", "SCHEMA_VERSION", "Cell", "Comparison", "ComparisonFolder", "Row"]

SCHEMA_VERSION = 1
JSON, CSV, PICTURE = "compare.json", "compare.csv", "rate_distortion.png"
COLUMNS = (
    "codec", "asked_ratio", "ratio", "source", "file", "network", "latent", "labels", "overhead", "mse",
    "mse_normalised", "nmse", "psnr", "max_abs", "cosine", "seconds", "decode_seconds", "path", "error",
)  # fmt: skip

Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """What a folder of compared stores holds.

    Attributes:
        folder: where it lies.
        source: the archive: ``sha256`` of its features and of its labels, ``samples``, ``shape``, ``dtype``, ``bytes``.
        setup: what the results depend on beside it: versions of krstore and torch, device, CPUs, seed.
        rows: one a store, by codec and ratio: its facts as `krstore.store.summary.summarise` returns them, with
            ``settings`` (the codec's options as they were asked for), ``asked_ratio`` (`None` for lossless codecs),
            ``seconds`` to encode, ``decode_seconds`` to decode all samples, and ``error``. A codec that could not
            honour a ratio has a row of ``codec``, ``settings``, ``asked_ratio``, ``seconds`` and ``error`` alone.
    """

    folder: Path
    source: Row
    setup: Row
    rows: list[Row]

    @property
    def failed(self) -> list[Row]:
        """The rows of ratios that their codec could not reach."""
        return [row for row in self.rows if row["error"] is not None]

    @property
    def picture(self) -> Path:
        """The rate-distortion picture."""
        return self.folder / PICTURE


class _Sizes(msgspec.Struct):
    file: int
    network: int
    latent: int


class _Figures(msgspec.Struct):
    mse: float
    mse_normalised: float
    nmse: float
    psnr: float | None


class _Asked(msgspec.Struct):
    """What every row has."""

    codec: str
    settings: Row
    asked_ratio: float | None
    seconds: float
    error: str | None


class _Encoded(_Asked):
    """What a row has that is of a store, as far as table and picture need it."""

    path: str
    ratio: float
    bytes: _Sizes
    quality: _Figures
    decode_seconds: float


class _State(msgspec.Struct):
    """What `compare.json` has."""

    source: Row
    setup: Row
    rows: list[Row]
    unfinished: list[str]

    def __post_init__(self) -> None:
        for row in self.rows:
            msgspec.convert(row, _Encoded if row.get("error") is None else _Asked)


@dataclass(frozen=True)
class Cell:
    """One codec at one ratio."""

    codec: str
    config: CodecConfig
    ratio: float | None

    @property
    def name(self) -> str:
        """The store's file."""
        if self.ratio is None:
            return f"{self.codec}.krs"
        short = f"{self.ratio:g}"
        return f"{self.codec}-{short if float(short) == self.ratio else repr(self.ratio)}.krs"

    @property
    def identity(self) -> Row:
        """What its row begins with."""
        return {"codec": self.codec, "settings": msgspec.to_builtins(self.config), "asked_ratio": self.ratio}

    def is_of(self, row: Row) -> bool:
        """Whether a row is this cell's, whatever its settings."""
        return bool(row["codec"] == self.codec and row["asked_ratio"] == self.ratio)


class ComparisonFolder:
    """The results in a folder, as `compare.json` keeps them."""

    def __init__(self, path: Path, source: Row, setup: Row, force: bool) -> None:
        self.path, self.source, self.setup, self.force = path, source, setup, force
        self.rows: list[Row] = []
        self.unfinished: list[str] = []
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {path}: {error.strerror}") from error

    def plan(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells to encode: those whose rows an earlier run has not left."""
        kept = self._earlier()
        if self.force:
            kept = [row for row in kept if not any(cell.is_of(row) for cell in cells)]
        else:
            self._refuse_others(kept, cells)
        self.rows = kept
        todo = [cell for cell in cells if not any(cell.is_of(row) for row in kept)]
        for cell in todo:
            path = self.path / cell.name
            if path.exists() and not self.force and cell.name not in self.unfinished:
                raise OutputError(f"{path} exists, and no {JSON} tells of it; use --force (force=True), or another -o")
        self.unfinished = [cell.name for cell in todo]
        self._save()
        return todo

    def add(self, row: Row) -> None:
        """Keep the row of a cell that is done."""
        self.rows.append(row)
        self.unfinished = self.unfinished[1:]
        self._save()

    def finish(self) -> Comparison:
        """Write table and picture."""
        table = io.StringIO()
        writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            flat = {**row, **row.get("bytes", {}), **row.get("quality", {})}
            writer.writerow({name: flat.get(name) for name in COLUMNS})
        self._write(CSV, table.getvalue())
        plot_rate_distortion(self.rows, self.path / PICTURE)
        return Comparison(self.path, self.source, self.setup, self.rows)

    def _earlier(self) -> list[Row]:
        """Return the rows of an earlier run on the same data and setup whose stores are still there."""
        try:
            state = msgspec.convert(json.loads((self.path / JSON).read_bytes()), _State)
        except FileNotFoundError:
            return []
        except (OSError, ValueError, RecursionError) as error:
            if self.force:
                return []
            raise OutputError(f"{self.path / JSON} is no comparison ({error}); use --force, or another -o") from error
        told = {"source": state.source, "setup": state.setup}
        rows = [row for row in state.rows if self._intact(row)]
        self.unfinished = state.unfinished
        now = json.loads(json.dumps({"source": self.source, "setup": self.setup}))
        if told == now:
            return rows
        if self.force:
            return []
        found = (
            f"{part}: {key} was {told[part].get(key)!r}, is {now[part].get(key)!r}"
            for part in now
            for key in {**now[part], **told[part]}
            if told[part].get(key) != now[part].get(key)
        )
        differs = next(found, "it says more")
        raise OutputError(f"{self.path} holds another comparison ({differs}); use --force, or another -o")

    def _intact(self, row: Row) -> bool:
        """Whether the store that a row tells of is there; one that has gone is encoded again."""
        if row["error"] is not None:
            return True
        path = self.path / row["path"]
        return bool(path.is_file() and path.stat().st_size == row["bytes"]["file"])

    def _refuse_others(self, rows: Sequence[Row], cells: Sequence[Cell]) -> None:
        """One codec has the same options in all of a folder, so that a line of the picture means one thing."""
        for cell in cells:
            for row in rows:
                if row["codec"] == cell.codec and row["settings"] != cell.identity["settings"]:
                    raise OutputError(
                        f"{self.path} holds {cell.codec} with other options, {row['settings']}; "
                        "use --force (force=True), or another -o"
                    )

    def _save(self) -> None:
        order = {name: number for number, name in enumerate(dict.fromkeys(row["codec"] for row in self.rows))}
        self.rows.sort(key=lambda row: (order[row["codec"]], row["asked_ratio"] or 0))
        state = {
            "schema_version": SCHEMA_VERSION, "source": self.source, "setup": self.setup,
            "unfinished": self.unfinished, "rows": self.rows,
        }  # fmt: skip
        self._write(JSON, json.dumps(state, indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        with atomic_write(self.path / name) as file:
            file.write(text.encode())
