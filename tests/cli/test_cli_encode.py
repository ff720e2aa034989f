"""krstore encode and info: what is written, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import krstore

QUALITY = {"mse", "mse_normalised", "nmse", "psnr", "max_abs", "cosine"}
SIZES = {"source", "file", "network", "latent", "labels", "overhead"}
pytestmark = pytest.mark.usefixtures("fake")


def test_the_store_lies_beside_the_archive_and_info_says_the_same(cli: Any, archive: Path) -> None:
    written = cli("encode", archive, "--codec", "raw", "--json").json
    path = archive.with_name("features.raw.krs")
    facts = cli("info", path, "--json").json
    assert written.pop("seconds") > 0
    assert written == facts
    assert facts["schema_version"] == 1
    assert (facts["codec"], facts["kind"], facts["samples"], facts["kept"]) == ("raw", "dense", 90, 90)
    assert (facts["shape"], facts["dtype"], facts["classes"]) == ([4, 6, 6], "float32", 3)
    assert facts["source"]["attributes"] == {"network": "resnet32"}
    assert facts["bytes"].keys() >= SIZES
    assert facts["quality"].keys() >= QUALITY
    assert facts["quality"]["psnr"] is None
    assert (
        facts["bytes"]["file"]
        == path.stat().st_size
        == sum(facts["bytes"][part] for part in SIZES - {"source", "file"})
    )
    assert facts["ratio"] == pytest.approx(90 * 4 * 6 * 6 * 4 / path.stat().st_size)


def test_an_encode_ends_with_sizes_quality_and_the_file(cli: Any, archive: Path) -> None:
    ran = cli("encode", archive, "--codec", "uniform", "--ratio", "4")
    assert ran.code == 0
    for word in ("uniform", "4x6x6 float32", "network", "latent", "overhead", "mse_normalised", "psnr"):
        assert word in ran.out
    assert f"wrote {archive.with_name('features.uniform.krs')}" in ran.err


@pytest.mark.parametrize(
    ("target", "limit"), [(("--max-bytes", "9kB"), 9000), (("--max-bytes", "9KiB"), 9216), (("--ratio", "5"), 10368)]
)
def test_targets_of_size(cli: Any, archive: Path, target: tuple[str, str], limit: int) -> None:
    assert 0.95 * limit < cli("encode", archive, "--codec", "uniform", *target, "--json").json["bytes"]["file"] <= limit


def test_target_of_error(cli: Any, archive: Path) -> None:
    facts = cli("encode", archive, "--codec", "uniform", "--max-mse", "1e-3", "--json").json
    assert 0.9e-3 < facts["quality"]["mse"] <= 1e-3


def test_an_existing_output_is_replaced_only_by_force(cli: Any, archive: Path) -> None:
    output = archive.with_name("s.krs")
    arguments = ("encode", archive, "--codec", "raw", "-o", output)
    assert cli(*arguments).code == 0
    before = output.read_bytes()
    refused = cli(*arguments)
    assert refused.code == 1
    assert "--force" in refused.line
    assert cli(*arguments, "--force", "--set", "level=1").code == 0
    assert output.read_bytes() != before
    assert cli(*arguments, "--force").code == 0
    assert output.read_bytes() == before


def test_the_archive_itself_is_no_output(cli: Any, archive: Path) -> None:
    before = archive.read_bytes()
    link = archive.with_name("link.krs")
    link.symlink_to(archive)
    for output in (archive, link):
        assert cli("encode", archive, "--codec", "raw", "-o", output, "--force").code == 2
    assert archive.read_bytes() == before


def test_no_other_input_is_an_output(cli: Any, archive: Path) -> None:
    store = archive.with_name("decoder.krs")
    assert cli("encode", archive, "--codec", "raw", "-o", store).code == 0
    before = store.read_bytes()
    for command in (
        ("encode", archive, "--codec", "raw", "--decoder", store),
        ("show", store, "--against", archive),
        ("snapshot", store),
    ):
        refused = cli(*command, "-o", store, "--force")
        assert refused.code == 2
        assert "decoder.krs is an input" in refused.line
    assert store.read_bytes() == before


def test_an_archive_is_encoded_like_another_was(cli: Any, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = archive.with_name("old.krs"), archive.with_name("new.krs")
    made = cli(
        "encode", archive, "-o", old, "--ratio", "1.5", "--preset", "linear", "--set", "encoder=true", "--json"
    ).json
    like = cli("encode", archive, "-o", new, "--like", old, "--json").json
    assert like["codec"] == "transform"
    assert like["ratio"] == pytest.approx(made["ratio"], rel=0.05)
    assert like["quality"]["nmse"] == pytest.approx(made["quality"]["nmse"], rel=0.2)
    weights = [krstore.open(path).header.members["payload/network/weights"].sha256 for path in (old, new)]
    assert weights[0] == weights[1]
    for option in (("--codec", "raw"), ("--ratio", "2"), ("--set", "level=3"), ("--decoder", old)):
        refused = cli("encode", archive, "-o", archive.with_name("no.krs"), "--like", old, *option)
        assert refused.code == 2
        assert f"says how to encode; leave {option[0]} out" in refused.line
    assert cli("encode", archive, "-o", old, "--like", old, "--force").code == 2
    monkeypatch.setenv("KRSTORE_CODEC", "raw")
    assert cli("encode", archive, "--like", old).code == 0
    assert archive.with_name(f"{archive.stem}.transform.krs").exists()


@pytest.mark.parametrize("path", [".", "/", "..", "nothing.h5"])
def test_what_is_no_file_has_no_place_beside_it(cli: Any, path: str) -> None:
    ran = cli("encode", path, "--codec", "raw")
    assert (ran.code, ran.line) == (1, f"error: {path} is not a file")


def test_preset_and_settings(cli: Any, archive: Path) -> None:
    facts = cli("encode", archive, "--codec", "uniform", "--preset", "small", "--set", "level=7", "--json").json
    assert facts["config"] == {"level": 7, "block_samples": 64}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--codec", "unifrom"), "Did you mean 'uniform'"),
        (("--codec", "raw", "--ratio", "2"), "lossless"),
        (("--codec", "uniform", "--ratio", "2", "--max-mse", "1"), "one target"),
        (("--codec", "uniform", "--ratio", "-2"), "not a positive number"),
        (("--codec", "uniform", "--max-bytes", "5 apples"), "no size"),
        (("--codec", "uniform", "--max-bytes", "9" * 400), "more than any file has"),
        (("--codec", "foo/bar"), "unknown codec 'foo/bar'"),
        (("--codec", "uniform", "--preset", "tiny"), "Known: small"),
        (("--codec", "uniform", "--set", "level=99"), "level=99"),
        (("--codec", "uniform", "--set", "lever=9"), "Did you mean 'level'"),
        (("--codec", "uniform", "--set", "level"), "key=value"),
        (("--codec", "uniform", "--device", "abacus"), "abacus"),
        (("--codec", "uniform", "--task-weights", "w.safetensors"), "--task-model"),
        (("--codec", "uniform", "--task-model", "nowhere:net"), "nowhere"),
    ],
)
def test_wrong_usage(cli: Any, archive: Path, arguments: tuple[str, ...], said: str) -> None:
    ran = cli("encode", archive, *arguments)
    assert ran.code == 2
    assert said in ran.line
    assert not list(archive.parent.glob("*.krs"))


def test_an_unreachable_target_leaves_no_file(cli: Any, archive: Path) -> None:
    ran = cli("encode", archive, "--codec", "uniform", "--ratio", "1e6")
    assert ran.code == 3
    assert "reached" in ran.err
    assert not list(archive.parent.glob("*.krs"))


def test_keys_of_the_archive(cli: Any, archive: Path) -> None:
    with h5py.File(archive, "a") as file:
        file.move("features", "maps/block 11")
        file.move("labels", "y")
    assert cli("encode", archive, "--codec", "raw").code == 1
    keys = ("--features-key", "maps/block 11", "--labels-key", "y")
    facts = cli("encode", archive, "--codec", "raw", *keys, "--json").json
    assert (facts["source"]["features_key"], facts["source"]["labels_key"]) == ("maps/block 11", "y")
    decoded = archive.with_name("r.h5")
    assert cli("decode", facts["path"], "-o", decoded).code == 0
    with h5py.File(archive) as a, h5py.File(decoded) as b:
        np.testing.assert_array_equal(a["maps/block 11"], b["maps/block 11"])
        np.testing.assert_array_equal(a["y"], b["y"])


def test_an_option_may_come_from_the_environment(cli: Any, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRSTORE_CODEC", "uniform")
    monkeypatch.setenv("KRSTORE_RATIO", "3")
    monkeypatch.setenv("KRSTORE_SET", "level=2 block_samples=5")
    facts = cli("encode", archive, "--json").json
    assert (facts["codec"], facts["config"]) == ("uniform", {"level": 2, "block_samples": 5})
    assert 3 <= facts["ratio"] < 3.1
    by_error = cli("encode", archive, "--json", "--force", "--max-mse", "1e-2").json
    assert 0.9e-2 < by_error["quality"]["mse"] <= 1e-2  # the command line's target takes the place of the environment's


def test_a_task_model_is_built_loaded_and_frozen(
    cli: Any, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mynet.py").write_text("import torch\ndef net(): return torch.nn.Conv2d(4, 2, 1)\n")
    monkeypatch.chdir(tmp_path)
    given: list[Any] = []
    from fakecodec.uniform import Uniform

    fit = Uniform.fit
    monkeypatch.setattr(
        Uniform, "fit", lambda self, source, context: given.append(context.task_model) or fit(self, source, context)
    )
    weights = {"weight": torch.ones(2, 4, 1, 1), "bias": torch.zeros(2), "elsewhere": torch.zeros(3)}
    save_file(weights, tmp_path / "w.safetensors")
    options = ("--codec", "uniform", "--ratio", "4", "--task-model", "mynet:net", "--task-weights", "w.safetensors")
    assert cli("encode", archive, *options).code == 0
    (network,) = given
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(network.weight, weights["weight"])
    save_file({"bias": weights["bias"]}, tmp_path / "w.safetensors")
    missing = cli("encode", archive, *options, "--force")
    assert missing.code == 2
    assert "weight" in missing.line


def test_several_stores_are_a_table_and_a_list(cli: Any, archive: Path) -> None:
    targets = {"raw": (), "uniform": ("--ratio", "4"), "first": ("--ratio", "6")}
    paths = [
        cli("encode", archive, "--codec", codec, *target, "--json").json["path"] for codec, target in targets.items()
    ]
    table = cli("info", *paths)
    assert all(path in table.out for path in paths)
    assert [facts["path"] for facts in cli("info", *paths, "--json").json] == paths


def test_a_damaged_store_does_not_hide_the_others(cli: Any, archive: Path) -> None:
    path = Path(cli("encode", archive, "--codec", "raw", "--json").json["path"])
    damaged = path.with_name("damaged.krs")
    damaged.write_bytes(path.read_bytes()[:-9])
    ran = cli("info", damaged, path)
    assert ran.code == 4
    assert str(path) in ran.out
    assert ran.err.startswith(f"error: {damaged}")


def test_errors_by_class(cli: Any, archive: Path) -> None:
    path = cli("encode", archive, "--codec", "uniform", "--ratio", "4", "--json").json["path"]
    quality = cli("info", path, "--per-class", "--json").json["quality"]
    assert quality["per_class"].keys() == {"-1", "3", "40"}
    assert np.mean(list(quality["per_class"].values())) == pytest.approx(quality["mse"])  # the classes are of one size
    assert "mse of class 40" in cli("info", path, "--per-class").out


def test_info_needs_no_codec(cli: Any, archive: Path, process: Any, tmp_path: Path) -> None:
    path = cli("encode", archive, "--codec", "uniform", "--ratio", "4", "--json").json["path"]
    assert process("info", path, "--json", PYTHONPATH="").json["codec"] == "uniform"
    refused = process("decode", path, "-o", tmp_path / "r.h5", PYTHONPATH="")
    assert refused.code == 2
    assert "'uniform', which is not installed" in refused.line


def test_an_exemplar_store_says_both_counts(cli: Any, archive: Path) -> None:
    facts = cli("encode", archive, "--codec", "first", "--ratio", "4", "--json").json
    assert facts["kind"] == "exemplar"
    assert facts["samples"] == 90
    assert 3 <= facts["kept"] < 23
    assert facts["quality"]["coverage_mse"] > 0
    assert f"90, {facts['kept']} kept" in cli("info", facts["path"]).out


def test_hostile_names_are_shown_and_not_obeyed(cli: Any, archive: Path) -> None:
    with h5py.File(archive, "a") as file:
        file.attrs["network"] = "\x1b[2Jgone"
    cli("encode", archive, "--codec", "raw")
    shown = cli("info", archive.with_name("features.raw.krs")).out
    assert "\x1b" not in shown
    assert "\\x1b[2Jgone" in shown


def test_the_library_says_the_same(cli: Any, archive: Path) -> None:
    path = cli("encode", archive, "--codec", "raw", "--json").json["path"]
    with krstore.open(path) as store:
        assert store.ratio == cli("info", path, "--json").json["ratio"]
