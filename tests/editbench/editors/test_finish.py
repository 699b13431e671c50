"""What finishes make of an update, and what they leave alone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from editbench.editors.closed_form.finish import (
    find_largest_singular_value,
    find_main_directions,
    keep_largest_changes,
    restrain_singular_values,
    spare_main_directions,
    turn_away,
)
from editbench.editors.closed_form.hidden_goals import anchor_norms, find_norm_anchor
from memit_core import UpdateFactors

law = settings(derandomize=True, deadline=None, max_examples=20)
sizes = st.integers(2, 9)
seeds = st.integers(0, 2**31)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@law
@given(sizes, sizes, st.sampled_from([0.1, 0.4, 0.75, 1.0]), seeds)
def test_rect_keeps_the_largest_ratios(d_value: int, d_key: int, share: float, seed: int) -> None:
    update, weight = draw(d_value, d_key, seed=seed), draw(d_value, d_key, seed=seed + 1).float()
    kept = keep_largest_changes(update, weight, share)
    is_kept = kept != 0
    assert torch.equal(kept[is_kept], update[is_kept])
    n_dropped = int((1 - share) * update.numel())
    # The last one of those that count as dropped stays: that is the reference's order statistic.
    assert int((~is_kept).sum()) == max(0, n_dropped - 1)
    ratios = (update / weight.double()).abs()
    if bool(is_kept.any()) and bool((~is_kept).any()):
        assert ratios[is_kept].min() >= ratios[~is_kept].max() * (1 - 1e-6)


@law
@given(sizes, sizes, st.integers(1, 3), st.floats(0.1, 3.0), seeds)
def test_prune_restrains_what_is_beyond_the_bound(
    d_value: int, d_key: int, rank: int, bound: float, seed: int
) -> None:
    left, right = draw(d_value, rank, seed=seed), draw(d_key, rank, seed=seed + 1)
    factors = UpdateFactors(left, right)
    pruned = restrain_singular_values(factors.dense(), bound)
    assert isinstance(pruned, Tensor)
    before = torch.linalg.svdvals(factors.dense())
    expected = torch.where(before >= bound, before.log() - math.log(bound) + bound, before)
    torch.testing.assert_close(
        torch.linalg.svdvals(pruned), expected.sort(descending=True).values, rtol=1e-6, atol=1e-9
    )
    small = restrain_singular_values(factors, bound)
    assert isinstance(small, UpdateFactors)
    torch.testing.assert_close(small.dense(), pruned)
    # A bound that nothing reaches changes nothing.
    torch.testing.assert_close(
        restrain_singular_values(factors.dense(), 1e6), factors.dense(), rtol=1e-9, atol=1e-9
    )


@law
@given(sizes, sizes, st.floats(0, 0.95), seeds)
def test_main_directions_hold_more_than_their_share(
    d_value: int, d_key: int, share: float, seed: int
) -> None:
    weight = draw(d_value, d_key, seed=seed)
    left, right = find_main_directions(weight, share)
    values = torch.linalg.svdvals(weight)
    assert find_largest_singular_value(weight) == pytest.approx(float(values[0]))
    n_main, energy = left.shape[1], values.square()
    assert energy[:n_main].sum() > share * energy.sum()
    assert energy[: n_main - 1].sum() <= share * energy.sum() * (1 + 1e-9)
    torch.testing.assert_close(left.mT @ weight @ right, torch.diag(values[:n_main]))


@law
@given(sizes, sizes, st.floats(0, 0.9), st.floats(0, 1), seeds)
def test_protected_directions_see_less_of_an_update(
    d_value: int, d_key: int, share: float, protection: float, seed: int
) -> None:
    update, weight = draw(d_value, d_key, seed=seed), draw(d_value, d_key, seed=seed + 1)
    left, right = find_main_directions(weight, share)
    spared = spare_main_directions(update, left, right, protection)
    torch.testing.assert_close(
        left.mT @ spared @ right, (1 - protection) ** 2 * left.mT @ update @ right
    )
    apart = torch.eye(d_key).double() - right @ right.mT
    other = torch.eye(d_value).double() - left @ left.mT
    torch.testing.assert_close(other @ spared @ apart, other @ update @ apart)
    _, main = find_main_directions(torch.nn.functional.normalize(weight, dim=1), share)
    turned = turn_away(update, weight, share, protection)
    torch.testing.assert_close(turned @ main, (1 - protection) * update @ main)


def test_values_get_the_anchors_norm_but_for_outliers() -> None:
    plain = torch.ones(3, 4)
    values = torch.diag(torch.tensor([1.0, 3.9, 4.1]))[:, [0, 1, 2, 2]]
    anchored, is_near = anchor_norms(plain, values, 2.0)
    assert is_near.tolist() == [True, True, False]
    torch.testing.assert_close(anchored[:2].norm(dim=1), torch.full((2,), 2.0))
    assert torch.equal(anchored[2], plain[2])


def test_the_anchor_is_a_mean_without_the_largest_twentieth() -> None:
    values = torch.diag(torch.tensor([1.0] * 38 + [50.0, 100.0]))
    assert find_norm_anchor(values) == 1.0
    assert find_norm_anchor(values[-1:]) == 100.0
