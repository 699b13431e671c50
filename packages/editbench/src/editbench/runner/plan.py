"""What a run is going to do, worked out and checked before it does any of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from editbench.errors import ConfigError
from editbench.metrics.base import Metric
from editbench.questions import Question
from editbench.requests import Conflict, EditCase
from editbench.results.manifest import MetricDescription
from editbench.runner.selection import select_batches
from editbench.runner.trial import Trial


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """A trial with its cases and questions.

    Attributes:
        trial: The trial.
        batches: What is edited and asked about, each batch together.
        n_conflicts: How many groups of conflicting requests the policy resolved.
    """

    trial: Trial
    batches: tuple["Batch", ...]
    n_conflicts: int

    @property
    def n_cases(self) -> int:
        """How many cases there are in all batches."""
        return sum(len(batch.cases) for batch in self.batches)


@dataclass(frozen=True, slots=True)
class Batch:
    """Cases that are edited together, and everything that is asked about them.

    Attributes:
        cases: The cases.
        questions: What the metrics ask about the cases, each question once.
    """

    cases: tuple[EditCase, ...]
    questions: tuple[Question, ...]


def plan_trials(trials: Sequence[Trial]) -> list[PlannedTrial]:
    """Choose the cases and gather the questions of all trials.

    Raises:
        ConfigError: There is nothing to run; a dataset has too few cases; two metrics produce the
            same numbers; or a metric has nothing to ask about a dataset.
        DataError: A dataset cannot be read.
        RequestError: Requests are in conflict, and the policy is ``error``.
    """
    if not trials:
        raise ConfigError("run: there is nothing to run, got no trial.")
    selected: dict[tuple[object, ...], tuple[list[list[EditCase]], list[Conflict]]] = {}
    asked: dict[tuple[object, ...], tuple[Batch, ...]] = {}
    planned = []
    for trial in trials:
        selection = (
            id(trial.dataset),
            trial.n_edits,
            trial.n_batches,
            trial.relations,
            trial.sample,
            trial.seed if trial.sample == "shuffled" else None,
            trial.on_conflict,
        )
        if selection not in selected:
            selected[selection] = select_batches(
                trial.dataset.cases(),
                trial.n_edits,
                n_batches=trial.n_batches,
                relations=trial.relations,
                sample=trial.sample,
                seed=trial.seed,
                on_conflict=trial.on_conflict,
            )
        batches, conflicts = selected[selection]
        questioning = (selection, tuple(metric.name for metric in trial.metrics))
        if questioning not in asked:
            gathered = _gather_questions(trial, batches)
            asked[questioning] = tuple(
                Batch(tuple(cases), questions)
                for cases, questions in zip(batches, gathered, strict=True)
            )
        planned.append(PlannedTrial(trial, asked[questioning], len(conflicts)))
    return planned


def describe_metrics(trials: Sequence[Trial]) -> tuple[MetricDescription, ...]:
    """What a reader of the rows must know about the metrics of `trials`, each once."""
    metrics = {metric.name: metric for trial in trials for metric in trial.metrics}
    return tuple(
        MetricDescription(
            name=metric.name,
            version=metric.version,
            produces=metric.produces,
            aggregates=dict(metric.aggregates),
            bounds=(_finite(metric.bounds[0]), _finite(metric.bounds[1])),
            higher_is_better=metric.higher_is_better,
        )
        for metric in metrics.values()
    )


def _finite(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None


def _gather_questions(
    trial: Trial, batches: Sequence[Sequence[EditCase]]
) -> tuple[tuple[Question, ...], ...]:
    """What the trial's metrics ask about each batch."""
    _refuse_clash(trial.metrics)
    gathered: list[dict[Question, None]] = [{} for _ in batches]
    for metric in trial.metrics:
        has_questions = False
        for batch, known in zip(batches, gathered, strict=True):
            questions = [question for case in batch for question in metric.questions(case)]
            known.update(dict.fromkeys(questions))
            has_questions = has_questions or bool(questions)
        if not has_questions:
            raise ConfigError(
                f"metric '{metric.name}': has nothing to ask about dataset "
                f"'{trial.dataset.name}', got {sum(map(len, batches))} cases without what it "
                f"needs. Metrics for it are: {', '.join(trial.dataset.default_metrics)}."
            )
    if not any(gathered):
        raise ConfigError("run: there is nothing to measure, got no metric.")
    return tuple(tuple(known) for known in gathered)


def _refuse_clash(metrics: Sequence[Metric]) -> None:
    for one, other in combinations(metrics, 2):
        shared = set(one.produces) & set(other.produces)
        if shared:
            raise ConfigError(
                f"metrics: '{one.name}' and '{other.name}' both produce '{min(shared)}', got "
                "both. Choose one of them for each dataset."
            )
