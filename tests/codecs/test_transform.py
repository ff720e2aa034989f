"""transform: its linear part exact, its rate model right, its nets worth their bytes, its plans within budgets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import scipy.fft
import torch
from payloads import MemoryPayload

import krstore
from krstore.checkpoint import Checkpoint
from krstore.codec import FitContext, OpenContext
from krstore.config import build_config
from krstore.errors import CorruptStoreError, TargetUnreachableError, UsageError
from krstore.progress import SILENT
from krstore.source import scan
from krstore.testing import ArraySource, example_source
from krstore_codecs._latents import LARGEST
from krstore_codecs._normalise import Normaliser
from krstore_codecs._restore import Restoration
from krstore_codecs._transform import SPEED, Analysis, Layout, RateModel, Synthesis, Tiles
from krstore_codecs._transform_plan import _coded, plan
from krstore_codecs.transform import Transform


def encode(path: Path, source: ArraySource, **options: Any) -> krstore.Store:
    return krstore.encode(source, path, "transform", device="cpu", **options)


def rectified(samples: int, channels: int = 24, seed: int = 0) -> ArraySource:
    """Channels that see the same three smooth fields through a ReLU: more regular than their covariance says."""
    rng = np.random.default_rng(seed)
    spectrum = rng.normal(size=(samples, 3, 8, 8)) / (1 + np.add.outer(np.arange(8) ** 2, np.arange(8) ** 2))
    fields = scipy.fft.idctn(spectrum, axes=(2, 3), norm="ortho")
    out = np.einsum("kc,nchw->nkhw", rng.normal(size=(channels, 3)), fields) / fields.std() - 0.7
    return ArraySource(np.maximum(out, 0).astype(np.float32), rng.integers(0, 4, samples))


@pytest.mark.parametrize("grid", [(8, 8), (1, 1), (5, 7), (16, 3), (1, 12)])
def test_without_a_net_it_is_the_orthonormal_dct_and_klt(grid: tuple[int, int]) -> None:
    basis = torch.linalg.qr(torch.randn(6, 6)).Q
    x = torch.randn(3, 6, *grid)
    with torch.no_grad():
        y = Analysis(basis, 0, Tiles(grid, 1))(x)
        expected = scipy.fft.dctn(np.einsum("kc,nchw->nkhw", basis, x), axes=(2, 3), norm="ortho")
        np.testing.assert_allclose(y, expected, atol=1e-5)
        synthesis = Synthesis(6, 6, 0, Tiles(grid, 1))
        synthesis.begin_at(basis, torch.zeros(6))
        np.testing.assert_allclose(synthesis(y), x, atol=1e-5)


@pytest.mark.parametrize("grid", [(64, 64), (40, 33), (1, 50)])
def test_longer_axes_are_cut_into_blocks_and_come_back(grid: tuple[int, int]) -> None:
    basis, x = torch.eye(2), torch.randn(2, 2, *grid)
    synthesis = Synthesis(2, 2, 0, Tiles(grid, 1))
    synthesis.begin_at(basis, torch.zeros(2))
    with torch.no_grad():
        y = Analysis(basis, 0, Tiles(grid, 1))(x)
        assert y.shape[2:] == Tiles(grid, 1).coefficients
        np.testing.assert_allclose(synthesis(y), x, atol=1e-5)
        block = scipy.fft.dctn(x[:, :, :8, :8] if grid[0] > 1 else x[:, :, :, :8], axes=(2, 3), norm="ortho")
        np.testing.assert_allclose(y[:, :, : block.shape[2], :8], block, atol=1e-5)


@pytest.mark.parametrize(("grid", "side", "shape"), [((8, 8), 4, (4, 4)), ((6, 9), 3, (3, 3)), ((7, 4), 4, (1, 4))])
def test_tiles_come_back_and_are_whole_neighbourhoods(grid: tuple[int, int], side: int, shape: tuple[int, int]) -> None:
    tiles, x = Tiles(grid, side), torch.randn(2, 3, *grid)
    assert tiles.shape == shape
    cut = tiles.cut(x)
    first = x[0, :, : shape[0], : shape[1]].flatten()
    np.testing.assert_array_equal(cut[0, :, 0, 0], first)
    np.testing.assert_array_equal(tiles.join(cut), x)


@pytest.mark.parametrize(("tokens", "shape"), [(17, (6, 4, 4)), (16, (3, 4, 4)), (12, (3, 12, 1))])
def test_tokens_are_laid_out_as_a_square_at_no_change_of_errors(tokens: int, shape: tuple[int, ...]) -> None:
    layout, x = Layout.choices((3, tokens, 1))[-1], torch.randn(5, 3, tokens, 1)
    assert layout.shape == shape
    laid = layout.enter(x)
    assert laid.shape[1:] == shape
    torch.testing.assert_close(laid.square().sum(), x.square().sum())
    torch.testing.assert_close(layout.leave(laid), x)


def test_tokens_of_pictures_are_seen_as_pictures(tmp_path: Path) -> None:
    """Smooth fields over 8x8 patches, with a class token of another kind, cost less as a square than as a line."""
    fields = rectified(800, channels=8).features.reshape(800, 8, 64).transpose(0, 2, 1)
    first = np.random.default_rng(1).normal(size=(800, 1, 8)).astype(np.float32)
    store = encode(tmp_path / "x.krs", ArraySource(np.concatenate([first, fields], 1)), ratio=20, settings={"width": 0})
    line = encode(
        tmp_path / "y.krs", ArraySource(np.concatenate([fields, first, first], 1)), ratio=20, settings={"width": 0}
    )
    assert store.quality.nmse < 0.9 * line.quality.nmse


def test_means_of_positions_cost_next_to_nothing(tmp_path: Path) -> None:
    """As those that the places of tokens have."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(1000, 4, 4, 4)).astype(np.float32)
    places = 30 * rng.normal(size=(4, 4, 4)).astype(np.float32)
    plain, moved = (
        encode(tmp_path / f"{name}.krs", ArraySource(noise + mean), max_mse=0.1, settings={"width": 0, "tile": 1})
        for name, mean in (("a", 0 * places), ("b", places))
    )
    assert moved.bytes.file < 1.04 * plain.bytes.file


