"""What the row metrics of a trial amount to: means and scores."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from editbench.estimates import Estimate, Floats, estimate_mean
from editbench.results.manifest import MetricDescription
from editbench.results.statistics import bootstrap, geometric_mean, harmonic_mean, take_mean

_BOOTSTRAP_SEED = 0  # fixed, so that equal rows have equal intervals, whatever trial they are of


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number that a trial comes to: a metric's mean, or a score.

    Attributes:
        name: The row metric or the score.
        parts: The row metrics that it is made of.
        reduce: What is made of the means of its parts, as `take_logarithms` leaves them.
        bounds: Smallest and largest possible value; None where there is no such bound.
        higher_is_better: Which of two values is the better one.
    """

    name: str
    parts: tuple[str, ...]
    reduce: Callable[[Floats], Floats]
    bounds: tuple[float | None, float | None]
    higher_is_better: bool


def find_quantities(
    present: Collection[str], metrics: Sequence[MetricDescription]
) -> list[Quantity]:
    """What can be made of row metrics: their means and, after those of each metric, its scores."""
    quantities = []
    for metric in metrics:
        about = (metric.bounds, metric.higher_is_better)
        reduce = geometric_mean if metric.mean == "geometric" else take_mean
        quantities += [
            Quantity(name, (name,), reduce, *about) for name in metric.produces if name in present
        ]
        quantities += [
            Quantity(score, parts, harmonic_mean, *about)
            for score, parts in metric.aggregates.items()
            if all(part in present for part in parts)
        ]
    return quantities


def evaluate(table: pd.DataFrame, metrics: Sequence[MetricDescription]) -> dict[str, float]:
    """Every quantity of cases (rows) and row metrics (columns), without intervals."""
    names = [str(name) for name in table.columns]
    means = np.nanmean(take_logarithms(table, metrics).to_numpy(dtype=np.float64), axis=0)
    return {
        quantity.name: float(quantity.reduce(means[[names.index(part) for part in quantity.parts]]))
        for quantity in find_quantities(names, metrics)
    }


def take_logarithms(table: pd.DataFrame, metrics: Sequence[MetricDescription]) -> pd.DataFrame:
    """The table with logarithms in the columns whose mean is the geometric one."""
    geometric = {
        name for metric in metrics if metric.mean == "geometric" for name in metric.produces
    }
    return table.apply(lambda column: np.log(column) if column.name in geometric else column)


def estimate_quantities(
    table: pd.DataFrame, metrics: Sequence[MetricDescription]
) -> list[tuple[str, Estimate]]:
    """Every quantity of cases (rows) and row metrics (columns), with its 95 % interval."""
    estimates = []
    names = [str(name) for name in table.columns]
    numbers = take_logarithms(table, metrics).to_numpy(dtype=np.float64)
    for quantity in find_quantities(names, metrics):
        cases = numbers[:, [names.index(part) for part in quantity.parts]]
        cases = cases[np.isfinite(cases).any(axis=1)]
        estimate = (
            estimate_mean(cases[:, 0])
            if quantity.reduce is take_mean
            else bootstrap(cases, quantity.reduce, seed=_BOOTSTRAP_SEED)
        )
        estimates.append((quantity.name, estimate.clipped(quantity.bounds)))
    return estimates
