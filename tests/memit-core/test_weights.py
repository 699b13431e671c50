"""Putting updates on weights and taking them off bit by bit."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from memit_core import (
    IllPosedError,
    MemitCoreError,
    ShapeError,
    UpdateFactors,
    updated_weights,
)

law = settings(derandomize=True, deadline=None, max_examples=40)


class Toy(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator).to(dtype))

        self.embed = draw(6, 3)
        self.weight = draw(5, 3)
        self.bias = draw(5)
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=dtype))
        self.head = self.embed
        self.codes = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_bits(model: nn.Module, state: dict[str, Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == state[name].dtype
        as_bytes = [t.reshape(-1).view(torch.uint8) for t in (tensor.contiguous(), state[name])]
        assert torch.equal(*as_bytes), f"{name} has changed"


@law
@given(
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    st.integers(0, 2**31),
    st.sampled_from(["return", "raise", "write"]),
)
def test_bits_come_back_on_every_exit(dtype: torch.dtype, seed: int, way_out: str) -> None:
    model = Toy(dtype)
    before = copy_state(model)
    generator = torch.Generator().manual_seed(seed)
    updates: dict[str, Tensor | UpdateFactors] = {
        "embed": torch.randn(6, 3, generator=generator),
        "weight": UpdateFactors(
            torch.randn(5, 2, generator=generator), torch.randn(3, 2, generator=generator)
        ),
        "bias": torch.randn(5, generator=generator).double(),
        "scale": torch.tensor(2.0),
    }
    addresses = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    try:
        with updated_weights(model, updates):
            for name, update in updates.items():
                if isinstance(update, UpdateFactors):
                    update = update.left.double() @ update.right.mT.double()  # noqa: PLW2901
                wanted = (before[name].double() + update.double()).to(dtype)
                torch.testing.assert_close(model.get_parameter(name).data, wanted)
            assert model.head is model.embed
            if way_out == "raise":
                raise KeyboardInterrupt
            if way_out == "write":
                with torch.no_grad():
                    model.weight.fill_(math.nan)
    except KeyboardInterrupt:
        assert way_out == "raise"
    assert_same_bits(model, before)
    assert addresses == {name: p.data_ptr() for name, p in model.named_parameters()}


def test_sum_is_formed_in_float64() -> None:
    model = Toy()
    with torch.no_grad():
        model.bias.fill_(1.0)
    # Half a unit in the last place, and a little more that float32 would drop beforehand.
    update = torch.full((5,), 2.0**-24 + 2.0**-50, dtype=torch.float64)
    with updated_weights(model, {"bias": update}):
        assert torch.equal(model.bias.data, torch.full((5,), 1 + 2.0**-23))


def test_not_a_number_and_negative_zero_come_back() -> None:
    model = Toy()
    with torch.no_grad():
        model.bias.copy_(torch.tensor([-0.0, math.nan, math.inf, 1e-45, 1.0]))
    before = copy_state(model)
    with updated_weights(model, {"bias": torch.ones(5)}):
        pass
    assert_same_bits(model, before)


def test_tied_parameters_are_one_parameter() -> None:
    model = Toy()
    before = copy_state(model)
    view = model.embed.detach()[0]
    with updated_weights(model, {"head": torch.ones(6, 3)}):
        assert torch.equal(model.embed.data, before["embed"] + 1)
        assert torch.equal(view, before["embed"][0] + 1)
    assert_same_bits(model, before)
    message = "two names are one tied parameter, got 'embed' and 'head'"
    with (
        pytest.raises(MemitCoreError, match=message),
        updated_weights(model, {"embed": torch.ones(6, 3), "head": torch.ones(6, 3)}),
    ):
        pytest.fail("the body must not run")
    assert_same_bits(model, before)


def test_parameters_that_share_memory_unawares_come_back() -> None:
    model = Toy()
    model.slice = nn.Parameter(model.weight.data[:2])
    before = copy_state(model)
    with updated_weights(model, {"slice": torch.ones(2, 3), "weight": torch.ones(5, 3)}):
        pass
    assert_same_bits(model, before)


def test_bodies_may_nest() -> None:
    model = Toy()
    before = copy_state(model)
    with updated_weights(model, {"bias": torch.ones(5)}):
        between = copy_state(model)
        with updated_weights(model, {"bias": torch.ones(5), "weight": torch.ones(5, 3)}):
            assert torch.equal(model.bias.data, before["bias"] + 1 + 1)
        assert_same_bits(model, between)
    assert_same_bits(model, before)


def test_body_may_move_the_model() -> None:
    model = Toy()
    before = copy_state(model)
    address = model.weight.data_ptr()
    with updated_weights(model, {"weight": torch.ones(5, 3)}):
        model.weight.data = model.weight.data.half()
    assert model.weight.data_ptr() == address
    assert_same_bits(model, before)


@pytest.mark.parametrize("requires_grad", [True, False])
def test_gradients_in_the_body_are_those_of_the_updated_weights(requires_grad: bool) -> None:
    model = Toy()
    model.requires_grad_(False)
    model.weight.requires_grad_(requires_grad)
    hidden = torch.ones(1, 3, requires_grad=True)
    with updated_weights(model, {"weight": torch.ones(5, 3)}):
        (hidden @ model.weight.mT).sum().backward()
        torch.testing.assert_close(hidden.grad, model.weight.data.sum(0, keepdim=True))
    assert model.weight.requires_grad is requires_grad
    stale = (hidden @ model.weight.mT).sum()
    with (
        updated_weights(model, {"weight": torch.ones(5, 3)}),
        pytest.raises(RuntimeError, match="modified by an inplace operation"),
    ):
        stale.backward()


def test_inference_tensors_and_inference_mode() -> None:
    with torch.inference_mode():
        made_inside = Toy()
        update = torch.ones(5)
    made_outside = Toy()
    for model in (made_inside, made_outside):
        before = copy_state(model)
        with updated_weights(model, {"bias": update}):
            assert torch.equal(model.bias.data, before["bias"] + 1)
        assert_same_bits(model, before)
        with torch.inference_mode(), updated_weights(model, {"bias": update}):
            assert torch.equal(model.bias.data, before["bias"] + 1)
        assert_same_bits(model, before)
    with torch.inference_mode():
        manager = updated_weights(made_outside, {"bias": update})
        manager.__enter__()
    manager.__exit__(None, None, None)
    assert_same_bits(made_outside, before)


def test_failure_half_way_changes_nothing() -> None:
    model = Toy()
    # All rows are one and the same memory: torch refuses to write into that.
    model.flat = nn.Parameter(torch.zeros(1, 3).expand(5, 3), requires_grad=False)
    before = copy_state(model)
    with (
        pytest.raises(RuntimeError, match="single memory location"),
        updated_weights(model, {"bias": torch.ones(5), "flat": torch.ones(5, 3)}),
    ):
        pytest.fail("the body must not run")
    assert_same_bits(model, before)


@pytest.mark.parametrize(
    ("updates", "error", "message"),
    [
        (
            {"wieght": torch.ones(5, 3)},
            MemitCoreError,
            "no such parameter, got 'wieght'. Did you me",
        ),
        (
            {"weight": torch.ones(3, 5)},
            ShapeError,
            r"'weight' does not fit, got \[3, 5\]; expected",
        ),
        (
            {"weight": UpdateFactors(torch.ones(3, 1), torch.ones(5, 1))},
            ShapeError,
            r"'weight' does not fit, got \[3, 5\]; expected \[5, 3\]. Check that it is not transp",
        ),
        (
            {"weight": torch.ones(5, 3).long()},
            ShapeError,
            "got torch.int64; expected a floating-po",
        ),
        ({"weight": [1.0]}, ShapeError, "got list; expected a floating-point tensor or UpdateFact"),
        (
            {"codes": torch.ones(2, 2)},
            MemitCoreError,
            "'codes' must be floating-point, got torch.int8",
        ),
        (
            {"weight": torch.full((5, 3), math.nan)},
            IllPosedError,
            r"`updates\['weight'\]` must be finite, got nan at \[0, 0\]",
        ),
        (
            {"weight": UpdateFactors(torch.ones(5, 1), torch.full((3, 1), math.inf))},
            IllPosedError,
            r"`updates\['weight'\]` must be finite, got inf at \[0, 0\]",
        ),
    ],
)
def test_bad_updates_are_refused_before_anything_changes(
    updates: dict[str, Tensor | UpdateFactors], error: type[MemitCoreError], message: str
) -> None:
    model = Toy()
    before = copy_state(model)
    with (
        pytest.raises(error, match=f"^updated_weights: .*{message}"),
        updated_weights(model, {"bias": torch.ones(5), **updates}),
    ):
        pytest.fail("the body must not run")
    assert_same_bits(model, before)


def test_what_does_not_outlast_the_body_is_not_restored() -> None:
    layer = Toy()
    before = copy_state(layer)
    ones = {name: torch.ones_like(before[name]) for name in ("weight", "bias")}
    with updated_weights(layer, ones, temporary=["weight"]):
        assert torch.equal(layer.bias, before["bias"] + 1)
    assert torch.equal(layer.weight, before["weight"] + 1)
    assert torch.equal(layer.bias, before["bias"])


def test_parameters_without_values_are_refused() -> None:
    layer = nn.Linear(3, 2, device="meta")
    with (
        pytest.raises(MemitCoreError, match=r"'bias' has no values, got torch\.float32 on meta"),
        updated_weights(layer, {"bias": torch.ones(2)}),
    ):
        pytest.fail("the body must not run")