def test_a_tile_as_large_as_the_grid_is_principal_components() -> None:
    """Then the transform is orthonormal and nothing is left to the DCT."""
    x, basis = torch.randn(5, 2, 4, 4), torch.linalg.qr(torch.randn(32, 32)).Q
    y = Analysis(basis, 0, Tiles((4, 4), 4))(x).detach()
    np.testing.assert_allclose(y[:, :, 0, 0], x.flatten(1) @ basis.T, atol=1e-5)


def test_tiles_are_chosen_where_neighbours_say_more_than_channels(tmp_path: Path) -> None:
    """Samples spanned by a few whole pictures: one large tile says them in a few numbers."""
    rng = np.random.default_rng(0)
    pictures = rng.normal(size=(8, 4, 4, 4))
    source = ArraySource(np.einsum("nk,kchw->nchw", rng.normal(size=(2000, 8)), pictures).astype(np.float32))
    chosen = encode(tmp_path / "x.krs", source, ratio=30, settings={"width": 0})
    assert (chosen.config["tile"], chosen.config["channels"]) == (4, 8)
    single = encode(tmp_path / "y.krs", source, ratio=30, settings={"width": 0, "tile": 1})
    assert chosen.quality.mse < 0.1 * single.quality.mse


def test_nets_begin_as_nothing() -> None:
    basis, x = torch.eye(4), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        tiles = Tiles((8, 8), 1)
        np.testing.assert_array_equal(Analysis(basis, 16, tiles)(x), Analysis(basis, 0, tiles)(x))


