"""Numbers with their uncertainty: means and harmonic means over cases, with 95 % intervals."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_NORMAL_QUANTILE = 1.96
_N_RESAMPLES = 2000
_MAX_CHUNK = 100_000  # draws at once: they stay in the cache


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number over cases and its 95 % confidence interval.

    Attributes:
        value: The number.
        low: Lower end of the interval; NaN where one case alone says nothing about the spread.
        high: Upper end of the interval; NaN likewise.
        n: How many cases it is over.
    """

    value: float
    low: float
    high: float
    n: int

    def clipped(self, bounds: tuple[float | None, float | None]) -> "Estimate":
        """The same with the interval cut to what is possible; None is no bound."""
        low = -math.inf if bounds[0] is None else bounds[0]
        high = math.inf if bounds[1] is None else bounds[1]
        return Estimate(
            self.value,
            float(np.clip(self.low, low, high)),
            float(np.clip(self.high, low, high)),
            self.n,
        )


def estimate_mean(values: Floats) -> Estimate:
    """Mean over cases with the paper's interval, ± 1.96 · std / √n.

    The standard deviation is the sample's (n − 1 in its denominator).

    Args:
        values: ``[n_cases]``; at least one.
    """
    n = len(values)
    mean = float(np.mean(values))
    if n < 2:
        return Estimate(mean, math.nan, math.nan, n)
    half_width = _NORMAL_QUANTILE * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Estimate(mean, mean - half_width, mean + half_width, n)


def estimate_harmonic_mean(values: Floats, *, seed: int) -> Estimate:
    """Harmonic mean of several metrics' means, with a percentile bootstrap interval.

    Cases are resampled whole, with replacement, so that what a case does to several metrics stays
    together. The interval runs from the 2.5th to the 97.5th percentile of 2,000 resamples.

    Args:
        values: ``[n_cases, n_metrics]``; NaN where a case has no value of a metric. Each
            metric has at least one value, and none is negative.
        seed: Source of the resampling.
    """
    n = len(values)
    present = np.isfinite(values).astype(np.float64)
    filled = np.nan_to_num(values, nan=0.0)
    value = float(_harmonic_mean(filled.sum(axis=0) / present.sum(axis=0)))
    if n < 2:
        return Estimate(value, math.nan, math.nan, n)
    generator = np.random.default_rng(seed)
    chunk = max(1, _MAX_CHUNK // n)
    resampled = []
    for start in range(0, _N_RESAMPLES, chunk):
        n_drawn = _count_draws(generator, n, min(chunk, _N_RESAMPLES - start))
        n_present = n_drawn @ present
        means = n_drawn @ filled / np.maximum(n_present, 1)
        resampled.append(_harmonic_mean(means[(n_present > 0).all(axis=1)]))
    low, high = np.percentile(np.concatenate(resampled), [2.5, 97.5])
    return Estimate(value, float(low), float(high), n)


def _count_draws(generator: np.random.Generator, n: int, n_resamples: int) -> Floats:
    """How often each of n cases is in each resample: ``[n_resamples, n]``."""
    drawn = generator.integers(n, size=(n_resamples, n))
    places = drawn + n * np.arange(n_resamples)[:, None]
    counts = np.bincount(places.ravel(), minlength=n_resamples * n)
    return counts.reshape(n_resamples, n).astype(np.float64)


def _harmonic_mean(means: Floats) -> Floats:
    """Harmonic mean along the last axis; zero where any of the means is."""
    with np.errstate(divide="ignore"):
        return means.shape[-1] / (1.0 / means).sum(axis=-1)
