"""The benchmarks run, on a tiny scale, and docs/results.md says what their JSON says."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from safetensors.torch import save_file

import krstore
import krstore.backbones
from benchmarks import overview
from benchmarks._common import main
from krstore.comparison import compare
from krstore.learning.data import open_dataset
from krstore.learning.learners import LEARNERS
from krstore.learning.learners.finetune import Finetune
from krstore.learning.scenario import Task
from krstore.testing import example_source

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def benchmark(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("KRSTORE_")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", f"benchmarks.{name}", *map(str, arguments)],
        cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def tiny(name: str, folder: Path, *arguments: object) -> Any:
    """Run a benchmark in this process, as its command would."""
    module, name = importlib.import_module(f"benchmarks.{name}"), name.rpartition(".")[2]
    output, shown = folder / f"{name}.json", io.StringIO()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("KRSTORE_")}
    with (
        patch.object(sys, "argv", [name, "--size", "tiny", "-o", str(output), *map(str, arguments)]),
        patch.dict(os.environ, environment, clear=True),
        contextlib.redirect_stdout(shown),
    ):
        main(name, module.__doc__, module.measure)
    assert shown.getvalue().startswith("| ")
    document = json.loads(output.read_text())
    assert (document["benchmark"], document["size"]) == (name, "tiny")
    assert str(folder) not in json.dumps(document)
    return document


def published(name: str) -> Any:
    document = json.loads((RESULTS / f"{name}.json").read_text())
    assert document["size"] == "full"
    return document


def test_replay(tmp_path: Path) -> None:
    document = tiny("replay", tmp_path)
    assert [row["name"] for row in document["rows"]] == ["raw", "pq", "transform, 11 stores"]
    assert document["trained"] > 0
    assert all(min(row["cached"], row["uncached"]) > 0 for row in document["rows"])


def test_generations(tmp_path: Path) -> None:
    document = tiny("incremental.generations", tmp_path)
    merged, appended = document["rows"]
    assert len(merged["nmse"]) == len(merged["bytes"]) == len(appended["nmse"]) == 3
    assert merged["nmse"] == sorted(merged["nmse"])
    assert appended["nmse"] == [appended["nmse"][0]] * 3
    assert appended["bytes"] == sorted(appended["bytes"])


def test_blocks(tmp_path: Path) -> None:
    rows = tiny("incremental.blocks", tmp_path)["rows"]
    assert [row["name"] for row in rows] == ["block 1", "block 2", "block 3"]
    assert [(len(row["gradients"]), len(row["moved"])) for row in rows] == [(2, 3)] * 3
    assert [row["alike"][0] for row in rows] == pytest.approx([1, 1, 1])


def test_learning(tmp_path: Path) -> None:
    document = tiny("incremental.learning", tmp_path)
    (row,) = document["rows"]
    assert (row["name"], row["classes"], len(row["accuracy"]), row["bytes"]) == ("finetune", [1, 2, 3], 3, 0)


def test_ablations(tmp_path: Path) -> None:
    (row,) = tiny("incremental.ablations", tmp_path)["rows"]
    assert (row["name"], len(row["accuracy"])) == ("krnet", 3)


def test_strengths(tmp_path: Path) -> None:
    (row,) = tiny("incremental.strengths", tmp_path)["rows"]
    assert (row["name"], row["strength"], len(row["accuracy"])) == ("ewc", 3, 3)


def test_budgets(tmp_path: Path) -> None:
    (row,) = tiny("incremental.budgets", tmp_path)["rows"]
    assert (row["name"], row["seed"], len(row["accuracy"])) == ("kril, transform", 0, 3)
    assert 4_000 < row["bytes"] <= 12_000


def test_exemplars(tmp_path: Path) -> None:
    (row,) = tiny("incremental.exemplars", tmp_path)["rows"]
    assert (row["method"], row["selection"], row["adjust"]) == ("lucir", "mnemonics", True)
    assert (row["classes"], len(row["accuracy"])) == ([1, 2, 3], 3)
    assert row["bytes"] > 0


def test_mnemonics(tmp_path: Path) -> None:
    random, trained = tiny("incremental.mnemonics", tmp_path)["rows"]
    assert (random["rate"], random["moved"]) == (None, 0)
    assert trained["rate"] > 0


def test_compressed(tmp_path: Path) -> None:
    document = tiny("incremental.compressed", tmp_path)
    (row,) = document["rows"]
    assert (row["name"], row["seed"]) == ("replay, herding, lossless", 0)
    assert 0.5 * document["budget"] < row["bytes"] <= document["budget"]


def test_equal_memory(tmp_path: Path) -> None:
    reached, beyond = tiny("incremental.equal_memory", tmp_path)["rows"]
    assert (reached["name"], reached["budget"], reached["seed"]) == ("replay", 20_000, 0)
    assert reached["bytes"] + reached["network_bytes"][-1] <= 20_000
    assert "der" in beyond["unreachable"]


def test_learners(tmp_path: Path) -> None:
    (row,) = tiny("incremental.learners", tmp_path)["rows"]
    assert (row["name"], row["seed"]) == ("finetune", 0)
    assert -1 <= row["representation_forward_transfer"] <= 1


def test_every_learner_and_codec_is_measured_and_told_of() -> None:
    cases = importlib.import_module("benchmarks.incremental.learners").CASES
    assert {name.partition(",")[0] for name in cases} == set(LEARNERS)
    assert set(overview.LEARNERS) == set(LEARNERS)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(overview.CODECS) == set(project["entry-points"]["krstore.codecs"])


def test_rows_come_from_several_runs_of_a_benchmark(tmp_path: Path) -> None:
    document = tiny("incremental.equal_memory", tmp_path, "--only", "^der")
    assert [row["name"] for row in document["rows"]] == ["der"]
    other = tmp_path / "other.json"
    replay = {"name": "replay", "budget": 20_000, "seed": 0, "last": 0.5, "average_incremental": 0.6}
    other.write_text(json.dumps({"rows": [replay]}))
    joined = tiny("incremental.equal_memory", tmp_path, "--resume", other)
    assert joined["rows"] == [replay, *document["rows"]]


def test_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    begun: list[int] = []

    def stopped(learner: Finetune, task: Task) -> None:
        begun.append(task.number)
        if begun == [0, 1, 2]:
            raise KeyboardInterrupt

    with patch.object(Finetune, "begin_step", stopped):
        with pytest.raises(KeyboardInterrupt):
            tiny("incremental.learning", tmp_path, "--resume")
        (row,) = tiny("incremental.learning", tmp_path, "--resume")["rows"]
    assert (begun, len(row["accuracy"])) == ([0, 1, 2, 2], 3)
    assert [path.name for path in tmp_path.iterdir()] == ["learning.json"]


def test_twenty_steps(tmp_path: Path) -> None:
    document = tiny("incremental.twenty_steps", tmp_path)
    (row,) = document["rows"]
    assert (row["name"], len(row["accuracy"])) == ("replay", 3)
    assert row["bytes"] + row["network_bytes"][-1] <= document["budget"]


def test_growing(tmp_path: Path) -> None:
    (row,) = tiny("incremental.growing", tmp_path)["rows"]
    assert (row["name"], row["seed"], len(row["network_bytes"])) == ("finetune", 0, 3)


def test_packnet(tmp_path: Path) -> None:
    document = tiny("incremental.packnet", tmp_path)
    sizes = {row["name"]: row["bytes"] for row in document["rows"]}
    assert document["steps"] == 3
    assert sizes["packnet, the first step alone"] < sizes["packnet"] < sizes["safetensors"] / 2


def test_lossless(tmp_path: Path) -> None:
    pytest.importorskip("hdf5plugin")
    document = tiny("lossless", tmp_path)
    assert [row["name"] for row in document["rows"]].count("zstd 19, shuffle") == 2
    raw, *others = document["rows"]
    assert raw["name"] == "raw"
    assert raw["bytes"] < min(row["bytes"] for row in others)
    for row in document["rows"]:
        assert row["ratio"] == document["archive"]["bytes"] / row["bytes"]


def test_paper_training(tmp_path: Path) -> None:
    document = tiny("paper_training", tmp_path)
    assert len(document["losses"]) == 1
    assert document["seconds"] > 0


@pytest.mark.slow
def test_frontier(tmp_path: Path) -> None:
    for module in ("hdf5plugin", "faiss"):
        pytest.importorskip(module)
    document = tiny("frontier", tmp_path)
    names = {row["name"] for row in document["rows"]}
    assert {"transform", "transform, linear", "PQ", "KLT + DCT", "PCA", "SZ3", "integers + zstd"} <= names
    for row in document["rows"]:
        assert row["ratio"] == document["archive"]["bytes"] / row["bytes"]
        assert row["asked"] is None or row["ratio"] >= row["asked"]
        assert row["nmse"] >= 0


def test_accuracy(tmp_path: Path) -> None:
    raw, transform = tiny("accuracy", tmp_path)["rows"]
    assert (raw["name"], raw["nmse"], raw["ratio"]) == ("raw features", 0, 1)
    assert transform["ratio"] > 5
    assert all(0 <= row["mean"] <= 1 for row in (raw, transform))


@pytest.mark.slow
def test_scaling(tmp_path: Path) -> None:
    (row,) = tiny("scaling", tmp_path)["rows"]
    assert row["samples"] == 300
    assert row["ratio"] >= 10
    assert row["encode_peak"] > 50e6


def test_family(tmp_path: Path) -> None:
    (row,) = tiny("family", tmp_path)["rows"]
    assert (row["codec"], row["latent"]) == ("krnet", 1)
    assert row["code_bytes"] > 0


@pytest.mark.slow
def test_archives(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, count in (("train", 40), ("test", 10)):
        images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(count) % 20)
    save_file(krstore.backbones.resnet32().state_dict(), tmp_path / "weights.safetensors")
    ran = benchmark("archives", "--data", tmp_path, "-o", tmp_path / "out", "embeddings", "images", "late_60", "tokens")
    assert ran.returncode == 0, ran.stderr
    shapes = {path.parent.name: krstore.open_archive(path).spec for path in tmp_path.glob("out/*/features.h5")}
    assert {name: (spec.samples, *spec.shape) for name, spec in shapes.items()} == {
        "embeddings": (40, 64), "images": (40, 3, 32, 32), "late_60": (60, 64, 8, 8), "tokens": (40, 65, 64),
    }  # fmt: skip


@pytest.mark.slow
def test_memory(tmp_path: Path) -> None:
    document = tiny("memory", tmp_path)
    assert [row["name"] for row in document["rows"]] == ["krnet encode", "krnet decode"]
    for row in document["rows"]:
        assert 50e6 < row["peak_bytes"] < document["limit_bytes"]


@pytest.mark.slow
def test_random_access(tmp_path: Path) -> None:
    raw, krnet = tiny("random_access", tmp_path)["rows"]
    assert (raw["codec"], raw["multiplications"]) == ("raw", None)
    assert krnet["multiplications"] > 10_000
    assert 0 < raw["some"] < raw["all"]


def test_startup(tmp_path: Path) -> None:
    rows = tiny("startup", tmp_path)["rows"]
    assert {row["command"] for row in rows} >= {"krstore --help", "krstore info"}
    assert all(0 < row["seconds"] <= row["slowest"] for row in rows)


def test_a_full_run_needs_data(tmp_path: Path) -> None:
    ran = benchmark("lossless", "-o", tmp_path / "lossless.json")
    assert ran.returncode != 0
    assert "--data" in ran.stderr
    assert not list(tmp_path.iterdir())


def test_the_page_of_results_is_up_to_date(tmp_path: Path) -> None:
    ran = benchmark("render", "--check")
    assert ran.returncode == 0, ran.stderr
    page = tmp_path / "results.md"
    page.write_text((ROOT / "docs" / "results.md").read_text().replace("| ---", "| -"))
    assert benchmark("render", "--check", "--page", page).returncode != 0
    assert benchmark("render", "--page", page).returncode == 0
    assert page.read_text() == (ROOT / "docs" / "results.md").read_text()


def test_a_comparison_is_shown(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = compare(example_source(), tmp_path, ["raw", "krnet"], [1e6])
    page = tmp_path / "results.md"
    page.write_text("Before.\n<!-- begin compare -->\nold\n<!-- end compare -->\nAfter.\n")
    result.picture.unlink()
    ran = benchmark("render", "--results", tmp_path, "--page", page)
    assert ran.returncode == 0, ran.stderr
    text = page.read_text()
    assert text.startswith("Before.\n<!-- begin compare -->\n|  | asked |")
    assert text.endswith("<!-- end compare -->\nAfter.\n")
    assert "old" not in text
    raw, krnet = result.rows
    assert f"| raw |  | {raw['ratio']:.2f} | {raw['bytes']['file']:,} | 0.0000 |" in text
    assert krnet["error"] is not None
    assert "| krnet | 1e+06 | not reached |" in text
    assert result.picture.exists()


def test_the_published_results_keep_the_promises() -> None:
    raw, *others = published("lossless")["rows"]
    assert raw["bytes"] <= min(row["bytes"] for row in others)
    assert raw["decode"] <= min(row["decode"] for row in others if row["name"].startswith("zstd")) / 0.8
    memory = published("memory")
    assert memory["archive"]["bytes"] > 4e9
    assert max(row["peak_bytes"] for row in memory["rows"]) < 1.5e9
    assert all(row["share"] <= row["limit"] for row in published("random_access")["rows"])
    assert all(row["seconds"] < row["limit"] for row in published("startup")["rows"])


def test_archives_are_made_of_the_published_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, count in (("train", 40), ("test", 20)):
        labels = np.stack([np.zeros(count), np.arange(count) % 5], 1)
        records = np.concatenate([labels, rng.integers(0, 256, (count, 3072))], 1).astype(np.uint8)
        (tmp_path / f"{name}.bin").write_bytes(records.tobytes())
    save_file(krstore.backbones.resnet32(classes=50).state_dict(), tmp_path / "weights.safetensors")
    command = [sys.executable, "-m", "benchmarks.archives", "incremental", "-o", str(tmp_path / "made")]
    environment = {**os.environ, "KRSTORE_DATA": str(tmp_path)}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    made = tmp_path / "made" / "incremental"
    dataset, images = open_dataset(made), open_dataset(made / "images")
    assert (dataset.train.spec.samples, dataset.train.spec.shape) == (40, (64, 8, 8))
    assert (images.test.spec.samples, images.test.spec.shape) == (20, (32, 32, 3))
    assert dataset.test.labels is not None
    np.testing.assert_array_equal(dataset.test.labels, np.arange(20) % 5)
    assert sorted(path.name for path in made.iterdir()) == ["images", "test.h5", "train.h5", "weights.safetensors"]
