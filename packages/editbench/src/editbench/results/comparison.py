"""Editors against one another on the same cases."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from operator import attrgetter
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from editbench.errors import RunError, UnknownNameError
from editbench.files.lines import lines_to_csv, lines_to_json
from editbench.results.collection import Collection, collect
from editbench.results.disclosure import disclose
from editbench.results.manifest import MetricDescription, TrialDescription
from editbench.results.paired_bootstrap import estimate_differences
from editbench.results.quantities import find_quantities, take_logarithms
from editbench.results.variants import find_variants

_BOOTSTRAP_SEED = 0  # fixed, so that equal rows have equal intervals
_CASES = (
    "model_fingerprint", "dataset_fingerprint", "n_edits", "n_batches", "batch_size", "relations",
    "seed", "sample", "facts", "on_conflict",
)  # fmt: skip
"""What two trials must have in common to be about the same cases."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How an editor differs from the baseline in one metric, over the cases of both.

    Attributes:
        editor: Name of the editor.
        baseline: Name of the editor that it is compared to.
        model: What the run calls the model.
        dataset: Name of the dataset.
        n_edits: How many requests were written at once.
        seed: The seed of both trials.
        metric: A row metric, or a score.
        value: The editor's value over the cases that both have.
        baseline_value: The baseline's value over them.
        difference: The editor's value minus the baseline's.
        ci_low: Lower end of the difference's 95 % confidence interval, by a paired bootstrap over
            cases; None if one case is all there is.
        ci_high: Upper end; None likewise.
        p_value: Twice the share of resamples in which there is no difference or one of the other
            sign, at most 1; None likewise.
        better: The name of the editor whose value is the better one, if the interval leaves zero
            out; None if it does not, so that cases like these do not tell the two apart.
        n: How many cases there are.
        batch_size: How many requests were written at a time; None if all were at once.
        checkpoint: How many had been written when this was measured.
        relations: The relations whose facts were written, joined by ``+``; empty for all.
        variant: What sets the editor's trial apart from its editor's other ones.
        baseline_variant: What sets the baseline's trial apart.
        trial: Content hash of the editor's trial.
        baseline_trial: Content hash of the baseline's trial.
    """

    editor: str
    baseline: str
    model: str
    dataset: str
    n_edits: int
    seed: int
    metric: str
    value: float
    baseline_value: float
    difference: float
    ci_low: float | None
    ci_high: float | None
    p_value: float | None
    better: str | None
    n: int
    batch_size: int | None
    checkpoint: int
    relations: str
    variant: str
    baseline_variant: str
    trial: str
    baseline_trial: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Every other editor against a baseline.

    Attributes:
        baseline: Name of the editor that the others are compared to.
        differences: In the order of runs, trials, metrics.
        metrics: What is known about the metrics, each once.
        disclosure: How the numbers came about, in one paragraph.
    """

    baseline: str
    differences: tuple[Difference, ...]
    metrics: tuple[MetricDescription, ...]
    disclosure: str = ""


def compare(folders: Sequence[Path], baseline: str) -> Comparison:
    """Compare every editor to a baseline, wherever both have worked on the same cases.

    The same cases are those of trials that agree in model, dataset, relations, number of edits and
    of batches, batch size, seed, sample and conflict policy. If the baseline has several
    configurations there, each is compared to. Streams are compared at the last checkpoint of both.

    Args:
        folders: Run folders, finished or not.
        baseline: Name of the editor to compare to.

    Raises:
        UnknownNameError: No trial is of such an editor.
        RunError: A folder holds no run, or is damaged; or the baseline has no numbers.
    """
    collection = collect(folders)
    trials = collection.trials
    editors = {description.editor for description in trials.values()}
    if baseline not in editors:
        raise UnknownNameError("editor in these runs", baseline, editors)
    bases = [t for t in collection.values if trials[t].editor == baseline]
    others = [t for t in collection.values if trials[t].editor != baseline]
    if not bases:
        raise RunError(
            f"compare editors: there are no numbers of the baseline, got {baseline!r}, whose "
            "trials have failed or not been run yet. Resume the run, or compare to another editor."
        )
    variants = find_variants(trials)
    return Comparison(
        baseline=baseline,
        differences=tuple(
            difference
            for trial, base in product(others, bases)
            if are_comparable(trials[trial], trials[base])
            for difference in compare_trials(collection, variants, trial, base)
        ),
        metrics=collection.distinct_metrics,
        disclosure=disclose(collection),
    )


