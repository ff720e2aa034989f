"""Reports of runs."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from learning_runs import config

from krstore.errors import UsageError
from krstore.learning.harness import learn
from krstore.learning.report import report


def test_a_report_of_runs(data: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        learn(config(data, "replay", seed=seed), tmp_path / "runs" / f"raw{seed}")
    learn(config(data, "replay", **{"memory.per_class": 3}), tmp_path / "runs" / "few")
    learn(config(data), tmp_path / "finetune")
    groups = report([tmp_path / "runs", tmp_path / "finetune"], tmp_path / "report", tsne=True)
    assert [(group.name, len(group.runs)) for group in groups] == [
        ("replay 3 a class", 1), ("replay", 2), ("finetune", 1)
    ]  # fmt: skip
    for group in groups:
        last = [run.steps[-1].accuracy for run in group.runs]
        assert group.figures()["last"][0] == pytest.approx(np.mean(last))
        assert group.classes == [2, 4, 6]
    facts = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [one["bytes"] for one in facts] == [group.bytes for group in groups]
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("<svg") == 2 + 3 + 2, "finetune has no memory to draw"
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert {path.name for path in (tmp_path / "report").iterdir()} >= {"accuracy.svg", "bytes.svg", "confusion_0.svg"}


MEASURED = """<script>
document.title = JSON.stringify([...document.querySelectorAll("table, figure > svg")].map(part => {
  const {width, height, right} = part.getBoundingClientRect();
  return [width, height, right <= innerWidth];
}));
</script>"""


def test_a_browser_shows_the_report(data: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium to look with")
    learn(config(data, "replay", analyse=True), tmp_path / "run")
    report([tmp_path / "run"], tmp_path / "report")
    page = tmp_path / "report" / "report.html"
    page.write_text(page.read_text() + MEASURED)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,900", "--dump-dom"]
    command = [browser, *options, f"--user-data-dir={tmp_path / 'browser'}", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    title = re.search("<title>(.*?)</title>", shown)
    assert title is not None
    parts = json.loads(html.unescape(title[1]))
    assert len(parts) == 5, "a table, accuracy, bytes, confusions and blocks"
    assert all(width > 200 and height > 40 and within for width, height, within in parts)


def test_runs_that_cannot_be_reported(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no finished run"):
        report([tmp_path], tmp_path / "report")
    learn(config(data), tmp_path / "a")
    learn(config(data, steps=4), tmp_path / "b")
    with pytest.raises(UsageError, match="tasks of different sizes"):
        report([tmp_path / "a", tmp_path / "b"], tmp_path / "report")


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(data: Path, tmp_path: Path) -> None:
    quick = {"epochs": 1, "milestones": (), "batch_size": 16}
    for number, rate in enumerate((0.05, 0.01)):
        learn(config(data, training={**quick, "learning_rate": rate}), tmp_path / f"rate{number}")
    learn(config(data, training={**quick, "learning_rate": 0.05, "gamma": 0.5}), tmp_path / "gamma")
    groups = report([tmp_path, tmp_path / "rate0", tmp_path / "rate0"], tmp_path / "report")
    assert sorted((group.name, len(group.runs)) for group in groups) == [
        ("finetune learning rate 0.01", 1),
        ("finetune learning rate 0.05 (1)", 1),
        ("finetune learning rate 0.05 (2)", 1),
    ]
