"""What a run came to: one line per trial and metric, for programs and for people."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from editbench.estimates import Estimate, estimate_mean
from editbench.files.lines import lines_to_csv, lines_to_json
from editbench.results.collection import Collection, collect
from editbench.results.disclosure import disclose
from editbench.results.manifest import MetricDescription, TrialDescription
from editbench.results.quantities import find_quantities, take_logarithms
from editbench.results.row import Status
from editbench.results.statistics import bootstrap, take_mean
from editbench.results.variants import find_variants

_BOOTSTRAP_SEED = 0  # fixed, so that equal rows have equal intervals, whatever trial they are of


@dataclass(frozen=True, slots=True)
class SummaryLine:
    """One metric of one trial, over its cases.

    Attributes:
        editor: Name of the editor.
        model: What the run calls the model.
        dataset: Name of the dataset.
        n_edits: How many requests were written at once.
        seed: The trial's seed.
        metric: A row metric, or a score made of several.
        value: Mean over cases; of a score, the harmonic mean of its metrics' means.
        ci_low: Lower end of the 95 % confidence interval; None if one case is all there is.
        ci_high: Upper end; None likewise.
        n: How many cases the value is over.
        relations: The relations whose facts were written, joined by ``+``; empty for all.
        variant: How the trial's configuration differs from that of its editor's other trials in
            the report, as ``field=value``; empty if it does not.
        status: ``ok``, or ``no_effect`` if the editor changed nothing.
        trial: Content hash of the trial.
    """

    editor: str
    model: str
    dataset: str
    n_edits: int
    seed: int
    metric: str
    value: float
    ci_low: float | None
    ci_high: float | None
    n: int
    relations: str
    variant: str
    status: Status
    trial: str


@dataclass(frozen=True, slots=True)
class FailedTrial:
    """A trial that has no numbers.

    Attributes:
        trial: Content hash of the trial.
        description: What it was.
        variant: As in `SummaryLine`.
        message: What went wrong.
    """

    trial: str
    description: TrialDescription
    variant: str
    message: str


@dataclass(frozen=True, slots=True)
class Summary:
    """The content of a report.

    Attributes:
        lines: Metrics of the trials that have numbers, in the order of runs, trials, metrics.
        metrics: What is known about the metrics, each once.
        failed: Trials that failed.
        n_missing: How many trials have not been run yet.
        trials: Every trial by its hash, whether it has numbers or not.
        experiments: Name of an experiment to the hashes of its trials; ``""`` for runs that are of
            none.
        disclosure: How the numbers came about, in one paragraph.
    """

    lines: tuple[SummaryLine, ...]
    metrics: tuple[MetricDescription, ...]
    failed: tuple[FailedTrial, ...]
    n_missing: int
    trials: Mapping[str, TrialDescription]
    experiments: Mapping[str, tuple[str, ...]]
    disclosure: str = ""


def summarize(folders: Sequence[Path]) -> Summary:
    """Reduce the rows of run folders to one line per trial and metric.

    Args:
        folders: Run folders, finished or not. A trial that several of them hold counts once.

    Raises:
        RunError: A folder holds no run, or one of its files is damaged.
    """
    return summarize_collection(collect(folders))


def summarize_collection(collection: Collection) -> Summary:
    """Reduce what has been read from run folders to one line per trial and metric."""
    trials, records = collection.trials, collection.records
    variants = find_variants(trials)
    lines = [
        SummaryLine(
            editor=trials[trial].editor,
            model=trials[trial].model,
            dataset=trials[trial].dataset,
            n_edits=trials[trial].n_edits,
            seed=trials[trial].seed,
            metric=metric,
            value=estimate.value,
            ci_low=None if math.isnan(estimate.low) else estimate.low,
            ci_high=None if math.isnan(estimate.high) else estimate.high,
            n=estimate.n,
            relations="+".join(trials[trial].relations),
            variant=variants[trial],
            status=record.status,
            trial=trial,
        )
        for trial, record in records.items()
        if trial in collection.values
        for metric, estimate in _estimates(collection.values[trial], collection.metrics[trial])
    ]
    failed = [
        FailedTrial(trial, trials[trial], variants[trial], record.message or "")
        for trial, record in records.items()
        if record.status == "error"
    ]
    return Summary(
        lines=tuple(lines),
        metrics=collection.distinct_metrics,
        failed=tuple(failed),
        n_missing=len(trials) - len(records),
        trials=trials,
        experiments=collection.experiments,
        disclosure=disclose(collection),
    )


def write_json(summary: Summary) -> str:
    """The lines as a JSON list of objects."""
    return lines_to_json(summary.lines)


def write_csv(summary: Summary) -> str:
    """The lines as CSV with a header; an undefined interval is empty."""
    return lines_to_csv(SummaryLine, summary.lines)


def _estimates(
    table: pd.DataFrame, metrics: Sequence[MetricDescription]
) -> list[tuple[str, Estimate]]:
    """Estimates of a trial's row metrics and, after those of each metric, of its scores."""
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