def test_the_rate_of_integers_is_the_laplacians() -> None:
    """-log2 of the mass of [q - 1/2, q + 1/2] under exp(-|t| / b) / 2b, worked out with the distribution function."""
    model = RateModel((4,), 1.0, 1.0)
    spread = torch.tensor([0.3, 1.0, 2.5, 7.0])
    with torch.no_grad():
        model.spread.copy_(spread.log() / SPEED)
    model.mean.copy_(torch.tensor([0.0, 3.0, 0.0, -40.0]))
    values = model.mean + torch.tensor([[0.0, 1.0, -2.0, 5.0], [-1.0, 0.0, 3.0, 0.25]])

    def below(t: float, b: float) -> float:
        return 0.5 * np.exp(t / b) if t < 0 else 1 - 0.5 * np.exp(-t / b)

    bits = -sum(
        np.log2(below(q + 0.5, b) - below(q - 0.5, b))
        for row in (values - model.mean).tolist() for q, b in zip(row, spread.tolist(), strict=True)
    )  # fmt: skip
    assert float(model(values, learn=False).detach()) == pytest.approx(bits, rel=1e-5)


def test_spreads_and_coefficients_learn_apart() -> None:
    model = RateModel((3,), 1.0, 1.0)
    values = torch.tensor([[0.3, -1.0, 2.0]], requires_grad=True)
    model(values, learn=False).backward()
    assert model.spread.grad is None
    assert values.grad is not None
    assert (values.grad.sign() == values.sign()).all()  # larger coefficients cost more
    model(values.detach(), learn=True).backward()
    assert model.spread.grad is not None


@pytest.mark.parametrize(("bits", "grows"), [(200.0, True), (50.0, False)])
def test_the_step_follows_the_target(bits: float, grows: bool) -> None:
    model = RateModel((3,), 2.0, 100.0)
    for _ in range(20):
        model.follow(torch.tensor(bits))
    assert (float(model.step) > 2) == grows


@pytest.mark.parametrize("ratio", [50.0, pytest.param(150.0, marks=pytest.mark.slow)])
def test_nets_lower_the_error_of_what_is_not_linear(tmp_path: Path, ratio: float) -> None:
    source = rectified(1500)
    linear = encode(tmp_path / "l.krs", source, ratio=ratio, settings={"width": 0})
    trained = encode(tmp_path / "t.krs", source, ratio=ratio, settings={"width": 16, "iterations": 250})
    assert trained.bytes.file <= source.features.nbytes / ratio
    assert trained.quality.nmse < 0.85 * linear.quality.nmse


@pytest.mark.parametrize("asked", [{"ratio": 6.0}, {"ratio": 25.0}, {"max_bytes": 60_001}])
def test_byte_targets_are_met_within_one_percent(tmp_path: Path, asked: dict[str, Any]) -> None:
    source = rectified(1500)
    limit = asked.get("max_bytes") or source.features.nbytes / asked["ratio"]
    store = encode(tmp_path / "x.krs", source, settings={"width": 8, "iterations": 30}, **asked)
    assert 0.99 * limit <= store.path.stat().st_size <= limit


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_error_targets_are_met_within_ten_percent(tmp_path: Path, share: float) -> None:
    source = rectified(600)
    limit = share * float(source.features.var(dtype=np.float64))
    store = encode(tmp_path / "x.krs", source, max_mse=limit, settings={"width": 0})
    assert 0.9 * limit <= store.quality.mse <= limit


@pytest.mark.slow
def test_a_larger_archive_affords_a_wider_net() -> None:
    """None for a tiny one, and none so wide that decoding is slow."""
    widths = []
    for samples in (60, 300, 4000):
        source = rectified(samples)
        stats = scan(source)
        context = FitContext(
            stats=stats, budget=source.features.nbytes // 40, max_mse=None, device="cpu", seed=0, progress=SILENT,
            checkpoint=Checkpoint(None),
        )  # fmt: skip
        begin = plan(
            source,
            Normaliser.of(source.spec, stats),
            context,
            share=0.15,
            weight_bits=4,
            width=None,
            tile=None,
            channels=None,
        )
        widths.append(begin.width)
    assert widths[0] == 0
    assert widths == sorted(set(widths))
    assert widths[-1] <= 72


