"""`krstore extract`: what it writes, what it refuses, and that it goes on where it was killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

import krstore
from krstore.archives import open_archive
from krstore.archives.resumable import ResumableArchive
from krstore.backbones import resnet32
from krstore.errors import ArchiveError, OutputError, UnknownNameError, UsageError
from krstore.modules import weights_hash
from krstore.progress import SILENT
from krstore.source import SourceSpec
from krstore_cli.app import run as cli

MEAN, STD = [0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]
LABELS = np.array([5, -2, 5, 900, 0, 0, 1, 2, 3, 3])


class Net(nn.Module):
    """Two convolutions and a layer that no forward pass runs."""

    __module__ = "nets"

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 5, 3, stride=2)
        self.unused = nn.Linear(2, 2)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.second(functional.relu(self.norm(self.first(x))))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels, labels=LABELS)
    return tmp_path / "images.npz"


def expected(path: Path, net: nn.Module | None = None) -> np.ndarray:
    with np.load(path) as arrays:
        x = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.inference_mode():
        return (net or Net()).eval()(x).numpy()


def features(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return file["features"][()]


def run(images: Path, output: Path, model: Any = None, layer: str = "second", **options: Any) -> np.ndarray:
    options = {"mean": MEAN, "std": STD, "batch_size": 3, "device": "cpu", **options}
    krstore.extract(model or Net(), layer, images, output, **options)
    return features(output)


# What is written


def test_features_labels_and_attributes(images: Path, tmp_path: Path):
    net = Net()
    x = run(images, tmp_path / "f.h5", net)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, expected(images), rtol=1e-5, atol=1e-6)
    source = open_archive(tmp_path / "f.h5")
    np.testing.assert_array_equal(source.labels, LABELS)
    assert source.spec.channel_axis == 0
    assert source.spec.attributes == {
        "model": "nets:Net",
        "layer": "second",
        "weights_sha256": weights_hash(net),
        "images": "images.npz",
        "input_layout": "nhwc",
        "input_divisor": 255,
        "mean": MEAN,
        "std": STD,
        "krstore_version": krstore.__version__,
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.h5", "images.npz"]
    store = krstore.encode(tmp_path / "f.h5", codec="raw", device="cpu")
    assert store.source.attributes == source.spec.attributes


def test_same_input_same_bytes(images: Path, tmp_path: Path):
    run(images, tmp_path / "a.h5")
    run(images, tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_containers_and_layouts_give_the_same_features(images: Path, tmp_path: Path):
    x = run(images, tmp_path / "f.h5")
    with np.load(images) as arrays:
        pixels = arrays["images"]
    with h5py.File(tmp_path / "nchw.h5", "w") as file:
        file["set/x"] = pixels.transpose(0, 3, 1, 2)
        file["set/y"] = LABELS
    np.save(tmp_path / "float.npy", pixels.astype(np.float32) / np.float32(255))
    keys = {"images_key": "set/x", "labels_key": "set/y"}
    np.testing.assert_array_equal(run(tmp_path / "nchw.h5", tmp_path / "b.h5", **keys), x)
    np.testing.assert_array_equal(open_archive(tmp_path / "b.h5").labels, LABELS)
    assert open_archive(tmp_path / "b.h5").spec.attributes["input_layout"] == "nchw"
    np.testing.assert_array_equal(run(tmp_path / "float.npy", tmp_path / "c.h5"), x)
    assert open_archive(tmp_path / "c.h5").labels is None


def test_grey_images_have_one_channel(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8), np.uint8)
    np.savez(tmp_path / "grey.npz", images=pixels)
    np.savez(tmp_path / "with_axis.npz", images=pixels[..., None])
    x = run(tmp_path / "grey.npz", tmp_path / "a.h5", Net(1), mean=[0.5], std=None)
    y = run(tmp_path / "with_axis.npz", tmp_path / "b.h5", Net(1), mean=[0.5], std=None)
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_float16_is_clipped_to_its_range(images: Path, tmp_path: Path):
    net = Net()
    assert run(images, tmp_path / "a.h5", net, dtype="float16").dtype == np.float16
    with torch.no_grad():
        net.second.weight *= 1e6
    x = run(images, tmp_path / "b.h5", net, dtype="float16")
    assert np.abs(x).max() == np.finfo(np.float16).max


def test_layers_of_any_rank(tmp_path: Path, images: Path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.Unflatten(1, (3, 2)), nn.Flatten(0))
    assert run(images, tmp_path / "a.h5", net, "1").shape == (10, 6)
    assert run(images, tmp_path / "b.h5", net, "2").shape == (10, 3, 2)
    with pytest.raises(UsageError, match=r"'3' returns shape \(18,\) for 3 images"):
        run(images, tmp_path / "c.h5", net, "3")


def test_a_forward_pass_ends_at_the_layer_and_leaves_no_hook(tmp_path: Path, images: Path):
    class Costly(Net):
        def forward(self, x: Tensor) -> Tensor:
            with contextlib.suppress(Exception):
                self.first(x)
            raise AssertionError("ran beyond the layer")

    net = Costly()
    assert run(images, tmp_path / "a.h5", net, "first").shape == (10, 4, 8, 8)
    with pytest.raises(AssertionError):
        net(torch.zeros(1, 3, 8, 8))


def test_the_hash_is_of_names_shapes_and_values():
    net, other, renamed = Net(), Net(), nn.Sequential(Net())
    assert weights_hash(net) == weights_hash(other)
    net.norm.num_batches_tracked += 5
    assert weights_hash(net) == weights_hash(other)
    other.norm.running_mean[1] = 1e-6
    assert len({weights_hash(net), weights_hash(other), weights_hash(renamed)}) == 3


def test_folder_of_classes(tmp_path: Path):
    for name, shade in (("b/1.png", 200), ("a/2.png", 100), ("b/0.png", 0)):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (shade,) * 3).save(tmp_path / "set" / name)
    x = run(
        tmp_path / "set", tmp_path / "f.h5", nn.Sequential(nn.Identity()), "0", resize=8, crop=8, mean=None, std=None
    )
    np.testing.assert_allclose(x, np.repeat([100, 0, 200], 192).reshape(3, 3, 8, 8) / np.float32(255), rtol=1e-6)
    source = open_archive(tmp_path / "f.h5")
    np.testing.assert_array_equal(source.labels, [0, 1, 1])
    attributes = source.spec.attributes
    assert attributes["class_names"] == ["a", "b"]
    assert (attributes["images"], attributes["resize"], attributes["crop"]) == ("set", 8, 8)


# What is refused


class Tuple(Net):
    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.GRU(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(x[:, 0])[0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layer": "secnd"}, UnknownNameError, r"unknown layer 'secnd'\. Did you mean 'second'\? Known: first, norm"),
        ({"layer": "unused"}, UsageError, "never runs layer 'unused'"),
        ({"model": Tuple(), "layer": "pair"}, UsageError, "'pair' returns a tuple; expected a tensor"),
        ({"model": Net(1)}, UsageError, r"fails on images of shape \(3, 3, 8, 8\) before layer 'second': RuntimeError"),
        ({"layout": "nchw", "mean": None, "std": None}, UsageError, r"fails on images of shape \(3, 8, 8, 3\)"),
        ({"layout": "chwn"}, UnknownNameError, "unknown layout 'chwn'.*auto, nchw, nhwc"),
        ({"mean": [0.5, 0.5]}, UsageError, r"mean \[0\.5, 0\.5\]: expected 1 or 3 finite numbers"),
        ({"mean": [float("nan")]}, UsageError, "finite"),
        ({"std": [0.5, 0.0, 0.5]}, UsageError, r"std \[0\.5, 0\.0, 0\.5\]: expected numbers above 0"),
        ({"dtype": "int8"}, UnknownNameError, "unknown dtype 'int8'"),
        ({"batch_size": 0}, UsageError, "batch size 0"),
        ({"device": "abacus"}, UsageError, "'abacus' is not available"),
        ({"model": "krstore.backbones:resnet99"}, UnknownNameError, "resnet32"),
        ({"model": "krstore.backbones:resnet32", "model_args": {"clases": 3}}, UsageError, "clases=3"),
    ],
)
def test_wrong_requests(images: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        run(images, tmp_path / "f.h5", **options)
    assert list(tmp_path.iterdir()) == [images]


def test_weights_that_do_not_fit_say_where(images: Path, tmp_path: Path):
    save_file(resnet32(classes=7).state_dict(), tmp_path / "w.safetensors")
    options = {"model": "krstore.backbones:resnet32", "layer": "layer3.0", "weights": tmp_path / "w.safetensors"}
    with pytest.raises(UsageError, match=r"fc\.weight is \(7, 64\), expected \(50, 64\).*argument"):
        run(images, tmp_path / "f.h5", **options)
    assert run(images, tmp_path / "f.h5", **options, model_args={"classes": 7}).shape == (10, 64, 2, 2)
    assert open_archive(tmp_path / "f.h5").spec.attributes["model_args"] == {"classes": 7}


@pytest.mark.parametrize("shape", [(3, 8, 3), (8, 8, 8), (8, 8, 8, 3), (8,)])
def test_images_that_do_not_tell_their_layout(tmp_path: Path, shape: tuple[int, ...]):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, *shape), np.uint8))
    with pytest.raises(UsageError, match=r"layout|expected \(H, W, C\)"):
        run(tmp_path / "a.npz", tmp_path / "f.h5")


def test_values_that_are_not_finite_name_the_image(tmp_path: Path):
    pixels = np.zeros((10, 8, 8, 3), np.float32)
    pixels[7, 0, 0, 0] = np.inf
    np.savez(tmp_path / "a.npz", images=pixels)
    with pytest.raises(ArchiveError, match="output for image 7 is not finite"):
        run(tmp_path / "a.npz", tmp_path / "f.h5")


def test_outputs(images: Path, tmp_path: Path):
    (tmp_path / "f.h5").write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists; use --force"):
        run(images, tmp_path / "f.h5")
    assert (tmp_path / "f.h5").read_bytes() == b"precious"
    assert run(images, tmp_path / "f.h5", force=True).shape == (10, 5, 3, 3)
    with pytest.raises(UsageError, match=r"name the output \.h5"):
        run(images, tmp_path / "f.npz")
    with pytest.raises(OutputError, match="does not exist"):
        run(images, tmp_path / "no" / "f.h5")


# Interruptions


class StopAfter:
    """A progress that stops the work once so many samples are done."""

    def __init__(self, samples: int, stop: Callable[[], None]) -> None:
        self.left, self._stop = samples, stop

    def note(self, message: str) -> None:
        SILENT.note(message)

    @contextlib.contextmanager
    def task(self, description: str, total: int, unit: str = "samples") -> Iterator[StopAfter]:
        yield self

    def advance(self, amount: int = 1, **figures: float) -> None:
        self.left -= amount
        if amount and self.left <= 0:
            self._stop()


def interrupt() -> None:
    raise KeyboardInterrupt


def test_an_interrupted_run_is_taken_up_where_it_was(images: Path, tmp_path: Path):
    whole = run(images, tmp_path / "whole.h5")
    target = tmp_path / "f.h5"
    target.write_bytes(b"the old one")
    with pytest.raises(KeyboardInterrupt):
        run(images, target, force=True, progress=StopAfter(6, interrupt))
    assert target.read_bytes() == b"the old one"
    assert {p.name for p in tmp_path.iterdir()} == {
        "images.npz", "whole.h5", "f.h5", ".f.h5.partial", ".f.h5.partial.json",
    }  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        run(images, target, force=True, resume=True, progress=StopAfter(9, interrupt))
    net = Net()
    np.testing.assert_array_equal(run(images, target, net, force=True, resume=True), whole)
    assert net.runs == 1
    assert target.read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"images.npz", "whole.h5", "f.h5"}


def test_killed_just_before_the_end(images: Path, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        run(images, tmp_path / "f.h5", progress=StopAfter(10, interrupt))
    net = Net()
    np.testing.assert_array_equal(run(images, tmp_path / "f.h5", net, resume=True), run(images, tmp_path / "whole.h5"))
    assert net.runs == 0


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"batch_size": 4}, "batch_size was 3, is 4"),
        ({"mean": None}, "mean was"),
        ({"dtype": "float16"}, "dtype was 'float32'"),
        ({"layer": "first"}, "layer was 'second', is 'first'"),
        ({"layout": "nchw", "mean": None, "std": None}, "input_layout was 'nhwc'"),
        ({"labels_key": "labels"}, "labels_key was None, is 'labels'"),
    ],
)
def test_a_resume_of_something_else_is_refused(images: Path, tmp_path: Path, changed: dict[str, Any], named: str):
    with pytest.raises(KeyboardInterrupt):
        run(images, tmp_path / "f.h5", progress=StopAfter(3, interrupt))
    before = (tmp_path / ".f.h5.partial").read_bytes()
    with pytest.raises(UsageError, match=f"begun differently.*{named}.*leave out --resume"):
        run(images, tmp_path / "f.h5", resume=True, **changed)
    assert (tmp_path / ".f.h5.partial").read_bytes() == before


def test_other_weights_or_images_are_something_else(images: Path, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        run(images, tmp_path / "f.h5", progress=StopAfter(3, interrupt))
    net = Net()
    net.norm.running_var *= 2
    with pytest.raises(UsageError, match="weights_sha256 was"):
        run(images, tmp_path / "f.h5", net, resume=True)
    os.utime(images, (1, 1))
    with pytest.raises(UsageError, match="images_identity was"):
        run(images, tmp_path / "f.h5", resume=True)
    np.testing.assert_array_equal(run(images, tmp_path / "f.h5"), run(images, tmp_path / "whole.h5"))


def test_a_damaged_note_of_progress_is_said(images: Path, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        run(images, tmp_path / "f.h5", progress=StopAfter(3, interrupt))
    for content in ("", "[]", "{}", '{"identity": 3, "done": 1, "offset": 2}'):
        (tmp_path / ".f.h5.partial.json").write_text(content)
        with pytest.raises(UsageError, match=r"is damaged.*leave out --resume"):
            run(images, tmp_path / "f.h5", resume=True)


CHILD = """
    import os, resource, signal, sys
    sys.path.insert(0, {tests!r})
    from test_extract import MEAN, STD, Net, StopAfter, run
    from krstore.errors import OutputError
    from pathlib import Path

    {before}
    kill = StopAfter({samples}, lambda: os.kill(os.getpid(), signal.SIGKILL))
    try:
        run(Path({images!r}), Path({output!r}), progress=kill)
    except OutputError as error:
        print("refused:", error)
