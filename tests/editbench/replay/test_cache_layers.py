"""Constant keys and values with new ones behind them, and gradients of nothing but what is new."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import DynamicLayer

from editbench.models.states_behind import put_behind
from editbench.replay.cache_layers import HeldStates, Join, JoinedStates

N_HELD, WIDTH, D = 7, 3, 4
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def by_products(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return torch.matmul(torch.matmul(queries, keys.transpose(-1, -2)).softmax(-1), values)


def by_operators(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return (queries @ keys.transpose(2, 3)).softmax(-1) @ values


def cast(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """As GPT-J does: scores in another type than states."""
    scores = torch.matmul(queries.to(torch.float64), keys.to(torch.float64).transpose(-1, -2))
    return torch.matmul(scores.softmax(-1).to(values.dtype), values)


def fused(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(queries, keys, values)


def repeated(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Other operations between joining and multiplying, as for grouped queries."""
    keys, values = (each[:, :1].expand(-1, 2, -1, -1) * 1.5 for each in (keys, values))
    return by_products(queries, keys, values)


def joined(new: Tensor, held: Tensor) -> Tensor:
    room = torch.cat([held, torch.full_like(new, torch.nan)], dim=-2)
    return JoinedStates.join(new, room)


@pytest.mark.parametrize("attend", [by_products, by_operators, cast, fused, repeated])
def test_gradients_are_those_of_a_plain_tensor(attend: Attention) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [WIDTH, WIDTH, WIDTH, N_HELD, N_HELD]
    queries, new_keys, new_values, keys, values = (
        torch.randn(2, 2, n, D, generator=generator) for n in shapes
    )
    weights = torch.randn(2, 2, WIDTH, D, generator=generator)
    found = []
    for join in (joined, lambda new, held: torch.cat([held, new], dim=-2)):
        leaves = [each.clone().requires_grad_() for each in (queries, new_keys, new_values)]
        output = attend(leaves[0], join(leaves[1], keys), join(leaves[2], values))
        assert type(output) is Tensor
        found.append((output, *torch.autograd.grad((output * weights).sum(), leaves)))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize(("attend", "is_spared"), [(by_products, True), (repeated, False)])
def test_no_gradient_is_as_long_as_the_whole(attend: Attention, *, is_spared: bool) -> None:
    queries, new = torch.randn(1, 2, WIDTH, D), torch.randn(1, 2, WIDTH, D, requires_grad=True)
    held = torch.randn(1, 2, N_HELD, D)
    output = attend(queries, joined(new, held), joined(new, held))
    longest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal longest
            result = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.bmm.default and D in result.shape:
                longest = max(longest, result.shape[-2] * result.shape[-1])
            return result

    with Watch():
        torch.autograd.grad(output.sum(), new)
    assert (longest <= max(WIDTH, N_HELD) * D and longest < (N_HELD + WIDTH) * D) == is_spared


def test_what_is_joined_later_spoils_earlier_gradients_with_an_error() -> None:
    queries, new = torch.randn(1, 1, WIDTH, D), torch.randn(1, 1, WIDTH, D, requires_grad=True)
    room = torch.randn(1, 1, N_HELD + WIDTH, D)
    keys = JoinedStates.join(new, room)
    output = by_products(queries, keys, keys)
    JoinedStates.join(new + 1, room)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(output.sum(), new)


def test_half_precision_keeps_no_copy_of_the_keys() -> None:
    queries = torch.randn(1, 1, WIDTH, D, dtype=torch.bfloat16)
    new = torch.randn(1, 1, WIDTH, D, dtype=torch.bfloat16, requires_grad=True)
    keys = joined(new, torch.randn(1, 1, N_HELD, D, dtype=torch.bfloat16))
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        queries.float() @ keys.float().transpose(-1, -2)
    as_long = [each for each in saved if N_HELD + WIDTH in each.shape]
    assert as_long
    assert all(each.dtype == torch.bfloat16 for each in as_long)


@pytest.mark.parametrize(
    ("n_new", "rows", "before"),
    [
        (2, None, [0, 1]),
        (6, None, [0, 1, 0, 1, 0, 1]),
        (1, None, [0]),
        (3, None, [0, 1, 0]),
        (3, [1, 1, 0], [1, 1, 0]),
    ],
)
def test_each_row_has_its_own_before_it(n_new: int, rows: list[int] | None, before: list[int]):
    held = HeldStates(torch.randn(2, 2, N_HELD, D), torch.randn(2, 2, N_HELD, D))
    layer = DynamicLayer()
    held.hand_out(layer, rows=None if rows is None else torch.tensor(rows))
    for _ in range(2):  # nothing is kept
        assert layer.get_seq_length() == N_HELD
        new = torch.randn(2, n_new, 2, WIDTH, D)
        for found, past, own in zip(layer.update(*new), (held.keys, held.values), new, strict=True):
            assert torch.equal(found, torch.cat([past[before], own], dim=-2))


@pytest.mark.parametrize("join", [put_behind, JoinedStates.join])
def test_what_is_held_may_change(join: Join) -> None:
    n_spare = 0 if join is put_behind else WIDTH
    held, layer = HeldStates(), DynamicLayer()
    held.hand_out(layer, join=join, n_spare=n_spare)
    new = torch.randn(2, 1, 2, WIDTH, D)
    assert all(map(torch.equal, layer.update(*new), new))  # nothing stands before
    for _ in range(2):
        past = torch.randn(2, 1, 2, N_HELD, D)
        held.keep(*(torch.cat([each, each[..., :n_spare, :]], dim=-2) for each in past))
        for found, before, own in zip(layer.update(*new), past, new, strict=True):
            assert torch.equal(found, torch.cat([before, own], dim=-2))
