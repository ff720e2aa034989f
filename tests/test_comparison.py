"""Comparing codecs, in Python and on the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import krstore
from krstore.comparison_folder import COLUMNS, Comparison
from krstore.errors import ArchiveError, ConfigError, MissingExtraError, OutputError, UnknownNameError, UsageError
from krstore.store.summary import summarise
from krstore.testing import example_source
from krstore_cli.app import run

SOURCE = example_source(600, (8, 4, 4))


def compared(
    folder: Path, codecs: str = "raw,uniform", ratios: tuple[float, ...] = (2, 4), **options: Any
) -> Comparison:
    source = options.pop("source", SOURCE)
    return krstore.compare(source, folder, codecs.split(","), ratios, device="cpu", **options)


@pytest.fixture(autouse=True)
def _third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the codec uniform, which is fast."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "fake_codec"))


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.krs")}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "features.h5"
    with h5py.File(path, "w") as file:
        file["features"], file["labels"] = SOURCE.features, SOURCE.labels
    return path


def test_every_codec_at_every_ratio_and_lossless_ones_once(tmp_path: Path) -> None:
    found = compared(tmp_path / "out")
    assert [(row["codec"], row["asked_ratio"]) for row in found.rows] == [
        ("raw", None),
        ("uniform", 2.0),
        ("uniform", 4.0),
    ]
    assert not found.failed
    assert {path.name for path in found.folder.iterdir()} == {
        "raw.krs", "uniform-2.krs", "uniform-4.krs", "compare.json", "compare.csv", "rate_distortion.png"
    }  # fmt: skip
    assert found.picture.read_bytes().startswith(b"\x89PNG")


def test_rows_are_the_facts_of_the_stores(tmp_path: Path) -> None:
    for row in compared(tmp_path).rows:
        with krstore.open(tmp_path / row["path"], device="cpu") as store:
            assert {name: row[name] for name in summarise(store)} == {**summarise(store), "path": row["path"]}
            decoded = store.read(store.ids).astype(np.float64)
        assert row["ratio"] == SOURCE.features.nbytes / (tmp_path / row["path"]).stat().st_size
        assert row["asked_ratio"] is None or row["ratio"] >= row["asked_ratio"]
        assert row["quality"]["mse"] == pytest.approx(np.square(decoded - SOURCE.features).mean(), rel=1e-6)
        assert row["seconds"] > 0
        assert row["decode_seconds"] > 0


def test_json_and_csv_tell_the_same(tmp_path: Path) -> None:
    found = compared(tmp_path)
    told = json.loads((tmp_path / "compare.json").read_text())
    assert told["schema_version"] == 1
    assert told["unfinished"] == []
    assert told["rows"] == found.rows
    assert told["source"] == found.source
    assert told["source"]["bytes"] == SOURCE.features.nbytes
    assert told["setup"]["krstore_version"] == krstore.__version__
    assert told["setup"]["cpus"] >= 1
    with (tmp_path / "compare.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [*lines[0]] == [*COLUMNS]
    for line, row in zip(lines, found.rows, strict=True):
        assert line["codec"] == row["codec"]
        assert int(line["file"]) == row["bytes"]["file"]
        assert float(line["nmse"]) == row["quality"]["nmse"]
        assert line["asked_ratio"] == ("" if row["asked_ratio"] is None else str(row["asked_ratio"]))


def test_a_second_run_encodes_only_what_is_new(tmp_path: Path) -> None:
    first = compared(tmp_path, "raw,uniform", (2,))
    before = stamps(tmp_path)
    second = compared(tmp_path, "uniform", (2, 4))
    assert [row["path"] for row in second.rows] == ["raw.krs", "uniform-2.krs", "uniform-4.krs"]
    assert second.rows[:2] == first.rows
    assert {name: stamps(tmp_path)[name] for name in before} == before


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import krstore.comparison

    encode, calls = krstore.comparison.encode, []

    def stopped(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments[1])
        if len(calls) == 3:
            encode(*arguments, **options)  # the file is there, its row is not
            raise KeyboardInterrupt
        return encode(*arguments, **options)

    monkeypatch.setattr(krstore.comparison, "encode", stopped)
    with pytest.raises(KeyboardInterrupt):
        compared(tmp_path, "raw,uniform", (2, 3, 4))
    told = json.loads((tmp_path / "compare.json").read_text())
    assert [row["path"] for row in told["rows"]] == ["raw.krs", "uniform-2.krs"]
    assert told["unfinished"] == ["uniform-3.krs", "uniform-4.krs"]
    assert len(compared(tmp_path, "raw,uniform", (2, 3, 4)).rows) == 4
    assert [path.name for path in calls] == [
        "raw.krs",
        "uniform-2.krs",
        "uniform-3.krs",
        "uniform-3.krs",
        "uniform-4.krs",
    ]


def test_a_store_that_has_gone_is_encoded_again(tmp_path: Path) -> None:
    compared(tmp_path)
    (tmp_path / "uniform-2.krs").unlink()
    assert len(compared(tmp_path).rows) == 3
    assert (tmp_path / "uniform-2.krs").exists()


def test_force_encodes_again(tmp_path: Path) -> None:
    compared(tmp_path)
    before = stamps(tmp_path)
    found = compared(tmp_path, "uniform", (2,), force=True)
    after = stamps(tmp_path)
    assert after["uniform-2.krs"] != before.pop("uniform-2.krs")
    assert {name: after[name] for name in before} == before
    assert len(found.rows) == 3


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"source": example_source(600, (8, 4, 4), seed=1)}, "source: sha256 was"),
        ({"seed": 1}, "setup: seed was 0, is 1"),
        ({"settings": {"uniform": {"level": 19}}}, "uniform with other options"),
    ],
)
def test_a_folder_of_something_else_is_refused_unless_forced(
    tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    compared(tmp_path, "uniform", (2,))
    before = stamps(tmp_path)
    with pytest.raises(OutputError, match=message):
        compared(tmp_path, "uniform", (2,), **other)
    assert stamps(tmp_path) == before
    assert len(compared(tmp_path, "uniform", (2,), **other, force=True).rows) == 1
    assert stamps(tmp_path) != before


def test_a_file_of_somebody_elses_is_refused(tmp_path: Path) -> None:
    (tmp_path / "uniform-2.krs").write_text("mine")
    with pytest.raises(OutputError, match=r"uniform-2\.krs exists"):
        compared(tmp_path)
    assert (tmp_path / "uniform-2.krs").read_text() == "mine"


def test_the_source_is_never_replaced(tmp_path: Path) -> None:
    krstore.compare(SOURCE, tmp_path, ["raw"])
    before = (tmp_path / "raw.krs").read_bytes()
    with pytest.raises(UsageError, match=r"raw\.krs is an input, which is never replaced"):
        krstore.compare(tmp_path / "raw.krs", tmp_path, ["raw"], force=True)
    assert (tmp_path / "raw.krs").read_bytes() == before
    assert not krstore.compare(tmp_path / "raw.krs", tmp_path / "other", ["raw"]).failed


def test_ratios_that_are_almost_the_same_have_files_of_their_own(tmp_path: Path) -> None:
    rows = compared(tmp_path, "uniform", (2, 2.0000001)).rows
    assert [row["path"] for row in rows] == ["uniform-2.krs", "uniform-2.0000001.krs"]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["source"], []),
        (["setup"], None),
        (["unfinished"], 5),
        (["rows", 0, "codec"], None),
        (["rows", 0, "quality"], {}),
        (["rows", 0, "bytes"], None),
        (["rows", 0, "ratio"], "abc"),
        (["rows", 0, "asked_ratio"], "2"),
        (["rows", 0], []),
        (["source", "other"], None),
    ],
)
def test_a_json_that_somebody_changed_is_refused(tmp_path: Path, place: list[str | int], value: Any) -> None:
    compared(tmp_path, "uniform", (2,))
    changed = told = json.loads((tmp_path / "compare.json").read_text())
    for part in place[:-1]:
        changed = changed[part]
    changed[place[-1]] = value
    (tmp_path / "compare.json").write_text(json.dumps(told))
    with pytest.raises(OutputError, match=r"is no comparison|another comparison"):
        compared(tmp_path, "uniform", (2, 4))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"source": {}, "setup": {}, "unfinished": [], "rows": [{}]}', "\0\xff"]
)
def test_a_damaged_json_is_refused_unless_forced(tmp_path: Path, text: str) -> None:
    (tmp_path / "compare.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(OutputError, match="no comparison"):
        compared(tmp_path, "uniform", (2,))
    assert len(compared(tmp_path, "uniform", (2,), force=True).rows) == 1


def test_a_ratio_out_of_reach_is_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    found = compared(tmp_path, "uniform,raw", (2, 5000, 3))
    assert [(row["codec"], row["asked_ratio"], row["error"] is None) for row in found.rows] == [
        ("uniform", 2.0, True), ("uniform", 3.0, True), ("uniform", 5000.0, False), ("raw", None, True)
    ]  # fmt: skip
    assert found.failed == [found.rows[2]]
    assert set(found.failed[0]) == {"codec", "settings", "asked_ratio", "seconds", "error"}
    assert not (tmp_path / "uniform-5000.krs").exists()
    assert compared(tmp_path, "uniform,raw", (2, 5000, 3)).rows == found.rows


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"codecs": "raw,unifrom"}, UnknownNameError, "Did you mean 'uniform'"),
        ({"ratios": (2, -1)}, UsageError, "ratio -1 is not a positive number"),
        ({"ratios": ()}, UsageError, "at least one ratio"),
        ({"settings": {"krnet": {"iterations": 1}}}, UsageError, "krnet.*not compared"),
        ({"settings": {"uniform": {"levl": 1}}}, UnknownNameError, "level"),
        ({"settings": {"uniform": {"level": 0}}}, ConfigError, "level"),
        ({"device": "teapot"}, UsageError, "teapot"),
        ({"seed": -3}, UsageError, "seed=-3"),
    ],
)
def test_a_wrong_request_is_refused_before_any_work(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        krstore.compare(SOURCE, tmp_path / "out", **_arguments(options))
    assert not (tmp_path / "out").exists()


def _arguments(options: dict[str, Any]) -> dict[str, Any]:
    return {"ratios": (2,), **options, "codecs": options.get("codecs", "raw,uniform").split(",")}


def test_values_that_cannot_be_encoded(tmp_path: Path) -> None:
    bad = example_source(20, (4, 2, 2))
    bad.features[7] = np.nan
    with pytest.raises(ArchiveError, match="sample 7"):
        compared(tmp_path, source=bad)


def test_without_matplotlib_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"krstore\[plots\]"):
        compared(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_shows_a_table_and_writes_the_folder(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["compare", str(archive), "--codecs", "raw,uniform", "--ratios", "2,4", "-o", str(tmp_path / "out")]
    assert run([*asked, "--set", "uniform.level=5"]) == 0
    said = capsys.readouterr()
    assert said.out.split()[:3] == ["codec", "asked", "ratio"]
    assert [line.split()[:2] for line in said.out.splitlines()[1:]] == [
        ["raw", "-"],
        ["uniform", "2"],
        ["uniform", "4"],
    ]
    assert "compare.csv" in said.err
    assert run([*asked, "--set", "uniform.level=5", "--json", "-q"]) == 0
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert told["schema_version"] == 1
    assert told["rows"][1]["settings"]["level"] == 5
    assert told["rows"] == json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]
    assert said.err == ""


def test_the_command_ends_with_3_when_a_ratio_is_out_of_reach(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["compare", str(archive), "--codecs", "raw,uniform", "--ratios", "2,5000", "-o", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert code == 3
    assert "error: uniform at ratio 5000: " in said.err
    assert [line.split()[:2] for line in said.out.splitlines()[1:]] == [
        ["raw", "-"],
        ["uniform", "2"],
        ["uniform", "5000"],
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(["--ratios", "2,x"], "--ratios 2,x"), (["--set", "level=5"], "codec.key=value"), (["--codecs", ""], "name")],
)
def test_a_wrong_command_line(
    archive: Path, tmp_path: Path, wrong: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", str(archive), "-o", str(tmp_path / "out"), *wrong]) == 2
    assert message in capsys.readouterr().err