def test_a_net_that_is_worth_less_than_its_bytes_is_left_out(tmp_path: Path) -> None:
    """Gaussian vectors: nothing beats the linear transform, however long a net is trained."""
    rng = np.random.default_rng(0)
    source = ArraySource((rng.normal(size=(1500, 24)) @ rng.normal(size=(24, 24))).astype(np.float32))
    chosen = encode(tmp_path / "x.krs", source, ratio=6, settings={"iterations": 40})
    assert chosen.config["width"] == 0
    forced = encode(tmp_path / "y.krs", source, ratio=6, settings={"iterations": 40, "width": 8})
    assert chosen.quality.mse < forced.quality.mse


def test_channels_of_the_klt_follow_the_budget(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(800, 48)) * 0.9 ** np.arange(48)) @ rng.normal(size=(48, 48))
    source = ArraySource(vectors.astype(np.float32))
    kept = [
        encode(tmp_path / f"{ratio}.krs", source, ratio=ratio, settings={"width": 0}).config["channels"]
        for ratio in (4, 15)
    ]
    assert 48 >= kept[0] > kept[1] >= 1


def test_too_few_channels_for_an_error_are_named(tmp_path: Path) -> None:
    with pytest.raises(TargetUnreachableError, match=r"channels=1 leave out more than an mse of 1e-06"):
        encode(tmp_path / "x.krs", rectified(100), max_mse=1e-6, settings={"width": 0, "channels": 1})
    assert not list(tmp_path.iterdir())


def test_a_small_archive_is_passed_over_a_limited_number_of_times(tmp_path: Path) -> None:
    store = encode(tmp_path / "x.krs", rectified(500), ratio=15, settings={"width": 2, "passes": 22})
    assert store.config["iterations"] == 22 * 500 // 50


def test_float32_weights_are_kept_as_they_are(tmp_path: Path) -> None:
    store = encode(tmp_path / "x.krs", example_source(400), ratio=1.5, settings={"weights": "float32", "width": 0})
    channels = store.config["channels"]
    assert store.header.members["payload/network/weights"].bytes == 4 * (6 * channels + 6)


def noisy(features: Any) -> Any:
    """Add to features what cannot be coded in few bytes."""
    return features + np.random.default_rng(1).random(features.shape, np.float32)


@pytest.mark.parametrize("width", [0, pytest.param(16, marks=pytest.mark.slow)])
def test_restored_channels_vary_as_the_sources_do(tmp_path: Path, width: int) -> None:
    source, settings = rectified(400), {"width": width, "iterations": 300}
    source = ArraySource(noisy(source.features), source.labels)
    plain = encode(tmp_path / "a.krs", source, ratio=60, settings=settings)
    restored = encode(tmp_path / "b.krs", source, ratio=60, settings={**settings, "restore": True})
    wanted, kept = source.features.std((0, 2, 3)), [s.read(slice(None)).std((0, 2, 3)) for s in (plain, restored)]
    assert (kept[0] / wanted).mean() < 0.93
    np.testing.assert_allclose(kept[1], wanted, rtol=0.08)
    np.testing.assert_allclose(
        restored.read(slice(None)).mean((0, 2, 3)), source.features.mean((0, 2, 3)), atol=0.02 * source.features.std()
    )
    assert plain.quality.nmse < restored.quality.nmse < 1.5 * plain.quality.nmse
    assert restored.header.members["payload/network/restore"].bytes == 4 * 24
    assert restored.config["restore"]
    assert not plain.config["restore"]
    assert source.labels is not None
    other = ArraySource(source.features[100:], source.labels[100:])
    shared = encode(tmp_path / "c.krs", other, ratio=20, settings={"iterations": 20}, decoder=restored)
    assert shared.header.members["payload/network/restore"] == restored.header.members["payload/network/restore"]


def test_dead_channels_stay_dead_when_others_are_restored(tmp_path: Path) -> None:
    source = example_source(200, (6, 4, 4))
    store = encode(tmp_path / "a.krs", source, ratio=8, settings={"width": 0, "restore": True})
    np.testing.assert_array_equal(store.read(slice(None))[:, 0], source.features[:, 0])


@pytest.mark.parametrize("data", [b"", bytes(23), bytes(20), b"\0\x7c" + bytes(22)])
def test_malformed_scales_are_a_corrupt_store(data: bytes) -> None:
    with pytest.raises((CorruptStoreError, ValueError)):
        Restoration.from_bytes(data, 6)


