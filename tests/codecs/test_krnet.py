"""krnet against the paper: Table II and the network's sizes, Eq. 1, the groups, Eq. 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from payloads import MemoryPayload
from torch import nn

import krstore
from krstore.config import build_config
from krstore.source import SourceSpec, SourceStats
from krstore.testing import ArraySource, example_source
from krstore_codecs._krnet import BatchedIdEmbedding, Groups, KRNetModule, recitation_loss
from krstore_codecs._normalise import Normaliser
from krstore_codecs.krnet import FittedKRNet, KRNet, choose_sizes

MIB = 2**20
TABLE_II = {50: (64_817, "0.59"), 100: (129_395, "1.17"), 150: (194_217, "1.76"), 200: (255_224, "2.34"),
            250: (319_811, "2.93")}  # fmt: skip


def imagenet_labels(classes: int, samples: int) -> Any:
    """About 1,300 samples a class."""
    labels = np.sort(np.arange(samples) % classes)
    assert 1024 < np.bincount(labels).min() <= np.bincount(labels).max() <= 1536
    return labels


def preset(name: str, **changes: Any) -> KRNet:
    return KRNet(build_config("krnet", KRNet.Config, KRNet.presets, name, changes))


def spec_of(shape: tuple[int, ...], samples: int) -> SourceSpec:
    return SourceSpec(samples=samples, shape=shape, dtype="float32", channel_axis=0)


@pytest.mark.parametrize("classes", TABLE_II)
def test_table_ii_latents_to_the_byte(classes: int) -> None:
    """Packed with weights nobody trained; only the decoder is small, which the latents do not depend on."""
    samples, printed = TABLE_II[classes]
    labels = imagenet_labels(classes, samples)
    codec, spec = preset("paper-imagenet", d0=8, c0=4), spec_of((2, 2, 2), samples)
    sizes = choose_sizes(codec.config, spec, labels, budget=0)
    assert sizes.groups == Groups.of(labels, samples, 512).count == 3 * classes
    state = {name: np.zeros(value.shape, np.float32) for name, value in KRNetModule(sizes).state_dict().items()}
    normaliser = Normaliser(spec, np.zeros(2, np.float32), np.ones(2, np.float32))
    payload = MemoryPayload()
    codec.pack(FittedKRNet(sizes, normaliser, state, None, 0), 0.0, payload)
    latent = sum(len(data) for name, data in payload.members.items() if name.startswith("latent/"))
    assert latent == 2 * (3 * classes) * 512 * 4 == 12_288 * classes
    assert f"{latent / MIB:.2f}" == printed


def test_table_ii_in_a_store(tmp_path: Path) -> None:
    """The first row end to end: one iteration on 64,817 samples, then the bytes of the file."""
    features = np.random.default_rng(0).random((64_817, 2), np.float32)
    source = ArraySource(features, imagenet_labels(50, 64_817))
    small = {"d0": 8, "c0": 4, "iterations": 1, "batch_size": 8}
    store = krstore.encode(source, tmp_path / "x.krs", "krnet", preset="paper-imagenet", settings=small, device="cpu")
    assert store.bytes.latent == 614_400
    assert store.config["group_size"] == 512


@pytest.mark.parametrize(
    ("name", "shape", "decoder_mb", "krnet_mb"),
    [("paper-imagenet", (256, 14, 14), 325.8, 327.9), ("paper-cifar", (64, 8, 8), None, None)],
)
def test_network_sizes(name: str, shape: tuple[int, ...], decoder_mb: float | None, krnet_mb: float | None) -> None:
    """Sec. IV-B1 gives those of ImageNet, in units of 2^20 bytes; Table I leaves about 36 million weights for CIFAR."""
    codec = preset(name)
    sizes = choose_sizes(codec.config, spec_of(shape, 64_817), imagenet_labels(50, 64_817), budget=0)
    with torch.device("meta"):
        network = KRNetModule(sizes)
    decoder = sum(p.numel() for p in network.decoder.parameters())
    whole = sum(p.numel() for name, p in network.named_parameters() if "vectors" not in name)
    if decoder_mb and krnet_mb:
        assert 4 * decoder / MIB == pytest.approx(decoder_mb, rel=5e-4)
        assert 4 * whole / MIB == pytest.approx(krnet_mb, rel=5e-4)
    else:
        assert whole == pytest.approx(36e6, rel=0.01)


def test_presets_are_table_i() -> None:
    cifar, imagenet = preset("paper-cifar").config, preset("paper-imagenet").config
    assert (cifar.group_size, cifar.d0, cifar.c0, cifar.stride, cifar.gamma) == (512, 1024, 512, 1, 1e-3)
    assert (imagenet.group_size, imagenet.d0, imagenet.c0, imagenet.stride) == (512, 1536, 1024, 2)
    assert imagenet.gamma == 5e-4
    assert (cifar.iterations, imagenet.iterations) == (40_000, 50_000)
    for config in (cifar, imagenet):
        assert config.constant * (config.iterations or 0) == 20_000
        assert (config.batch_size, config.learning_rate, config.final_rate) == (1000, 3e-3, 3e-6)
        assert (config.style, config.weights, config.plateau) == ("paper", "float32", None)


def matrix_of_eq_1(n: int, h: int) -> torch.Tensor:
    """A_n as the paper writes it."""
    a = torch.zeros(h, h)
    for i in range(h):
        for j in range(h):
            if j - i == n or i - j == h - n:
                a[i, j] = 1
    return a


@pytest.mark.parametrize("h", [2, 5, 16])
def test_rotation_is_eq_1(h: int) -> None:
    torch.manual_seed(0)
    embedding = BatchedIdEmbedding(3, h, modules=False)
    vectors = embedding.vectors
    for m in range(3):
        for n in range(h):
            e = embedding(torch.tensor([m]), torch.tensor([n]))[0].detach()
            torch.testing.assert_close(e[:h], vectors["static"][m].detach(), rtol=0, atol=0)
            torch.testing.assert_close(e[h:], matrix_of_eq_1(n, h) @ vectors["dynamic"][m].detach(), rtol=0, atol=0)


def test_embedding_passes_its_vectors_through_modules_of_their_own() -> None:
    torch.manual_seed(0)
    embedding = BatchedIdEmbedding(2, 8, modules=True)
    rotated = torch.stack([matrix_of_eq_1(n, 8) @ embedding.vectors["dynamic"][1] for n in range(8)])
    e = embedding(torch.ones(8, dtype=torch.long), torch.arange(8))
    torch.testing.assert_close(e[:, 8:], embedding.dynamic_fc(rotated))
    torch.testing.assert_close(e[0, :8], embedding.static_fc(embedding.vectors["static"][1:2])[0])
    linear, norm, activation = embedding.static_fc
    assert (linear.in_features, linear.out_features) == (8, 8)
    assert norm.num_groups == 2
    assert activation.negative_slope == 1e-4


@given(
    labels=st.lists(st.integers(-3, 3) | st.sampled_from([-(2**62), 2**62]), min_size=1, max_size=200),
    size=st.integers(1, 40),
)
@settings(max_examples=150, deadline=None)
def test_groups_are_class_by_class(labels: list[int], size: int) -> None:
    given_labels = np.array(labels, np.int64)
    groups = Groups.of(given_labels, len(labels), size)
    counts = np.unique(given_labels, return_counts=True)[1]
    assert groups.count == sum(-(-int(count) // size) for count in counts)
    assert len(set(zip(groups.group.tolist(), groups.local.tolist(), strict=True))) == len(labels)
    assert set(groups.group.tolist()) == set(range(groups.count))
    assert groups.local.min() >= 0
    assert groups.local.max() < size
    for m in range(groups.count):
        members = np.flatnonzero(groups.group == m)
        assert len(members) <= size
        assert len(set(given_labels[members].tolist())) == 1


def test_groups_without_labels_are_of_one_class() -> None:
    groups = Groups.of(None, 1000, 300)
    assert groups.count == 4
    np.testing.assert_array_equal(groups.group, np.arange(1000) // 300)
    np.testing.assert_array_equal(groups.local, np.arange(1000) % 300)


def normaliser(low: list[float], span: list[float]) -> Normaliser:
    spec = spec_of((len(low), 1, 1), 2)
    return Normaliser(spec, np.array(low, np.float32), np.array(span, np.float32))


RECITED = torch.tensor([[0.5, 0.25], [1.0, 0.0]]).view(2, 2, 1, 1)
TRUTH = torch.tensor([[0.0, 0.75], [0.5, 0.5]]).view(2, 2, 1, 1)


def test_loss_without_a_task_network() -> None:
    """Squares 1/4 everywhere: summed over the two elements, 1/2; the mean over the batch is 1/2."""
    assert recitation_loss(RECITED, TRUTH, normaliser([0, 0], [1, 1]), None, 1e9).item() == 0.5


def test_loss_with_a_task_network() -> None:
    """F2(x) = (x0 + 2 x1, x0 x1) on raw features x = grid * (2, 4) + (1, 0).

    Sample 0: recited x = (2, 1) -> (4, 2); true x = (1, 3) -> (7, 3): 9 + 1 = 10.
    Sample 1: recited x = (3, 0) -> (3, 0); true x = (2, 2) -> (6, 4): 9 + 16 = 25.
    """
    seen: list[torch.Size] = []

    class Task(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.shape)
            a, b = x[:, 0, 0, 0], x[:, 1, 0, 0]
            return torch.stack([a + 2 * b, a * b], dim=1)

    loss = recitation_loss(RECITED, TRUTH, normaliser([1, 0], [2, 4]), Task(), 0.1)
    assert loss.item() == pytest.approx(0.5 + 0.1 * (10 + 25) / 2)
    assert seen == [(2, 2, 1, 1)] * 2


def test_loss_is_minimised_through_the_task_network_too() -> None:
    task = nn.Sequential(nn.Flatten(), nn.Linear(2, 3)).requires_grad_(False)
    recited = RECITED.clone().requires_grad_()
    recitation_loss(recited, TRUTH, normaliser([1, 0], [2, 4]), task, 0.1).backward()
    alone = RECITED.clone().requires_grad_()
    recitation_loss(alone, TRUTH, normaliser([1, 0], [2, 4]), None, 0.1).backward()
    assert recited.grad is not None
    assert alone.grad is not None
    assert not torch.allclose(recited.grad, alone.grad)


SOURCE = example_source(60, (4, 3, 3))


def task_network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5, 6))


def encode(path: Path, task_model: nn.Module | None, **settings: Any) -> krstore.Store:
    options = {"iterations": 6, "d0": 16, "c0": 8, "group_size": 16, "weights": "float32", **settings}
    return krstore.encode(
        SOURCE, path, "krnet", preset="paper-cifar", settings=options, device="cpu", task_model=task_model
    )


def test_the_task_network_is_left_as_it_was(tmp_path: Path) -> None:
    """Its weights, their gradients, the statistics of its norms and its mode: also where nobody froze it."""
    task = task_network().train()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    with_task = encode(tmp_path / "with.krs", task)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in task.parameters())
    assert task.training
    for name, value in task.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    without = encode(tmp_path / "without.krs", None)
    assert with_task.path.read_bytes() != without.path.read_bytes()


def test_gamma_of_zero_leaves_the_task_network_out(tmp_path: Path) -> None:
    stores = [encode(tmp_path / f"{n}.krs", task, gamma=0.0) for n, task in enumerate((None, task_network()))]
    np.testing.assert_allclose(*(store.read(slice(None)) for store in stores), rtol=1e-5, atol=1e-6)


def test_dead_channels_and_constant_archives_are_exact(tmp_path: Path) -> None:
    features = np.random.default_rng(0).random((40, 3, 4, 4), np.float32)
    features[:, 1] = 2.7
    store = krstore.encode(
        ArraySource(features), tmp_path / "x.krs", "krnet", ratio=1.0, settings={"iterations": 5}, device="cpu"
    )
    np.testing.assert_array_equal(store.read(slice(None))[:, 1], features[:, 1])


def test_what_was_chosen_stands_in_the_header(tmp_path: Path) -> None:
    store = krstore.encode(SOURCE, tmp_path / "x.krs", "krnet", ratio=1.0, settings={"iterations": 5}, device="cpu")
    assert store.config["iterations"] == 5
    assert store.config["group_size"] >= 8
    assert store.config["d0"] > 0
    assert store.config["c0"] > 0


def test_normaliser_is_linear_by_channel() -> None:
    """The normaliser maps the source to [0, 1] by channel, and back."""
    x = np.random.default_rng(0).normal(size=(9, 2, 3, 3)).astype(np.float32)
    flat = x.transpose(1, 0, 2, 3).reshape(2, -1).astype(np.float64)
    stats = SourceStats("", flat.min(1), flat.max(1), flat.mean(1), float(x.var()))
    scaler = Normaliser.of(spec_of((2, 3, 3), 9), stats)
    grids = scaler.scale(scaler.to_grid(x))
    torch.testing.assert_close(grids.amin((0, 2, 3)), torch.zeros(2))
    torch.testing.assert_close(grids.amax((0, 2, 3)), torch.ones(2))
    np.testing.assert_allclose(scaler.array(scaler.decode(grids)), x, atol=1e-6)


def test_codes_are_counted_and_lower_the_error(tmp_path: Path) -> None:
    """At equal bytes, samples that share nothing but three fields are told by codes, not by their IDs."""
    rng = np.random.default_rng(0)
    fields = rng.normal(size=(3, 4, 4, 4))
    source = ArraySource(np.einsum("nk,kchw->nchw", rng.normal(size=(400, 3)), fields).astype(np.float32))
    plain, coded = (
        krstore.encode(
            source, tmp_path / f"{latent}.krs", "krnet", ratio=10, device="cpu",
            settings={"iterations": 120, "latent": latent},
        )
        for latent in (0, 3)
    )  # fmt: skip
    assert max(plain.bytes.file, coded.bytes.file) <= source.features.nbytes / 10
    assert "payload/latent/codes" in coded.header.members
    assert "payload/latent/codes" not in plain.header.members
    assert coded.quality.nmse < 0.5 * plain.quality.nmse


def test_codes_need_quantised_weights(tmp_path: Path) -> None:
    with pytest.raises(krstore.errors.UsageError, match=r"latent=4: .*float32"):
        krstore.encode(example_source(), tmp_path / "x.krs", "krnet", preset="paper-cifar", settings={"latent": 4})


def test_a_network_far_smaller_than_the_target_is_stored_as_finely_as_can_be(tmp_path: Path) -> None:
    settings = {"c0": 4, "d0": 8, "iterations": 10}
    store = krstore.encode(example_source(240, (6, 4, 4)), tmp_path / "x.krs", "krnet", ratio=2, settings=settings)
    assert store.ratio > 2


def test_codes_beyond_the_budget_are_named(tmp_path: Path) -> None:
    with pytest.raises(krstore.errors.TargetUnreachableError, match="64 codes a sample take about 32,000 bytes"):
        krstore.encode(
            example_source(1000), tmp_path / "x.krs", "krnet", max_bytes=10_000, settings={"latent": 64}, device="cpu"
        )
