"""How far two editors are apart on the same cases."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from editbench.estimates import Floats
from editbench.results.statistics import draw_resamples

N_RESAMPLES = 10_000  # tells p-values apart down to 0.0002
_N_DIGITS = 9


@dataclass(frozen=True, slots=True)
class DifferenceEstimate:
    """How much larger one number is than another over the same cases.

    Attributes:
        ours: The one number.
        theirs: The other.
        value: Ours minus theirs.
        low: Lower end of its 95 % confidence interval; NaN where there is but one case.
        high: Upper end; NaN likewise.
        p_value: Twice the share of resamples in which the difference is zero or has the other sign,
            at most 1; NaN where there is but one case.
        n: How many cases both numbers are over.
    """

    ours: float
    theirs: float
    value: float
    low: float
    high: float
    p_value: float
    n: int


Reduction = tuple[Sequence[int], Callable[[Floats], Floats]]
"""Columns of a table of cases, and what is made of their means ``[..., n_columns]``."""


def estimate_differences(
    ours: Floats, theirs: Floats, quantities: Sequence[Reduction], *, seed: int
) -> list[DifferenceEstimate]:
    """Differences of quantities between two editors, by a paired bootstrap over cases.

    A resample draws cases with replacement, each with everything that both editors did to it, so
    that what makes a case hard for both cancels. The interval runs from the 2.5th to the 97.5th
    percentile of 10,000 resamples. The p-value counts the sample itself as one resample
    (Davison and Hinkley, 1997, section 4.4), so it is never 0.

    Args:
        ours: ``[n_cases, n_columns]``; NaN where a case has no value.
        theirs: The same of the other editor, row by row the same cases. A value that only one of
            the two has does not count.
        quantities: What to take the differences of; each of its columns has at least one value.
        seed: Source of the resampling.

    Returns:
        One difference, ours minus theirs, for each quantity.
    """
    present = np.isfinite(ours) & np.isfinite(theirs)
    tables = [np.where(present, ours, 0.0), np.where(present, theirs, 0.0), present.astype(float)]
    sums = [[table.sum(axis=0, keepdims=True)] for table in tables]
    for n_drawn in draw_resamples(len(ours), N_RESAMPLES, seed):
        for table, found in zip(tables, sums, strict=True):
            found.append(n_drawn @ table)
    our_sums, their_sums, n_present = (np.concatenate(found) for found in sums)
    estimates = []
    for columns, quantity in quantities:
        index = list(columns)
        usable = (n_present[:, index] > 0).all(axis=1)
        n_values = n_present[usable][:, index]
        ours_then = quantity(our_sums[usable][:, index] / n_values)
        theirs_then = quantity(their_sums[usable][:, index] / n_values)
        # Rounded, so that what is equal but for the order of a sum has no sign.
        value, *resampled = np.round(ours_then - theirs_then, _N_DIGITS)
        low, high, p_value = _describe_resamples(np.array(resampled))
        n = int(present[:, index].any(axis=1).sum())
        if n < 2:
            low = high = p_value = math.nan
        estimates.append(
            DifferenceEstimate(
                float(ours_then[0]), float(theirs_then[0]), float(value), low, high, p_value, n
            )
        )
    return estimates


def _describe_resamples(differences: Floats) -> tuple[float, float, float]:
    """Interval and two-sided p-value of resampled differences."""
    low, high = np.percentile(differences, [2.5, 97.5])
    rarer = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(low), float(high), min(1.0, 2 * (1 + float(rarer)) / (1 + len(differences)))
