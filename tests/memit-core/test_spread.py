"""Spreading what is missing over layers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memit_core import (
    IllPosedError,
    MemitCoreError,
    Preservation,
    ShapeError,
    solve_edits,
    spread_residuals,
)

law = settings(derandomize=True, deadline=None, max_examples=40)


@law
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**31))
def test_each_layer_takes_an_even_share(n_edits: int, d_value: int, n_left: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    target, current = torch.randn(2, n_edits, d_value, generator=generator, dtype=torch.float64)
    residuals = spread_residuals(target, current, n_layers_left=n_left)
    torch.testing.assert_close(current + n_left * residuals, target)


@law
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**31))
def test_spreading_over_all_layers_of_a_linear_model_reaches_the_target(
    n_layers: int, n_edits: int, seed: int
) -> None:
    d_value, d_key = 8, 11
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inner, outer = draw(n_layers, d_key, d_value) / 3, draw(n_layers, d_value, d_key) / 3
    start, target = draw(n_edits, d_value), draw(n_edits, d_value)

    def run() -> tuple[list[torch.Tensor], torch.Tensor]:
        hidden, keys = start, []
        for layer in range(n_layers):
            keys.append(hidden @ inner[layer].mT)
            hidden = hidden + keys[-1] @ outer[layer].mT
        return keys, hidden

    for layer in range(n_layers):
        keys, hidden = run()
        residuals = spread_residuals(target, hidden, n_layers_left=n_layers - layer)
        preservation = Preservation(torch.eye(d_key))
        update = solve_edits(keys[layer], residuals, preservation, slack=0)
        outer[layer] += update if isinstance(update, torch.Tensor) else update.dense()
    gap = torch.linalg.norm(run()[1] - target)
    assert gap <= 1e-7 * torch.linalg.norm(target)


def test_difference_is_formed_in_float32_at_least_and_handed_back_in_float64() -> None:
    target, current = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.1, 0.1]])
    residuals = spread_residuals(target, current, n_layers_left=3)
    assert residuals.dtype == torch.float64
    assert torch.equal(residuals, (target - current).double() / 3)
    narrow = spread_residuals(target.bfloat16(), current.bfloat16(), n_layers_left=3)
    assert torch.equal(narrow, (target - current.bfloat16().float()).double() / 3)


@pytest.mark.parametrize("n_layers_left", [0, -2])
def test_at_least_one_layer_must_be_left(n_layers_left: int) -> None:
    hidden = torch.ones(2, 3)
    message = f"^spread_residuals: `n_layers_left` must be at least 1, got {n_layers_left}"
    with pytest.raises(MemitCoreError, match=message):
        spread_residuals(hidden, hidden, n_layers_left=n_layers_left)


def test_states_that_do_not_fit_are_refused() -> None:
    hidden = torch.ones(2, 3)
    with pytest.raises(ShapeError, match=r"`current_hidden` does not fit, got float32 \[3, 2\]"):
        spread_residuals(hidden, hidden.mT, n_layers_left=1)
    with pytest.raises(ShapeError, match=r"`n_layers_left` does not fit, got float 1\.5"):
        spread_residuals(hidden, hidden, n_layers_left=1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["target_hidden", "current_hidden"])
def test_states_must_be_finite(name: str) -> None:
    states = {"target_hidden": torch.ones(2, 3), "current_hidden": torch.zeros(2, 3)}
    states[name][1, 2] = math.nan
    with pytest.raises(IllPosedError, match=rf"`{name}` must be finite, got nan at \[1, 2\]"):
        spread_residuals(**states, n_layers_left=1)
