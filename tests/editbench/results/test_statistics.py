import math

import numpy as np
import pytest
from scipy import stats

from editbench.estimates import Estimate, estimate_mean
from editbench.results.statistics import (
    bootstrap,
    estimate_over_draws,
    harmonic_mean,
)


def test_mean_worked_by_hand():
    # Sample standard deviation of 0, 100, 100, 100: 50; 1.96 · 50 / √4 = 49.
    estimate = estimate_mean(np.array([0.0, 100.0, 100.0, 100.0]))
    assert estimate == Estimate(75.0, 26.0, 124.0, 4)
    assert estimate.clipped((0, 100)) == Estimate(75.0, 26.0, 100.0, 4)
    assert estimate.clipped((None, None)) == estimate


def test_one_case_says_nothing_about_the_spread():
    for estimate in (
        estimate_mean(np.array([30.0])),
        bootstrap(np.array([[30.0, 30.0]]), harmonic_mean, seed=0),
    ):
        assert (estimate.value, estimate.n) == (pytest.approx(30), 1)
        assert math.isnan(estimate.low)
        assert math.isnan(estimate.high)
        assert math.isnan(estimate.clipped((0, 100)).low)


def test_harmonic_mean_is_of_the_means_not_of_the_cases():
    values = np.array([[100.0, 0.0], [0.0, 100.0]])  # every case's own harmonic mean is 0
    assert bootstrap(values, harmonic_mean, seed=0).value == pytest.approx(50)
    assert bootstrap(np.array([[100.0, 50.0]] * 3), harmonic_mean, seed=0).value == pytest.approx(
        stats.hmean([100, 50])
    )


def test_harmonic_mean_with_a_zero_is_zero():
    estimate = bootstrap(np.array([[0.0, 90.0], [0.0, 80.0]]), harmonic_mean, seed=0)
    assert (estimate.value, estimate.low, estimate.high) == (0, 0, 0)


def test_missing_values_count_neither_for_nor_against():
    values = np.array([[100.0, np.nan], [0.0, 40.0], [np.nan, 60.0], [100.0, np.nan]])
    estimate = bootstrap(values, harmonic_mean, seed=0)
    assert estimate.value == pytest.approx(stats.hmean([200 / 3, 50]))
    assert estimate.low < estimate.value < estimate.high
    assert estimate.n == 4


def test_the_bootstrap_resamples_cases_whole():
    """Two metrics that are one another's opposite: resampled apart, their spread would differ."""
    generator = np.random.default_rng(1)
    efficacy = generator.choice([0.0, 100.0], size=60, p=[0.3, 0.7])
    values = np.stack([efficacy, 100 - efficacy], axis=1)
    ours = bootstrap(values, harmonic_mean, seed=3)
    theirs = stats.bootstrap(
        (values[:, 0], values[:, 1]),
        lambda x, y, axis: 2 / (1 / x.mean(axis=axis) + 1 / y.mean(axis=axis)),
        paired=True,
        vectorized=True,
        n_resamples=2000,
        method="percentile",
        random_state=np.random.default_rng(4),
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=1.5)
    assert ours.high == pytest.approx(theirs.high, abs=1.5)


def test_the_bootstrap_is_a_function_of_its_seed(monkeypatch):
    values = np.random.default_rng(0).uniform(0, 100, size=(50, 3))
    first = bootstrap(values, harmonic_mean, seed=0)
    assert bootstrap(values, harmonic_mean, seed=0) == first
    assert bootstrap(values, harmonic_mean, seed=1) != first
    # However many resamples fit into memory at once, they are the same ones.
    monkeypatch.setattr("editbench.results.statistics._MAX_CHUNK", len(values) * 7)
    monkeypatch.setattr("editbench.results.statistics._MOST_KEPT", 0)
    assert bootstrap(values, harmonic_mean, seed=0) == first


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    generator = np.random.default_rng(5)
    truth = stats.hmean([80, 60, 70])
    covered = 0
    for _ in range(100):
        draws = generator.random((100, 3)) < np.array([0.8, 0.6, 0.7])
        estimate = bootstrap(100.0 * draws, harmonic_mean, seed=0)
        covered += estimate.low <= truth <= estimate.high
    assert 89 <= covered <= 99


@pytest.mark.parametrize("n", [2, 5, 10, 31, 60, 200])
def test_the_interval_over_draws_is_students(n):
    values = np.random.default_rng(n).normal(80, 3, n)
    found = estimate_over_draws(values)
    low, high = stats.t.interval(0.9, n - 1, values.mean(), stats.sem(values))
    assert (found.value, found.n) == (pytest.approx(values.mean()), n)
    assert (found.low, found.high) == (pytest.approx(low, abs=2e-3), pytest.approx(high, abs=2e-3))


def test_one_draw_says_nothing_about_the_spread():
    found = estimate_over_draws(np.array([70.0]))
    assert found.value == 70
    assert math.isnan(found.low)
    assert math.isnan(found.high)