def write_comparison_json(comparison: Comparison) -> str:
    """The differences as a JSON list of objects."""
    return lines_to_json(comparison.differences)


def write_comparison_csv(comparison: Comparison) -> str:
    """The differences as CSV with a header; what is undefined is empty."""
    return lines_to_csv(Difference, comparison.differences)


def are_comparable(one: TrialDescription, other: TrialDescription) -> bool:
    """Whether two trials are about the same cases."""
    about_cases = attrgetter(*_CASES)
    return bool(about_cases(one) == about_cases(other))


@dataclass(frozen=True, slots=True)
class CommonCases:
    """What two trials have in common, at the last checkpoint of both.

    Attributes:
        checkpoint: The checkpoint; 0 if they have none in common.
        ours: The one's numbers: cases as index, row metrics as columns.
        theirs: The other's, with the same index and columns.
    """

    checkpoint: int
    ours: pd.DataFrame
    theirs: pd.DataFrame

    @classmethod
    def of(
        cls,
        collection: Collection,
        trial: str,
        base: str,
        metrics: Sequence[MetricDescription],
    ) -> Self:
        """The cases that have a number of one of some metrics in both trials.

        Where the mean of a metric is the geometric one, the numbers are logarithms.
        """
        both = [collection.checkpoints[each] for each in (trial, base)]
        checkpoint = max(both[0].keys() & both[1].keys(), default=0)
        if not checkpoint:
            return cls(0, pd.DataFrame(), pd.DataFrame())
        ours, theirs = (found[checkpoint] for found in both)
        known = {name for metric in metrics for name in metric.produces}
        columns = [name for name in ours.columns if name in theirs.columns and name in known]
        cases = ours.index.intersection(theirs.index, sort=False)
        ours, theirs = ours.loc[cases, columns], theirs.loc[cases, columns]
        present = ours.notna() & theirs.notna()
        rows, shared = present.any(axis=1), ours.columns[present.any()]
        ours, theirs = (
            take_logarithms(table.loc[rows, shared], metrics) for table in (ours, theirs)
        )
        return cls(checkpoint, ours, theirs)


def compare_trials(
    collection: Collection,
    variants: Mapping[str, str],
    trial: str,
    base: str,
    metrics: Sequence[MetricDescription] | None = None,
) -> list[Difference]:
    """How a trial differs from another one, in all metrics or in some."""
    metrics = collection.metrics[trial] if metrics is None else metrics
    common = CommonCases.of(collection, trial, base, metrics)
    ours, theirs, checkpoint = common.ours, common.theirs, common.checkpoint
    names = [str(name) for name in ours.columns]
    quantities = find_quantities(names, metrics)
    if not quantities:
        return []
    estimates = estimate_differences(
        ours.to_numpy(dtype=np.float64),
        theirs.to_numpy(dtype=np.float64),
        [([names.index(part) for part in each.parts], each.reduce) for each in quantities],
        seed=_BOOTSTRAP_SEED,
    )
    about, about_base = collection.trials[trial], collection.trials[base]
    differences = []
    for quantity, estimate in zip(quantities, estimates, strict=True):
        higher = estimate.value > 0
        better = about.editor if higher == quantity.higher_is_better else about_base.editor
        differences.append(
            Difference(
                editor=about.editor,
                baseline=about_base.editor,
                model=about.model,
                dataset=about.dataset,
                n_edits=about.n_edits,
                seed=about.seed,
                metric=quantity.name,
                value=estimate.ours,
                baseline_value=estimate.theirs,
                difference=estimate.value,
                ci_low=_defined(estimate.low),
                ci_high=_defined(estimate.high),
                p_value=_defined(estimate.p_value),
                better=better if estimate.low > 0 or estimate.high < 0 else None,
                n=estimate.n,
                batch_size=about.batch_size,
                checkpoint=checkpoint,
                relations="+".join(about.relations),
                variant=variants[trial],
                baseline_variant=variants[base],
                trial=trial,
                baseline_trial=base,
            )
        )
    return differences


def _defined(number: float) -> float | None:
    return None if math.isnan(number) else number
