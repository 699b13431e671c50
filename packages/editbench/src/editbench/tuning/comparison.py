"""What was found against the default, on facts that the search has not seen."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from editbench.editors.base import EditorConfig
from editbench.progress import Progress
from editbench.results.labels import label_metrics
from editbench.results.paired_bootstrap import DifferenceEstimate, estimate_differences
from editbench.results.quantities import find_quantities
from editbench.runner.provenance import describe_rows
from editbench.tuning.bench import Bench

_BOOTSTRAP_SEED = 0


@dataclass(frozen=True, slots=True)
class ComparedQuantity:
    """A metric or a score, of the unedited model, the default and what was found.

    Attributes:
        symbol: The paper's symbol, or the metric's name.
        unedited: Of the unedited model.
        difference: What was found minus the default, over the same cases.
    """

    symbol: str
    unedited: float
    difference: DifferenceEstimate


def compare_held_out(
    bench: Bench, found: EditorConfig, on_progress: Progress
) -> list[ComparedQuantity]:
    """Write the held-out facts with the default and with what was found, and compare.

    Args:
        bench: Measures hyperparameters.
        found: What was found.
        on_progress: Told about the work.

    Returns:
        The scores that were looked for and what they are made of, in the paper's order.

    Raises:
        EditError: The editor fails on these facts.
    """
    problem = bench.problem
    held_out, size = problem.facts.held_out, problem.facts.size
    unedited, default, ours = (
        bench.measure(config, held_out, size, on_progress)
        for config in (None, problem.start, found)
    )
    columns = [str(name) for name in ours.columns]
    metrics = [each for metric in problem.objective.metrics for each in describe_rows(metric)]
    quantities = {each.name: each for each in find_quantities(columns, metrics)}
    reductions = [
        ([columns.index(part) for part in each.parts], each.reduce) for each in quantities.values()
    ]

    def estimate(one: pd.DataFrame, other: pd.DataFrame) -> list[DifferenceEstimate]:
        first, second = (
            table.loc[ours.index, columns].to_numpy(dtype=np.float64) for table in (one, other)
        )
        return estimate_differences(first, second, reductions, seed=_BOOTSTRAP_SEED)

    against_default = dict(zip(quantities, estimate(ours, default), strict=True))
    against_unedited = dict(zip(quantities, estimate(ours, unedited), strict=True))
    return [
        ComparedQuantity(
            label.symbol, against_unedited[label.metric].theirs, against_default[label.metric]
        )
        for label in label_metrics(quantities, metrics)
    ]
