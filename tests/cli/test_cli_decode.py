"""krstore decode, verify and codecs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pytest

import krstore
from krstore.store import subjects

pytestmark = pytest.mark.usefixtures("fake")


@pytest.fixture
def store(cli: Any, archive: Path) -> Path:
    return Path(cli("encode", archive, "--codec", "raw", "--json").json["path"])


def test_a_decoded_archive_is_the_archive_again(cli: Any, archive: Path, store: Path) -> None:
    facts = cli("decode", store, "--json").json
    assert facts["path"] == str(store.with_name("features.raw.decoded.h5"))
    assert (facts["samples"], facts["shape"], facts["dtype"]) == (90, [4, 6, 6], "float32")
    with h5py.File(archive) as before, h5py.File(facts["path"]) as after:
        for key in ("features", "labels", "task"):
            np.testing.assert_array_equal(before[key][()], after[key][()])
        assert after["features"].dtype == before["features"].dtype
        assert after["ids"][()].tolist() == list(range(90))
        assert after.attrs["network"] == "resnet32"


def test_some_samples(cli: Any, archive: Path, store: Path) -> None:
    output = store.with_name("some.npz")
    assert cli("decode", store, "-o", output, "--ids", "80:,5,0:30", "--classes", "3,40").code == 0
    with h5py.File(archive) as file, np.load(output) as some:
        labels = file["labels"][()]
        expected = [i for i in [*range(80, 90), 5, *range(30)] if labels[i] in (3, 40)]
        assert some["ids"].tolist() == expected
        np.testing.assert_array_equal(some["labels"], labels[expected])
        np.testing.assert_array_equal(some["features"], file["features"][()][expected])


def test_an_exemplar_store_decodes_what_it_keeps(cli: Any, archive: Path) -> None:
    path = cli("encode", archive, "--codec", "first", "--ratio", "8", "--json").json["path"]
    output = archive.with_name("kept.h5")
    assert cli("decode", path, "-o", output).code == 0
    with krstore.open(path) as opened, h5py.File(output) as kept, h5py.File(archive) as file:
        assert kept["ids"][()].tolist() == opened.ids.tolist()
        np.testing.assert_array_equal(kept["features"][()], file["features"][()][opened.ids])
        missing = min(set(range(90)) - set(opened.ids.tolist()))
    refused = cli("decode", path, "-o", output, "--force", "--ids", missing)
    assert refused.code == 2
    assert f"sample {missing} is not kept" in refused.line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--classes", "4"), "classes are -1, 3, 40"),
        (("--classes", "three"), "integers"),
        (("--classes", "9" * 30), "integers of 64 bits"),
        (("--ids", "9" * 5000), "0:100,500"),
        (("--ids", "5 6"), "0:100,500"),
        (("--ids", "90"), "0 to 89"),
        (("--ids", "0:91"), "0 to 89"),
        (("--ids", "0:999999999999999"), "0 to 89"),
        (("--ids", "5:5"), "5:5"),
        (("--ids", "-4"), "0:100,500"),
        (("--ids", ""), "0:100,500"),
    ],
)
def test_samples_that_are_not_there(cli: Any, store: Path, arguments: tuple[str, ...], said: str) -> None:
    ran = cli("decode", store, "-o", store.with_name("r.h5"), *arguments)
    assert ran.code == 2
    assert said in ran.line
    assert not store.with_name("r.h5").exists()


def test_decoding_replaces_only_by_force(cli: Any, store: Path) -> None:
    assert cli("decode", store, "--ids", "7").code == 0
    refused = cli("decode", store)
    assert refused.code == 1
    assert "--force" in refused.line
    assert cli("decode", store, "--force", "--json").json["samples"] == 90


def test_the_store_itself_is_no_output(cli: Any, store: Path) -> None:
    named = store.rename(store.with_suffix(".h5"))
    before = named.read_bytes()
    refused = cli("decode", named, "-o", named, "--force")
    assert refused.code == 2
    assert "is an input, which is never replaced" in refused.line
    assert named.read_bytes() == before


def test_bfloat16_goes_where_it_can(cli: Any, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    features = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({"features": features}, tmp_path / "x.safetensors")
    path = cli("encode", tmp_path / "x.safetensors", "--codec", "raw", "--json").json["path"]
    decoded = cli("decode", path, "--json").json["path"]
    assert decoded.endswith("x.raw.decoded.safetensors")
    assert torch.equal(load_file(decoded)["features"], features)
    refused = cli("decode", path, "-o", tmp_path / "x.h5")
    assert refused.code == 1
    assert ".safetensors" in refused.line


def test_verify(cli: Any, archive: Path, store: Path) -> None:
    report = cli("verify", store, "--json").json
    assert report["ok"]
    assert (report["decoded"], report["quality"]) == (0, None)
    assert {"labels", "task"} < report["members"].keys()
    assert cli("verify", store, "--decode", "--json").json["decoded"] == 90
    lossy = cli("encode", archive, "--codec", "uniform", "--ratio", "6", "--json").json
    measured = cli("verify", lossy["path"], "--against", archive, "--json").json
    assert measured["quality"]["mse"] == pytest.approx(lossy["quality"]["mse"], rel=1e-9)
    assert measured["decoded"] == 90
    several = cli("verify", store, lossy["path"])
    assert several.code == 0
    assert several.out.count(": ok: ") == 2


def test_verify_names_the_damage(cli: Any, store: Path) -> None:
    data = bytearray(store.read_bytes())
    data[len(data) // 2] ^= 1
    damaged = store.with_name("damaged.krs")
    damaged.write_bytes(data)
    ran = cli("verify", damaged, store)
    assert ran.code == 4
    assert "block" in ran.err
    assert f"{store}: ok" in ran.out
    assert cli("verify", damaged).code == 4


def test_verify_against_another_archive(cli: Any, archive: Path, store: Path) -> None:
    with h5py.File(archive, "a") as file:
        file["features"][3, 0, 0, 0] = 77
    ran = cli("verify", store, "--against", archive)
    assert ran.code == 1
    assert "SHA-256" in ran.line
    with h5py.File(archive, "a") as file:
        del file["features"]
        file["features"] = np.zeros((90, 2), np.float32)
    assert "(2,)" in cli("verify", store, "--against", archive).line


def test_verify_against_other_labels(cli: Any, archive: Path, store: Path) -> None:
    with h5py.File(archive, "a") as file:
        file["labels"][0] += 1
    assert "labels" in cli("verify", store, "--against", archive).line


@pytest.mark.parametrize("figure", ["mse", "psnr", "cosine", "per_class"])
def test_verify_finds_a_quality_that_is_not_true(
    cli: Any, archive: Path, monkeypatch: pytest.MonkeyPatch, figure: str
) -> None:
    def flattering(*arguments: Any) -> Any:
        quality = measure(*arguments)
        value = getattr(quality, figure)
        better = (value[0] * 0.999, *value[1:]) if figure == "per_class" else value * 1.00001
        return msgspec.structs.replace(quality, **{figure: better})

    measure = subjects.measure
    monkeypatch.setattr(subjects, "measure", flattering)
    path = cli("encode", archive, "--codec", "uniform", "--ratio", "4", "--json").json["path"]
    assert cli("verify", path, "--decode").code == 0
    ran = cli("verify", path, "--against", archive)
    assert ran.code == 1
    assert figure in ran.line
    assert not cli("verify", path, "--against", archive, "--json").out.count('"ok": true')


def test_the_library_verifies_and_decodes(archive: Path, store: Path, tmp_path: Path) -> None:
    report = krstore.verify(store, against=archive)
    assert report.ok
    assert report.quality is not None
    with krstore.open(store) as opened:
        path = krstore.decode(opened, tmp_path / "r.h5", ids=[3, 3, 1], classes=None)
        assert len(opened.read([0])) == 1  # a store that was given stays open
    with h5py.File(path) as file:
        assert file["ids"][()].tolist() == [3, 3, 1]
    with pytest.raises(krstore.KrstoreError, match="nothing to decode"):
        krstore.decode(store, tmp_path / "none.h5", ids=[])


def test_codecs_are_listed_with_their_packages(cli: Any) -> None:
    listed = {facts["name"]: facts for facts in cli("codecs", "--json").json}
    assert {"raw", "uniform", "first"} <= listed.keys()
    assert (listed["raw"]["package"], listed["raw"]["lossless"]) == ("krstore", True)
    assert (listed["uniform"]["package"], listed["first"]["kind"]) == ("fake", "exemplar")
    assert "The knob" not in cli("codecs").out
    assert "Uniform quantisation" in cli("codecs").out


def test_one_codec_shows_options_and_presets(cli: Any) -> None:
    facts = cli("codecs", "uniform", "--json").json
    assert [option["name"] for option in facts["options"]] == ["level", "block_samples"]
    assert facts["presets"] == {"small": {"level": 19, "block_samples": 64}}
    shown = cli("codecs", "uniform").out
    for word in ("preset small", "level=19", "integer 1..22", "zstd level", "every element rounded"):
        assert word in shown
    unknown = cli("codecs", "unform")
    assert unknown.code == 2
    assert "Did you mean 'uniform'" in unknown.line


def test_a_codec_that_cannot_be_imported_hides_no_other(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "site" / "broken-1.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (folder / "entry_points.txt").write_text("[krstore.codecs]\nbroken = no_such_module:Broken\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    ran = cli("codecs")
    assert ran.code == 0
    assert "raw" in ran.out
    assert "warning: codec broken cannot be loaded" in ran.err
    assert "no_such_module" in ran.err