"""


def child(images: Path, output: Path, samples: int, before: str = "") -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(CHILD).format(
        tests=str(Path(__file__).parent), images=str(images), output=str(output), samples=samples, before=before
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_a_killed_run_is_taken_up(images: Path, tmp_path: Path):
    assert child(images, tmp_path / "f.h5", 9).returncode == -9
    assert not (tmp_path / "f.h5").exists()
    done = json.loads((tmp_path / ".f.h5.partial.json").read_text())["done"]
    assert done in (3, 6, 9)
    net = Net()
    np.testing.assert_array_equal(run(images, tmp_path / "f.h5", net, resume=True), run(images, tmp_path / "whole.h5"))
    assert net.runs == (10 - done + 2) // 3


def test_a_full_disk_is_said_and_the_run_can_be_taken_up(images: Path, tmp_path: Path):
    limit = "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))"
    done = child(images, tmp_path / "f.h5", 100, limit)
    assert "refused: cannot write" in done.stdout, done.stderr
    assert not (tmp_path / "f.h5").exists()
    np.testing.assert_array_equal(run(images, tmp_path / "f.h5"), run(images, tmp_path / "whole.h5"))


# The command


SHARED = ["--model", "krstore.backbones:resnet32", "--layer", "layer3.0", "--device", "cpu", "--batch-size", 4]


def command(*arguments: Any) -> int:
    return cli(["extract", *map(str, [*SHARED, *arguments])])


def test_the_command_writes_what_the_library_writes(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    net = resnet32()
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    options = ["--weights", tmp_path / "w.safetensors", "--images", images, "--mean", "0.5,0.4,0.3", "--std", "0.25"]
    assert command(*options, "-o", tmp_path / "a.h5", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["schema_version"] == 1
    assert (facts["samples"], facts["shape"], facts["classes"]) == (10, [64, 2, 2], 7)
    assert facts["attributes"]["weights_sha256"] == weights_hash(net)
    krstore.extract(
        net, "layer3.0", images, tmp_path / "b.h5", mean=[0.5, 0.4, 0.3], std=[0.25], device="cpu", batch_size=4
    )  # fmt: skip
    np.testing.assert_array_equal(features(tmp_path / "a.h5"), features(tmp_path / "b.h5"))
    assert command(*options, "-o", tmp_path / "a.h5") == 1
    assert "exists; use --force" in capsys.readouterr().err
    monkeypatch.setenv("KRSTORE_DTYPE", "float16")
    assert command(*options, "-o", tmp_path / "a.h5", "--force") == 0
    assert "10 samples of 64x2x2 float16, 7 classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layer", "layer3.9"], "unknown layer 'layer3.9'. Did you mean"),
        (["--mean", "a,b"], "--mean a,b: expected numbers"),
        (["--model-arg", "classes"], "expected key=value"),
        (["--model-arg", "classes=many"], "classes='many'"),
        (["--batch-size", "0"], "batch size 0"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
):
    assert command("--images", images, "-o", tmp_path / "a.h5", *options) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_an_interrupted_command_leaves_the_partial_file_only(tmp_path: Path):
    pixels = np.zeros((20_000, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "many.npz", images=pixels)
    save_file(resnet32().state_dict(), tmp_path / "w.safetensors")
    options = [*SHARED, "--weights", tmp_path / "w.safetensors", "--images", tmp_path / "many.npz", "-o", "f.h5"]
    words = [sys.executable, "-c", "from krstore_cli.app import main; main()", "extract", *map(str, options)]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / ".f.h5.partial.json").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said == "error: interrupted\n"
    assert not (tmp_path / "f.h5").exists()
    done = json.loads((tmp_path / ".f.h5.partial.json").read_text())["done"]
    assert 0 < done < 20_000


# Memory and real weights


def test_images_and_features_are_streamed(tmp_path: Path):
    pixels = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (100_000, 32, 32, 3))
    size = pixels.nbytes
    del pixels
    code = f"""
        import resource
        import krstore
        from torch import nn

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

        net = nn.Sequential(nn.AvgPool2d(2), nn.Identity())
        before = []

        class Watch:
            def note(self, message): ...
            def task(self, description, total, unit="samples"):
                return self
            def __enter__(self):
                return self
            def __exit__(self, *rest): ...
            def advance(self, amount=1, **figures):
                if amount and not before:
                    before.append(peak())

        krstore.extract(net, "0", {str(tmp_path / "x.npy")!r}, {str(tmp_path / "f.h5")!r}, batch_size=1000,
                        device="cpu", progress=Watch())
        print(peak() - before[0])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert size > 300e6
    assert (tmp_path / "f.h5").stat().st_size > 300e6
    assert int(done.stdout) < 150, f"{done.stdout} MB"


