"""A mean with its uncertainty, as results and causal traces state it."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_NORMAL_975 = 1.96


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number over cases, or prompts, and its 95 % confidence interval.

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


def estimate_mean(values: Floats, quantile: float = _NORMAL_975) -> Estimate:
    """Mean over cases or prompts with the paper's interval, ± 1.96 · std / √n.

    The standard deviation is the sample's (n − 1 in its denominator).

    Args:
        values: ``[n_cases]``; at least one.
        quantile: What stands in place of 1.96.
    """
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Estimate(mean, math.nan, math.nan, n)
    half_width = quantile * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Estimate(mean, mean - half_width, mean + half_width, n)
