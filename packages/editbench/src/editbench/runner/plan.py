"""What a run is going to do, worked out and checked before it does any of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from editbench.datasets.base import Dataset
from editbench.errors import ConfigError, PluginError
from editbench.metrics.base import AnyMetric, Metric
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
        metrics: Its metrics, fitted to its dataset.
        batches: What is edited and asked about, each batch together.
        n_conflicts: How many groups of conflicting requests the policy resolved.
        failure: What a plugin raised, so that nothing can be run of it; there are no batches then.
    """

    trial: Trial
    metrics: tuple[AnyMetric, ...]
    batches: tuple["Batch", ...]
    n_conflicts: int
    failure: PluginError | None = None

    @property
    def n_cases(self) -> int:
        """How many cases there are in all batches."""
        return sum(len(batch.cases) for batch in self.batches)


@dataclass(frozen=True, slots=True)
class Batch:
    """Cases that are edited together, and everything that is asked about them.

    Attributes:
        cases: The cases.
        texts: Held-out texts to read, each with an id; a trial's batches share them between them,
            so that each is read once, whatever the number of batches.
        questions: What the metrics ask about cases and texts, each question once.
    """

    cases: tuple[EditCase, ...]
    texts: tuple[tuple[str, str], ...]
    questions: tuple[Question, ...]


def plan_trials(trials: Sequence[Trial]) -> list[PlannedTrial]:
    """Choose the cases and gather the questions of all trials.

    A trial whose plugins break their contract is planned as one that fails, as long as there is
    another.

    Raises:
        ConfigError: There is nothing to run; a dataset has too few cases; two metrics produce the
            same numbers; or a metric has nothing to ask about a dataset.
        DataError: A dataset cannot be read.
        EditError: An editor cannot be used on a model.
        RequestError: Requests are in conflict, and the policy is ``error``.
        PluginError: Plugins fail in every trial.
    """
    if not trials:
        raise ConfigError("run: there is nothing to run, got no trial.")
    planner = _Planner()
    planned = []
    for trial in trials:
        try:
            planned.append(planner.plan(trial))
        except PluginError as error:
            planned.append(PlannedTrial(trial, (), (), 0, failure=error))
    failures = [plan.failure for plan in planned if plan.failure is not None]
    if len(failures) == len(planned):
        raise failures[0]
    return planned


class _Planner:
    """Plans trials; what several of them share is worked out once."""

    def __init__(self) -> None:
        self._selected: dict[tuple[object, ...], tuple[list[list[EditCase]], list[Conflict]]] = {}
        self._asked: dict[tuple[object, ...], tuple[Batch, ...]] = {}
        self._fitted: dict[tuple[object, ...], AnyMetric] = {}

    def plan(self, trial: Trial) -> PlannedTrial:
        """Plan one trial; see `plan_trials`."""
        trial.editor.check_usable(trial.model)
        selection = (
            id(trial.dataset),
            trial.n_edits,
            trial.n_batches,
            trial.relations,
            trial.sample,
            trial.seed if trial.sample == "shuffled" else None,
            trial.on_conflict,
        )
        if selection not in self._selected:
            self._selected[selection] = select_batches(
                trial.dataset.cases(),
                trial.n_edits,
                n_batches=trial.n_batches,
                relations=trial.relations,
                sample=trial.sample,
                seed=trial.seed,
                on_conflict=trial.on_conflict,
            )
        batches, conflicts = self._selected[selection]
        for metric in trial.metrics:
            fitting = (id(trial.dataset), metric.name)
            if fitting not in self._fitted:
                self._fitted[fitting] = (
                    metric.fitted(trial.dataset.cases()) if isinstance(metric, Metric) else metric
                )
        metrics = tuple(self._fitted[id(trial.dataset), metric.name] for metric in trial.metrics)
        questioning = (selection, tuple(metric.name for metric in metrics))
        if questioning not in self._asked:
            self._asked[questioning] = _gather_batches(trial.dataset, metrics, batches)
        return PlannedTrial(trial, metrics, self._asked[questioning], len(conflicts))


def has_questions(metric: AnyMetric, dataset: Dataset) -> bool:
    """Whether a dataset has what a metric needs, in one of its cases or held-out texts.

    Raises:
        DataError: The dataset cannot be read.
    """
    if isinstance(metric, Metric):
        return any(metric.questions(case) for case in dataset.cases())
    return any(metric.questions(text) for text in dataset.held_out_texts())


def describe_metrics(trials: Sequence[Trial]) -> tuple[MetricDescription, ...]:
    """What a reader of the rows must know about the metrics of `trials`, each once."""
    metrics = {metric.name: metric for trial in trials for metric in trial.metrics}
    return tuple(map(describe_metric, metrics.values()))


def describe_metric(metric: AnyMetric | type[AnyMetric]) -> MetricDescription:
    """What a reader of the rows must know about a metric."""
    return MetricDescription(
        name=metric.name,
        version=metric.version,
        produces=metric.produces,
        aggregates=dict(metric.aggregates),
        mean=metric.mean,
        bounds=(_finite(metric.bounds[0]), _finite(metric.bounds[1])),
        higher_is_better=metric.higher_is_better,
    )


def _finite(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None


def _gather_batches(
    dataset: Dataset, metrics: Sequence[AnyMetric], batches: Sequence[Sequence[EditCase]]
) -> tuple[Batch, ...]:
    """Give each batch its share of the held-out texts, and what the metrics ask about both."""
    _refuse_clash(metrics)
    is_read = any(not isinstance(metric, Metric) for metric in metrics)
    held_out = dataset.held_out_texts() if is_read else ()
    texts = [(f"held-out-{index:05d}", text) for index, text in enumerate(held_out)]
    shares = [texts[start :: len(batches)] for start in range(len(batches))]
    gathered: list[dict[Question, None]] = [{} for _ in batches]
    for metric in metrics:
        has_asked = False
        for cases, share, known in zip(batches, shares, gathered, strict=True):
            questions = (
                [question for case in cases for question in metric.questions(case)]
                if isinstance(metric, Metric)
                else [question for _, text in share for question in metric.questions(text)]
            )
            known.update(dict.fromkeys(questions))
            has_asked = has_asked or bool(questions)
        if not has_asked:
            raise _nothing_to_ask(metric, dataset, sum(map(len, batches)))
    if not any(gathered):
        raise ConfigError("run: there is nothing to measure, got no metric.")
    return tuple(
        Batch(tuple(cases), tuple(share), tuple(known))
        for cases, share, known in zip(batches, shares, gathered, strict=True)
    )


def _nothing_to_ask(metric: AnyMetric, dataset: Dataset, n_cases: int) -> ConfigError:
    if isinstance(metric, Metric):
        lacking = f"got {n_cases} cases without what it needs"
    else:
        lacking = f"got {len(dataset.held_out_texts())} held-out texts"
    return ConfigError(
        f"metric '{metric.name}': has nothing to ask about dataset '{dataset.name}', {lacking}. "
        f"Metrics for it are: {', '.join(dataset.default_metrics)}."
    )


def _refuse_clash(metrics: Sequence[AnyMetric]) -> None:
    for one, other in combinations(metrics, 2):
        shared = set(one.produces) & set(other.produces)
        if shared:
            raise ConfigError(
                f"metrics: '{one.name}' and '{other.name}' both produce '{min(shared)}', got "
                "both. Choose one of them for each dataset."
            )
