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
        by_task = [run.matrix.max(0, where=~np.isnan(run.matrix), initial=0) - run.matrix[-1] for run in group.runs]
        np.testing.assert_allclose(group.forgetting_by_task, np.mean(by_task, axis=0)[:-1])
        np.testing.assert_allclose(np.diagonal(group.matrix)[0], group.curves[:, 0].mean())
    facts = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [one["bytes"] for one in facts] == [group.bytes for group in groups]
    assert [one["accuracy_by_task"][0][0] for one in facts] == [group.runs[0].steps[0].by_task for group in groups]
    assert facts[1]["folders"] == [str(tmp_path / "runs" / name) for name in ("raw0", "raw1")]
    page = (tmp_path / "report" / "report.html").read_text()
    titles = re.findall(r"<figure[^>]*><h2>(.*?)</h2><svg role=img.*?<title>(.*?)</title>", page, re.DOTALL)
    assert [title for title, _ in titles] == [title for _, title in titles]
    assert len(titles) == page.count("<svg") == page.count("<figcaption>") == 5
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    drawn = (tmp_path / "report" / "tsne.svg").read_text()
    assert "<!-- replay 3 a class -->" in drawn
    assert "<!-- finetune -->" not in drawn, "it has no memory"
    assert {path.name for path in (tmp_path / "report").iterdir()} >= {
        "accuracy.svg",
        "bytes.svg",
        "tasks.svg",
        "confusion.svg",
        "tsne.svg",
    }


def test_a_report_says_what_was_run(data: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        learn(config(data, "replay", seed=seed), tmp_path / "replay" / f"seed{seed}")
    learn(config(data, **{"training.epochs": 3}), tmp_path / "finetune")
    report([tmp_path / "replay", tmp_path / "finetune"], tmp_path / "report", names=["theirs & <ours>", "lower bound"])
    page = (tmp_path / "report" / "report.html").read_text()
    shared = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page))
    assert shared["tasks"] == "2 + 2 + 2 classes"
    assert shared["classes"].count(";") == 2, "labels of the data, a list a task"
    assert shared["data"].startswith(f"{data}, fingerprint ")
    assert shared["model"] == "learning_runs:body"
    assert shared["base_training"].startswith("epochs 2, batch_size 16, optimiser sgd, learning_rate 0.05")
    assert "krstore " in shared["versions"]
    assert "epochs" not in shared["training"], "the methods differ in it"
    assert "<code>training.epochs=3</code>" in page
    assert "<td>replay/seed0, replay/seed1</td>" in page
    assert "theirs &amp; &lt;ours&gt;" in page
    assert "<ours>" not in page
    with pytest.raises(UsageError, match="expected one for each of replay, finetune, no two the same"):
        report([tmp_path / "replay", tmp_path / "finetune"], tmp_path / "report", names=["one"])


def test_classes_go_by_the_names_of_their_folders(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    names = ["ape", "bat", "cat", "dog"]
    rng = np.random.default_rng(0)
    for part, each in (("train", 8), ("test", 4)):
        for number, name in enumerate(names):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for picture in range(each):
                pixels = rng.integers(0, 60, (8, 8, 3), dtype=np.uint8) + 60 * np.uint8(number)
                image.fromarray(pixels).save(tmp_path / "data" / part / name / f"{picture}.png")
    kept = {"memory.codec": None, "memory.exemplars": "herding", "memory.per_class": 3}
    plain = {"model": "torch.nn:Flatten", "mean": [0.5] * 3, "std": [0.25] * 3}
    learn(config(tmp_path / "data", "replay", steps=1, **plain, **kept), tmp_path / "run")
    [group] = report([tmp_path / "run"], tmp_path / "report", tsne=True)
    assert group.class_names == [names[label] for task in group.runs[0].tasks for label in task]
    for picture, said in (("confusion", ""), ("tsne", "class ")):
        drawn = (tmp_path / "report" / f"{picture}.svg").read_text()
        assert all(f"<!-- {said}{name} -->" in drawn for name in names)
    assert "<b>" not in (tmp_path / "report" / "report.html").read_text(), "nothing to be better than"


MEASURED = """<script>
const all = (what, within = document) => [...within.querySelectorAll(what)];
document.title = JSON.stringify({
  parts: all("table, figure > svg").map(part => {
    const {width, height, right} = part.getBoundingClientRect();
    return [width, height, right <= innerWidth];
  }),
  scrolled: [document.documentElement, ...all(".table")].filter(part => part.scrollWidth > part.clientWidth).length,
  empty: all("th").filter(head => all("tbody tr", head.closest("table")).every(
    row => !row.cells[head.cellIndex].textContent)).map(head => head.textContent),
  wrapped: all("td:not(:first-child)").filter(cell => {
    const text = document.createRange();
    text.selectNodeContents(cell);
    return text.getBoundingClientRect().height > 30;
  }).length,
});
</script>"""


def test_a_browser_shows_the_report(data: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium to look with")
    for seed in (0, 1):
        learn(config(data, "replay", analyse=True, seed=seed), tmp_path / "runs" / f"replay{seed}")
        learn(config(data, "replay", seed=seed, **{"memory.per_class": 3}), tmp_path / "runs" / f"few{seed}")
    report([tmp_path / "runs"], tmp_path / "report")
    page = tmp_path / "report" / "report.html"
    page.write_text(page.read_text() + MEASURED)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,900", "--dump-dom"]
    command = [browser, *options, f"--user-data-dir={tmp_path / 'browser'}", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    title = re.search("<title>(.*?)</title>", shown)
    assert title is not None
    seen = json.loads(html.unescape(title[1]))
    assert len(seen["parts"]) == 4 + 5, "tables; accuracy, bytes, by task, confusions and blocks"
    assert all(width > 200 and height > 40 and within for width, height, within in seen["parts"])
    assert (seen["scrolled"], seen["empty"], seen["wrapped"]) == (0, [], 0)


def test_runs_that_cannot_be_reported(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no finished run"):
        report([tmp_path], tmp_path / "report")
    learn(config(data), tmp_path / "a")
    learn(config(data, steps=4), tmp_path / "b")
    with pytest.raises(UsageError, match="tasks of different sizes"):
        report([tmp_path / "a", tmp_path / "b"], tmp_path / "report")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    with pytest.raises(UsageError, match=r"a and .*copy are the same run, seed \d+; report one of them"):
        report([tmp_path / "a", tmp_path / "copy"], tmp_path / "report")


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(data: Path, tmp_path: Path) -> None:
    quick = {"epochs": 1, "milestones": (), "batch_size": 16}
    for number, rate in enumerate((0.05, 0.01)):
        learn(config(data, training={**quick, "learning_rate": rate}), tmp_path / f"rate{number}")
    learn(config(data, training={**quick, "learning_rate": 0.05, "gamma": 0.5}), tmp_path / "gamma")
    groups = report([tmp_path, tmp_path / "rate0", tmp_path / "rate0"], tmp_path / "report")
    assert sorted((group.name, len(group.runs)) for group in groups) == [
        ("finetune learning rate 0.01", 1),
        ("finetune learning rate 0.05 training.gamma=0.1", 1),
        ("finetune learning rate 0.05 training.gamma=0.5", 1),
    ]


def test_options_are_the_same_as_numbers_and_as_text(data: Path, tmp_path: Path) -> None:
    for number, value in enumerate((0.5, "0.5")):
        learn(config(data, "ewc", seed=number, **{"options.strength": value}), tmp_path / f"seed{number}")
    [group] = report([tmp_path], tmp_path / "report")
    assert (group.name, group.seeds) == ("ewc", [0, 1])