@pytest.mark.slow
@pytest.mark.skipif("KRSTORE_DATA" not in os.environ, reason="KRSTORE_DATA names no folder of real weights")
def test_real_weights(images: Path, tmp_path: Path):
    weights = Path(os.environ["KRSTORE_DATA"]) / "resnet32_cifar100_base50.safetensors"
    assert command("--weights", weights, "--images", images, "-o", tmp_path / "f.h5") == 0
    assert open_archive(tmp_path / "f.h5").spec.shape == (64, 2, 2)


def test_two_extractions_do_not_write_one_file(images: Path, tmp_path: Path) -> None:
    spec = SourceSpec(samples=2, shape=(3,), dtype="float32", channel_axis=0)
    output, rows = tmp_path / "out.h5", np.arange(6, dtype=np.float32).reshape(2, 3)
    with ResumableArchive(output, {}) as first:
        first.append(rows[:1], spec, {})
        with pytest.raises(OutputError, match=r"another process is writing .*out\.h5"), ResumableArchive(output, {}):
            pass
        first.append(rows[1:], spec, {})
    np.testing.assert_array_equal(features(output), rows)
    run(images, output, force=True)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out.h5")]


def test_images_are_not_replaced_by_what_is_extracted_from_them(images: Path) -> None:
    archive = images.with_name("own.h5")
    with h5py.File(archive, "w") as file:
        file["images"] = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(UsageError, match="is an input"):
        run(archive, archive, force=True)
    assert len(open_archive(archive, features_key="images").read(np.arange(2))) == 2


