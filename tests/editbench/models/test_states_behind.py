"""Attention to states of which all rows share the first is attention to states put together."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from editbench.models import states_behind
from editbench.models.states_behind import StatesBehind, put_behind

attention = functional.scaled_dot_product_attention


def make(n_rows: int, n_heads: int, n_shared: int, width: int) -> tuple[StatesBehind, Tensor]:
    """States of rows, and the same put together."""
    shared, own = torch.randn(1, n_heads, n_shared, 6), torch.randn(n_rows, n_heads, width, 6)
    return StatesBehind.of(own, shared), put_behind(own, shared)


def repeat(states: Tensor, n_times: int) -> Tensor:
    """As transformers does for heads that share keys."""
    n_rows, n_heads, length, d = states.shape
    states = states[:, :, None, :, :].expand(n_rows, n_heads, n_times, length, d)
    return states.reshape(n_rows, n_heads * n_times, length, d)


@pytest.fixture
def never_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(new: Tensor, held: Tensor) -> Tensor:
        raise AssertionError("put together")

    monkeypatch.setattr(states_behind, "put_behind", refuse)


@pytest.mark.usefixtures("never_put_together")
@pytest.mark.parametrize("n_scores", [1, 2**24])
@pytest.mark.parametrize("kind", ["bool", "float", "none"])
@pytest.mark.parametrize("n_times", [1, 3])
@given(
    n_rows=st.integers(1, 4), n_heads=st.integers(1, 2), n_shared=st.integers(1, 9),
    width=st.integers(1, 4), seed=st.integers(0, 99), n_before=st.integers(0, 3),
)  # fmt: skip
def test_equals_torch(kind, n_times, n_scores, n_rows, n_heads, n_shared, width, seed, n_before):
    width = 1 if kind == "none" else width
    torch.manual_seed(seed)
    (keys, all_keys), (values, all_values) = (
        make(n_rows, n_heads, n_shared, n_before + width) for _ in range(2)
    )
    query = torch.randn(n_rows, n_heads * n_times, width, 6)
    shown = torch.rand(n_rows, 1, width, n_shared + n_before + width) < 0.6
    shown[..., :n_shared] = True
    masks = {"bool": shown, "float": torch.zeros(shown.shape).masked_fill(~shown, -1e30)}
    mask, before = masks.get(kind), states_behind._SCORES
    states_behind._SCORES = n_scores
    try:
        found = attention(query, repeat(keys, n_times), repeat(values, n_times), attn_mask=mask)
    finally:
        states_behind._SCORES = before
    expected = attention(query, repeat(all_keys, n_times), repeat(all_values, n_times), mask)
    assert type(found) is Tensor
    torch.testing.assert_close(found, expected)
    by_group = attention(query, keys, values, attn_mask=mask, scale=0.3, enable_gqa=True)
    expected = attention(query, all_keys, all_values, mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(by_group, expected)


@pytest.mark.usefixtures("never_put_together")
def test_half_precision_is_no_further_off_than_torch():
    torch.manual_seed(0)
    shared, own = 8 * torch.randn(1, 2, 50, 6), 8 * torch.randn(3, 2, 4, 6)
    query = 8 * torch.randn(3, 2, 1, 6)
    exact = attention(
        *(each.bfloat16().double() for each in (query, *[put_behind(own, shared)] * 2))
    )
    shared, own, query = shared.bfloat16(), own.bfloat16(), query.bfloat16()
    states = StatesBehind.of(own, shared)
    found, usual = (
        attention(query, states, states),
        attention(query, *[put_behind(own, shared)] * 2),
    )
    assert found.dtype == torch.bfloat16
    assert (found - exact).norm() <= 1.5 * (usual - exact).norm()


def test_whatever_else_is_done_is_done_to_states_put_together():
    states, whole = make(3, 2, 5, 2)
    query = torch.randn(3, 2, 7, 6)
    for found, expected in [
        (query @ states.transpose(2, 3), query @ whole.transpose(2, 3)),
        (states[:, :1] * 2, whole[:, :1] * 2),
        (torch.cat([query, states], dim=2), torch.cat([query, whole], dim=2)),
        (
            attention(query, states, states, is_causal=True),
            attention(query, whole, whole, None, 0.0, True),
        ),
        (
            attention(query[:, :, :1], states[:, [1, 0]], states),
            attention(query[:, :, :1], whole[:, [1, 0]], whole),
        ),
    ]:
        assert type(found) is Tensor
        torch.testing.assert_close(found, expected)
    assert states.shape == whole.shape
    assert states.dtype == whole.dtype
