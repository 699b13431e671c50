"""What sampling costs: the estimate against the truth from far more tokens."""

import math

import pytest
import torch
from torch import Tensor

from memit_core import IllPosedError, estimate_excess

D_KEY = 60


def draw_keys(n_tokens: int, seed: int, *, text_length: int) -> Tensor:
    """Keys of unequal scales and sizes; those of one text have half of their variance in common."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shared = draw(n_tokens // text_length, D_KEY).repeat_interleave(text_length, dim=0)
    size = torch.rand(n_tokens, 1, generator=generator, dtype=torch.float64) ** -0.25
    scale = torch.logspace(0, -2, D_KEY, dtype=torch.float64)
    return torch.nn.functional.gelu(size * (shared + draw(n_tokens, D_KEY))) * scale


def moment_of(keys: Tensor) -> Tensor:
    return keys.mT @ keys / len(keys)


@pytest.mark.parametrize("text_length", [1, 20])
@pytest.mark.parametrize("n_tokens", [1_200, 4_800])
def test_estimate_is_near_what_ten_times_as_many_tokens_say(
    n_tokens: int, text_length: int
) -> None:
    halves = [draw_keys(n_tokens // 2, seed, text_length=text_length) for seed in (1, 2)]
    keys = draw_keys(400, 3, text_length=1)
    estimate = estimate_excess(*map(moment_of, halves), keys)

    sampled = moment_of(torch.cat(halves))
    truth = moment_of(draw_keys(10 * n_tokens, 4, text_length=text_length))
    directions = torch.linalg.solve(sampled, keys.mT)
    directions /= (keys.mT * directions).sum(dim=0)
    least = 1 / (keys.mT * torch.linalg.solve(truth, keys.mT)).sum(dim=0)
    excess = float(((directions * (truth @ directions)).sum(dim=0) / least).mean() - 1)
    assert 0.6 * excess < estimate < 1.5 * excess
    if text_length == 1:
        assert estimate < 3 * D_KEY / n_tokens
    else:
        assert estimate > 3 * D_KEY / n_tokens, "tokens of one text were counted as independent"


def test_dimensions_that_a_half_has_never_seen_are_left_out() -> None:
    first, second = (moment_of(draw_keys(600, seed, text_length=1)) for seed in (1, 2))
    keys = draw_keys(50, 3, text_length=1)
    expected = estimate_excess(first[1:, 1:], second[1:, 1:], keys[:, 1:])
    first[0], first[:, 0] = 0, 0
    assert estimate_excess(first, second, keys) == pytest.approx(expected)


def test_too_few_tokens_to_tell() -> None:
    few, many = (moment_of(draw_keys(n, 1, text_length=1)) for n in (D_KEY - 5, 600))
    assert estimate_excess(few, many, torch.ones(1, D_KEY)) == math.inf
    assert estimate_excess(many, few, torch.ones(1, D_KEY)) == math.inf
    assert estimate_excess(many, many, torch.ones(1, D_KEY)) == pytest.approx(0, abs=1e-9)


def test_bad_numbers_are_refused() -> None:
    moment = torch.eye(3)
    with pytest.raises(IllPosedError, match="must be finite"):
        estimate_excess(moment, moment, torch.full((1, 3), math.nan))