def test_images_in_memory(images: Path, tmp_path: Path) -> None:
    held = open_archive(images, features_key="images")
    source = krstore.ArraySource(held.read(np.arange(held.spec.samples)), held.labels)
    options: dict[str, Any] = {"mean": MEAN, "std": STD, "device": "cpu"}
    first = krstore.extract(Net(), "second", images, tmp_path / "file.h5", **options)
    second = krstore.extract(Net(), "second", source, tmp_path / "held.h5", **options)
    everything = np.arange(held.spec.samples)
    np.testing.assert_array_equal(first.read(everything), second.read(everything))
    np.testing.assert_array_equal(second.labels, LABELS)
    assert "images" not in second.spec.attributes
    with pytest.raises(UsageError, match="resume, resize, crop and keys are of images in files"):
        krstore.extract(Net(), "second", source, tmp_path / "other.h5", resume=True)


def test_a_network_has_its_mode_again(images: Path, tmp_path: Path) -> None:
    network = Net().train()
    network.norm.eval()
    statistics = network.norm.running_mean.clone()  # type: ignore[union-attr]
    krstore.extract(network, "second", images, tmp_path / "a.h5", device="cpu")
    assert network.training
    assert not network.norm.training
    assert network.first.training
    torch.testing.assert_close(network.norm.running_mean, statistics)
