"""What a run came to: one line per trial and metric, for programs and for people."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from editbench.files.lines import lines_to_csv, lines_to_json
from editbench.results.before_after import BeforeAfter, list_before_after
from editbench.results.collection import Collection, collect
from editbench.results.disclosure import disclose
from editbench.results.manifest import MetricDescription, TrialDescription
from editbench.results.quantities import estimate_quantities
from editbench.results.row import Status
from editbench.results.stream_lines import (
    ChangeLine,
    RetentionLine,
    list_changes,
    measure_retention,
)
from editbench.results.variants import find_variants


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
        batch_size: How many requests were written at a time; None if all were at once.
        checkpoint: How many had been written when this was measured.
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
    batch_size: int | None
    checkpoint: int
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
        lines: Metrics of the trials that have numbers, in the order of runs, trials, checkpoints,
            metrics.
        metrics: What is known about the metrics, each once.
        failed: Trials that failed.
        retention: Metrics of streams by the age of facts, at their ends.
        changes: What streams do to weights and keys, at their checkpoints.
        stopped: Streams that ended before their end by hash, and why.
        n_missing: How many trials have not been run yet.
        trials: Every trial by its hash, whether it has numbers or not.
        experiments: Name of an experiment to the hashes of its trials; ``""`` for runs that are of
            none.
        disclosure: How the numbers came about, in one paragraph.
        before_after: General ability before and after, where that was measured.
    """

    lines: tuple[SummaryLine, ...]
    metrics: tuple[MetricDescription, ...]
    failed: tuple[FailedTrial, ...]
    retention: tuple[RetentionLine, ...]
    changes: tuple[ChangeLine, ...]
    stopped: Mapping[str, str]
    n_missing: int
    trials: Mapping[str, TrialDescription]
    experiments: Mapping[str, tuple[str, ...]]
    disclosure: str = ""
    before_after: tuple[BeforeAfter, ...] = ()

    @property
    def last_lines(self) -> tuple[SummaryLine, ...]:
        """The lines of each trial at its last checkpoint."""
        last: dict[str, int] = {}
        for line in self.lines:
            last[line.trial] = max(line.checkpoint, last.get(line.trial, 0))
        return tuple(line for line in self.lines if line.checkpoint == last[line.trial])


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
            batch_size=trials[trial].batch_size,
            checkpoint=checkpoint,
            relations="+".join(trials[trial].relations),
            variant=variants[trial],
            status=record.status,
            trial=trial,
        )
        for trial, record in records.items()
        for checkpoint, table in sorted(collection.checkpoints.get(trial, {}).items())
        for metric, estimate in estimate_quantities(table, collection.metrics[trial])
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
        retention=tuple(measure_retention(collection)),
        changes=tuple(list_changes(collection)),
        stopped={trial: each.stopped for trial, each in records.items() if each.stopped},
        n_missing=len(trials) - len(records),
        trials=trials,
        experiments=collection.experiments,
        disclosure=disclose(collection),
        before_after=tuple(list_before_after(collection)),
    )


def write_json(summary: Summary) -> str:
    """The lines as a JSON list of objects."""
    return lines_to_json(summary.lines)


def write_csv(summary: Summary) -> str:
    """The lines as CSV with a header; an undefined interval is empty."""
    return lines_to_csv(SummaryLine, summary.lines)