def test_presets_and_options_are_whole() -> None:
    for preset in Transform.presets:
        build_config("transform", Transform.Config, Transform.presets, preset)


def test_large_samples_have_a_klt_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which so few are looked at that none are left over for the probe alone."""
    rng = np.random.default_rng(0)
    values = np.einsum("nk,kchw->nchw", rng.normal(size=(900, 4)), rng.normal(size=(4, 16, 4, 4))).astype(np.float32)
    few, all_of_them = (
        encode(tmp_path / f"{limit}.krs", ArraySource(values), ratio=30, settings={"width": 0})
        for limit in (400, 4000)
        if monkeypatch.setattr("krstore_codecs._transform_plan.BYTES", 4 * 256 * limit) is None
    )
    assert few.quality.nmse < 3 * all_of_them.quality.nmse


def test_a_fit_after_decoding_in_inference_mode(tmp_path: Path) -> None:
    source = ArraySource(np.random.default_rng(0).normal(size=(300, 3, 11, 13)).astype(np.float32))
    with torch.inference_mode():
        encode(tmp_path / "a.krs", source, ratio=10, settings={"width": 0}).read([0])
    encode(tmp_path / "b.krs", source, ratio=10, settings={"width": 4, "iterations": 3})


def test_a_tile_larger_than_the_sample_is_the_sample(tmp_path: Path) -> None:
    store = encode(tmp_path / "x.krs", example_source(300, (24,)), ratio=4, settings={"width": 0, "tile": 32})
    assert store.config["tile"] == 1
    with pytest.raises(UsageError, match=r"tile=32: tiles of 8,192 numbers"):
        encode(tmp_path / "y.krs", example_source(20, (8, 32, 32)), ratio=4, settings={"width": 0, "tile": 32})


@pytest.mark.parametrize(
    "change", [{"channels": 10**9}, {"tile": 10**6}, {"square": True}, {"width": -1}, {"unit": 0.0}, {"width": 10**9}]
)
def test_absurd_sizes_are_a_corrupt_store(change: dict[str, Any]) -> None:
    spec = example_source(4, (6, 4, 4)).spec
    sizes = {"square": False, "tile": 1, "channels": 4, "width": 0, "unit": 1.0, "weights": "quantised"} | change
    payload = MemoryPayload()
    payload.write("network/sizes", msgspec.json.encode(sizes))
    payload.write("network/normaliser", np.zeros(12, "<f4").tobytes())
    payload.write("network/step", np.ones(1, "<f4").tobytes())
    payload.write("network/weights", b"")
    with pytest.raises(CorruptStoreError):
        Transform.open(payload, OpenContext(spec=spec, kept=4, labels=None, device="cpu"))


def test_coefficients_beyond_the_coders_range_are_reckoned_as_they_are_stored() -> None:
    beyond = torch.tensor([[3e12, 0.0], [-3e12, 0.0], [0.0, 0.0]])[:, :, None, None]
    limit = torch.tensor([[float(LARGEST), 0.0], [-float(LARGEST), 0.0], [0.0, 0.0]])[:, :, None, None]
    assert 0 < _coded(beyond, 1.0) == _coded(limit, 1.0)


@pytest.mark.parametrize("shape", [(6,), (8,), (4, 4, 4), (8, 4, 4), (3, 16, 16)])
def test_a_kept_encoder_is_as_good_as_it_was(shape: tuple[int, ...], tmp_path: Path) -> None:
    """However few its weights are: a budget of a byte each went to tables, and they were rounded to nothing."""
    options: dict[str, Any] = {"ratio": 3, "preset": "linear", "device": "cpu"}
    errors = []
    for encoder in (False, True):
        store = krstore.encode(
            example_source(600, shape), tmp_path / f"{encoder}.krs", "transform", settings={"encoder": encoder},
            **options,
        )  # fmt: skip
        assert store.quality is not None
        errors.append(store.quality.nmse)
    assert errors[1] < 3 * errors[0] + 0.003
