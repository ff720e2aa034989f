"""Weights as bytes: exactly the quantised values come back, and the quantiser meets its size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from krstore.errors import CorruptStoreError
from krstore_codecs._weights import (
    FakeQuantise,
    WeightQuantiser,
    matrices,
    pack_weights,
    plain_state,
    unpack_weights,
)

State = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


def shapes_of(state: State) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in state.items()}


def random_state(seed: int = 0) -> State:
    rng = np.random.default_rng(seed)
    shapes = {"fc.weight": (40, 30), "fc.bias": (40,), "conv.weight": (8, 4, 3, 3), "conv.bias": (8,), "a": (1, 1)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(60, 200), nn.LeakyReLU(), nn.Linear(200, 80), nn.GroupNorm(2, 80))


@given(
    values=hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4), elements=st.floats(-50, 50, width=32)),
    step=st.floats(0.0078125, 4, width=32),
)
@settings(max_examples=100, deadline=None)
def test_matrices_come_back_as_multiples_of_their_step(values: Any, step: float) -> None:
    state = {"w": values}
    found = unpack_weights(pack_weights(state, {"w": step}), shapes_of(state), ["w"])
    assert found["w"].dtype == np.float32
    np.testing.assert_array_equal(found["w"], np.rint(values / np.float32(step)) * np.float32(step))


def test_vectors_come_back_as_float16() -> None:
    state = random_state()
    steps = {"fc.weight": 0.1, "conv.weight": 0.03, "a": 0.5}
    found = unpack_weights(pack_weights(state, steps), shapes_of(state), [*steps])
    assert found.keys() == state.keys()
    for name in ("fc.bias", "conv.bias"):
        np.testing.assert_array_equal(found[name], state[name].astype(np.float16).astype(np.float32))
    for name, step in steps.items():
        assert np.abs(found[name] - state[name]).max() <= 0.5001 * step


def test_float_mode_is_exact_and_has_no_overhead() -> None:
    state = random_state()
    data = pack_weights(state, None)
    assert len(data) == 4 * sum(value.size for value in state.values())
    found = unpack_weights(data, shapes_of(state), None)
    assert found.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(found[name], value)


def test_what_training_sees_is_what_is_decoded() -> None:
    """The forward pass through the quantiser uses the very weights that the packed bytes give."""
    net = network()
    quantiser = WeightQuantiser(net)
    quantiser.set_bytes(6000)
    seen = net.train()(x := torch.randn(5, 60, generator=torch.Generator().manual_seed(1)))
    state = {name: value.detach().numpy() for name, value in plain_state(net).items()}
    shapes = shapes_of(state)
    decoded = unpack_weights(pack_weights(state, quantiser.steps()), shapes, matrices(shapes))
    plain = network()
    plain.load_state_dict({name: torch.from_numpy(value) for name, value in decoded.items()})
    torch.testing.assert_close(plain(x), seen, rtol=1e-3, atol=1e-3)  # biases are rounded to float16 only in the file


def test_plain_names_are_those_of_the_network_without_its_quantiser() -> None:
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    WeightQuantiser(net)
    after = plain_state(net)
    assert after.keys() == before.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0)


def test_gradients_pass_straight_through() -> None:
    fake = FakeQuantise()
    fake.step.fill_(0.5)
    weight = torch.tensor([0.1, 0.3, -0.9, 2.0], requires_grad=True)
    torch.testing.assert_close(fake(weight), weight)
    fake.enabled = True
    torch.testing.assert_close(fake(weight), torch.tensor([0.0, 0.5, -1.0, 2.0]))
    (fake(weight) * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    torch.testing.assert_close(weight.grad, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    torch.testing.assert_close(fake.eval()(weight), weight)


@pytest.mark.parametrize("target", [4000, 8000, 16_000, 24_000])
def test_quantiser_meets_its_size(target: int) -> None:
    net = network()
    quantiser = WeightQuantiser(net)
    assert not quantiser.enabled
    quantiser.set_bytes(target)
    assert quantiser.enabled
    state = {name: value.numpy() for name, value in plain_state(net).items()}
    assert len(pack_weights(state, quantiser.steps())) == pytest.approx(target, rel=0.01)


def test_a_coarser_knob_is_smaller() -> None:
    net = network()
    quantiser = WeightQuantiser(net)
    quantiser.set_bytes(8000)
    state = {name: value.numpy() for name, value in plain_state(net).items()}
    sizes = [len(pack_weights(state, quantiser.steps(scale))) for scale in (0.25, 0.5, 1.0, 2.0, 4.0)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 5


def test_fine_tensors_have_a_quarter_of_the_step() -> None:
    net = nn.ModuleDict({"latent": nn.Linear(50, 50), "rest": nn.Linear(50, 50)})
    for linear in net.values():
        nn.init.constant_(linear.weight, 0.5)
    quantiser = WeightQuantiser(net, fine="latent.")
    quantiser.set_bytes(3000)
    steps = quantiser.steps()
    assert steps["latent.weight"] == pytest.approx(steps["rest.weight"] / 4)


def test_an_all_zero_matrix() -> None:
    net = nn.Linear(30, 30)
    nn.init.zeros_(net.weight)
    quantiser = WeightQuantiser(net)
    quantiser.set_bytes(500)
    state = {name: value.numpy() for name, value in plain_state(net).items()}
    found = unpack_weights(pack_weights(state, quantiser.steps()), shapes_of(state), ["weight"])
    assert not found["weight"].any()


STATE = random_state(1)
STEPS = {"fc.weight": 0.1, "conv.weight": 0.03, "a": 0.5}


@given(data=st.data(), quantised=st.booleans())
@settings(max_examples=150, deadline=None)
def test_damage_is_an_error_or_arrays_of_these_shapes(data: st.DataObject, quantised: bool) -> None:
    """Whatever the bytes are: arrays of the right shapes, or a `CorruptStoreError`."""
    good = bytearray(pack_weights(STATE, STEPS if quantised else None))
    if data.draw(st.booleans()):
        good[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        good = good[: data.draw(st.integers(0, len(good) - 1))]
    try:
        found = unpack_weights(bytes(good), shapes_of(STATE), [*STEPS] if quantised else None)
    except CorruptStoreError:
        return
    assert shapes_of(found) == shapes_of(STATE)


def test_weights_of_another_network() -> None:
    shapes = shapes_of(STATE)
    with pytest.raises(CorruptStoreError, match="expected 1585 values"):
        unpack_weights(pack_weights(STATE, None), {**shapes, "fc.weight": (41, 30)} | {"a": (1, 19)}, None)
    with pytest.raises(CorruptStoreError, match="3 weight tables for 2 weight tensors"):
        unpack_weights(pack_weights(STATE, STEPS), shapes, ["fc.weight", "a"])
