"""Numbers with their uncertainty: means and harmonic means over cases, with 95 % intervals."""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

import numpy as np

from editbench.estimates import Estimate, Floats, estimate_mean

_NORMAL_95 = 1.644854
_STUDENT_95 = (
    6.3138, 2.9200, 2.3534, 2.1318, 2.0150, 1.9432, 1.8946, 1.8595, 1.8331, 1.8125,
    1.7959, 1.7823, 1.7709, 1.7613, 1.7531, 1.7459, 1.7396, 1.7341, 1.7291, 1.7247,
    1.7207, 1.7171, 1.7139, 1.7109, 1.7081, 1.7056, 1.7033, 1.7011, 1.6991, 1.6973,
)  # fmt: skip
"""95th percentile of Student's t for 1, 2, … degrees of freedom."""
_N_RESAMPLES = 2000
_MAX_CHUNK = 100_000  # draws at once: they stay in the processor's cache
_MOST_KEPT = 10_000_000  # draws: 80 MB


def estimate_over_draws(values: Floats) -> Estimate:
    """Mean over random draws of the cases, with Student's 90 % interval, as in Figures 7 and 10.

    Args:
        values: ``[n_draws]``: one number of each draw; at least one.
    """
    return estimate_mean(values, _student_quantile(max(1, len(values) - 1)))


def bootstrap(values: Floats, reduce: Callable[[Floats], Floats], *, seed: int) -> Estimate:
    """What `reduce` makes of metrics' means, with a percentile bootstrap interval.

    Cases are resampled whole, with replacement, so that what a case does to several metrics stays
    together. The interval runs from the 2.5th to the 97.5th percentile of 2,000 resamples.

    Args:
        values: ``[n_cases, n_metrics]``; NaN where a case has no value of a metric. Each metric has
            at least one value; for `harmonic_mean` none is negative, and for `geometric_mean` they
            are logarithms.
        reduce: `harmonic_mean` or `geometric_mean`.
        seed: Source of the resampling.
    """
    n = len(values)
    present = np.isfinite(values).astype(np.float64)
    filled = np.nan_to_num(values, nan=0.0)
    value = float(reduce(filled.sum(axis=0) / present.sum(axis=0)))
    if n < 2:
        return Estimate(value, math.nan, math.nan, n)
    resampled = []
    for n_drawn in draw_resamples(n, _N_RESAMPLES, seed):
        n_present = n_drawn @ present
        means = n_drawn @ filled / np.maximum(n_present, 1)
        resampled.append(reduce(means[(n_present > 0).all(axis=1)]))
    low, high = np.percentile(np.concatenate(resampled), [2.5, 97.5])
    return Estimate(value, float(low), float(high), n)


def take_mean(means: Floats) -> Floats:
    """The quantity that is the mean of one column."""
    return means[..., 0]


def geometric_mean(means: Floats) -> Floats:
    """The quantity that is the geometric mean of one column, which holds logarithms."""
    return np.exp(means[..., 0])


def draw_resamples(n: int, n_resamples: int, seed: int) -> Iterable[Floats]:
    """How often each of n cases is in each resample, in chunks ``[n_in_chunk, n]``.

    The trials of a report have mostly the same number of cases, so the last draws are kept.
    """
    if n * n_resamples <= _MOST_KEPT:
        return _keep_resamples(n, n_resamples, seed)
    return _draw_resamples(n, n_resamples, seed)


@lru_cache(maxsize=2)
def _keep_resamples(n: int, n_resamples: int, seed: int) -> tuple[Floats, ...]:
    return tuple(_draw_resamples(n, n_resamples, seed))


def _draw_resamples(n: int, n_resamples: int, seed: int) -> Iterator[Floats]:
    generator = np.random.default_rng(seed)
    chunk = max(1, _MAX_CHUNK // n)
    for start in range(0, n_resamples, chunk):
        n_drawn = min(chunk, n_resamples - start)
        drawn = generator.integers(n, size=(n_drawn, n))
        places = drawn + n * np.arange(n_drawn)[:, None]
        counts = np.bincount(places.ravel(), minlength=n_drawn * n)
        yield counts.reshape(n_drawn, n).astype(np.float64)


def _student_quantile(degrees: int) -> float:
    """95th percentile of Student's t; beyond the table by the Cornish-Fisher expansion."""
    if degrees <= len(_STUDENT_95):
        return _STUDENT_95[degrees - 1]
    return _NORMAL_95 * (1 + (_NORMAL_95**2 + 1) / (4 * degrees))


def harmonic_mean(means: Floats) -> Floats:
    """Harmonic mean along the last axis; zero where any of the means is."""
    with np.errstate(divide="ignore"):
        return means.shape[-1] / (1.0 / means).sum(axis=-1)
