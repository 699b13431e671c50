"""What a run came to: one line per trial and metric, for programs and for people."""

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd

from editbench.results.frame import load_rows
from editbench.results.manifest import MetricDescription, TrialDescription
from editbench.results.row import Status
from editbench.results.statistics import Estimate, estimate_harmonic_mean, estimate_mean
from editbench.results.store import TrialRecord, finished_trials, read_manifest, read_trial

_IDENTITY = ("editor", "model", "dataset", "n_edits", "seed")
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
    """

    lines: tuple[SummaryLine, ...]
    metrics: tuple[MetricDescription, ...]
    failed: tuple[FailedTrial, ...]
    n_missing: int


def summarize(folders: Sequence[Path]) -> Summary:
    """Reduce the rows of run folders to one line per trial and metric.

    Args:
        folders: Run folders, finished or not. A trial that several of them hold counts once.

    Raises:
        RunError: A folder holds no run, or one of its files is damaged.
    """
    rows = load_rows(folders)
    values_of = dict(tuple(rows[rows["metric"].notna()].groupby("trial", sort=False)))
    descriptions: dict[str, TrialDescription] = {}
    metrics_of: dict[str, tuple[MetricDescription, ...]] = {}
    records: dict[str, TrialRecord] = {}
    for folder in folders:
        manifest = read_manifest(folder)
        for trial, description in manifest.trials.items():
            descriptions.setdefault(trial, description)
            metrics_of.setdefault(trial, manifest.metrics)
        for trial in finished_trials(folder, manifest):
            records.setdefault(trial, read_trial(folder, trial))
    variants = _variants(descriptions)
    lines = [
        SummaryLine(
            editor=descriptions[trial].editor,
            model=descriptions[trial].model,
            dataset=descriptions[trial].dataset,
            n_edits=descriptions[trial].n_edits,
            seed=descriptions[trial].seed,
            metric=metric,
            value=estimate.value,
            ci_low=None if math.isnan(estimate.low) else estimate.low,
            ci_high=None if math.isnan(estimate.high) else estimate.high,
            n=estimate.n,
            variant=variants[trial],
            status=record.status,
            trial=trial,
        )
        for trial, record in records.items()
        if trial in values_of
        for metric, estimate in _estimates(values_of[trial], metrics_of[trial])
    ]
    failed = [
        FailedTrial(trial, descriptions[trial], variants[trial], record.message or "")
        for trial, record in records.items()
        if record.status == "error"
    ]
    metrics = {metric.name: metric for known in metrics_of.values() for metric in known}
    n_missing = len(descriptions) - len(records)
    return Summary(tuple(lines), tuple(metrics.values()), tuple(failed), n_missing)


def write_json(summary: Summary) -> str:
    """The lines as a JSON list of objects."""
    objects = [asdict(line) for line in summary.lines]
    return json.dumps(objects, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_csv(summary: Summary) -> str:
    """The lines as CSV with a header; an undefined interval is empty."""
    text = io.StringIO()
    names = [field.name for field in fields(SummaryLine)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(line) for line in summary.lines)
    return text.getvalue()


def _estimates(
    values: pd.DataFrame, metrics: Sequence[MetricDescription]
) -> list[tuple[str, Estimate]]:
    """Estimates of a trial's row metrics and, after those of each metric, of its scores."""
    table = values.pivot_table(index="case_id", columns="metric", values="value", sort=False)
    estimates = []
    for metric in metrics:
        present = [name for name in metric.produces if name in table]
        for name in present:
            column = table[name].dropna().to_numpy(dtype=np.float64)
            estimates.append((name, estimate_mean(column).clipped(metric.bounds)))
        for score, parts in metric.aggregates.items():
            if all(part in table for part in parts):
                cases = table[list(parts)].dropna(how="all").to_numpy(dtype=np.float64)
                estimate = estimate_harmonic_mean(cases, seed=_BOOTSTRAP_SEED)
                estimates.append((score, estimate.clipped(metric.bounds)))
    return estimates


def _variants(descriptions: Mapping[str, TrialDescription]) -> dict[str, str]:
    """What tells trials apart that agree in editor, model, dataset, number of edits and seed."""
    groups: defaultdict[tuple[object, ...], list[str]] = defaultdict(list)
    for trial, description in descriptions.items():
        groups[tuple(getattr(description, name) for name in _IDENTITY)].append(trial)
    variants = {}
    for trials in groups.values():
        flat = {trial: descriptions[trial].flat() for trial in trials}
        fields_ = dict.fromkeys(field for content in flat.values() for field in content)
        differing = [f for f in fields_ if len({flat[trial].get(f) for trial in trials}) > 1]
        for trial in trials:
            variants[trial] = ", ".join(
                f"{field.removeprefix('config.')}={flat[trial].get(field, 'unset')}"
                for field in differing
            )
    return variants
