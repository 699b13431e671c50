"""A run worked out and checked before any of it is done: said, priced, and then run."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from editbench.datasets.base import Dataset
from editbench.editors.base import Editor, Inputs
from editbench.editors.unedited import Unedited
from editbench.errors import ConfigError, PluginError, UnknownNameError
from editbench.metrics.base import AnyMetric, Metric, ModelMetric, TextMetric
from editbench.models.editable import EditableModel
from editbench.questions import Question
from editbench.requests import Conflict, EditCase, EditRequest, cut_batches, find_superseded
from editbench.runner.knowledge import KnowledgeFilter
from editbench.runner.masking import mask_contaminated
from editbench.runner.selection import select_batches
from editbench.runner.stop_rule import StopRule
from editbench.runner.trial import CaseBatch, Trial
from editbench.runner.unedited import Questionnaire, make_questionnaires
from editbench.second_moments.obtaining import read_second_moments


@dataclass(frozen=True)
class PreparedTrial:
    """A trial with its cases and questions, and nothing but what running it takes.

    Attributes:
        hash: The trial's content address.
        label: What messages call it.
        seed: Source of every random choice.
        editor: The editor, with its configuration.
        model: The model, unedited.
        inputs: What else the editor is given.
        metrics: Its metrics, fitted to its dataset.
        batches: What is edited and asked about, each batch together.
        n_conflicts: How many groups of conflicting requests the policy resolved.
        n_known: How many facts the unedited model knew, and of how many; None if it was not asked.
        batch_size: How many cases of a batch are written at a time, one batch after another; None
            for all at once.
        checkpoints: After how many of them all so far are asked; the last is all of them.
        stop_when: When a stream ends at a checkpoint.
        questionnaires: Where the unedited model's answers to its questions are.
        failure: What a plugin raised, so that nothing can be run of it; there are no batches then.
    """

    hash: str
    label: str
    seed: int
    editor: Editor
    model: EditableModel
    inputs: Inputs
    metrics: tuple[AnyMetric, ...] = ()
    batches: tuple[CaseBatch, ...] = ()
    n_conflicts: int = 0
    n_known: tuple[int, int] | None = None
    batch_size: int | None = None
    checkpoints: tuple[int, ...] = ()
    stop_when: StopRule | None = None
    questionnaires: tuple[Questionnaire, ...] = ()
    failure: PluginError | None = None

    @property
    def n_cases(self) -> int:
        """How many cases there are in all batches."""
        return sum(len(batch.cases) for batch in self.batches)

    @property
    def asks_unedited(self) -> bool:
        """Whether answers of the unedited model are needed, whatever the editor does."""
        return self.is_unedited or any(batch.before for batch in self.batches)

    @property
    def n_shared_subjects(self) -> int:
        """How many cases have a subject that another one of their batch has."""
        counts = (Counter(case.request.subject for case in batch.cases) for batch in self.batches)
        return sum(n for count in counts for n in count.values() if n > 1)

    @property
    def asks(self) -> Sequence[CaseBatch]:
        """What is asked at a time."""
        return [self.asked_at(each) for each in self.checkpoints] or self.batches

    @property
    def writes(self) -> list[Sequence[EditRequest]]:
        """What is written at a time."""
        return [
            part for batch in self.batches for part in cut_batches(batch.requests, self.batch_size)
        ]

    def asked_at(self, checkpoint: int) -> CaseBatch:
        """What a stream is asked after so many facts: about all that no later one has replaced."""
        (whole,) = self.batches
        superseded = find_superseded(whole.requests[:checkpoint])
        written = whole.cases[:checkpoint]
        places = [place for place in range(len(written)) if place not in superseded]
        masked, _ = mask_contaminated([written[place] for place in places])
        asked = [_ask_about(metric, masked, whole.texts) for metric in self.metrics]
        questions = dict.fromkeys(question for some in asked for question in some)
        unmasked = [whole.unmasked[place] for place in places]
        return CaseBatch.asking(masked, whole.texts, questions, unmasked, whole.units)

    @property
    def is_unedited(self) -> bool:
        """Whether the trial is of the unedited model."""
        return isinstance(self.editor, Unedited)


@dataclass(frozen=True)
class PreparedRun:
    """Trials that are ready to be run.

    Attributes:
        trials: What was asked for.
        prepared: The same, prepared, in the same order.
    """

    trials: tuple[Trial, ...]
    prepared: tuple[PreparedTrial, ...]


def prepare_run(trials: Sequence[Trial], cache: Path | None = None) -> PreparedRun:
    """Choose the cases and gather the questions of all trials.

    A trial whose plugins break their contract is prepared as one that fails, as long as there is
    another. Where only facts are edited that a model knows, or does not know, it is asked here; in
    `cache` the answers are kept.

    Raises:
        ConfigError: There is nothing to run; a dataset has too few cases; two metrics produce the
            same numbers; or a metric has nothing to ask about a dataset.
        DataError: A dataset cannot be read.
        EditError: An editor cannot be used on a model.
        ModelError: The model lacks a layer.
        SecondMomentError: A file of second moments lacks a layer, or is for another model.
        RequestError: Requests are in conflict, and the policy is ``error``.
        PluginError: Plugins fail in every trial.
    """
    if not trials:
        raise ConfigError("run: there is nothing to run, got no trial.")
    preparation = _Preparation(cache)
    prepared = [preparation.prepare(trial) for trial in trials]
    failures = [trial.failure for trial in prepared if trial.failure is not None]
    if len(failures) == len(prepared):
        raise failures[0]
    asked = make_questionnaires([(each.model, each.seed, each.batches) for each in prepared])
    return PreparedRun(
        tuple(trials),
        tuple(
            replace(trial, questionnaires=questionnaires)
            for trial, questionnaires in zip(prepared, asked, strict=True)
        ),
    )


_Selection = tuple[list[list[EditCase]], list[Conflict], tuple[int, int] | None]


class _Preparation:
    """Prepares trials; what several of them share is worked out once."""

    def __init__(self, cache: Path | None) -> None:
        self._cache = cache
        self._selected: dict[tuple[object, ...], _Selection] = {}
        self._asked: dict[tuple[object, ...], tuple[CaseBatch, ...]] = {}
        self._fitted: dict[tuple[object, ...], AnyMetric] = {}
        self._checked: set[tuple[object, ...]] = set()

    def prepare(self, trial: Trial) -> PreparedTrial:
        """Prepare one trial, but for its questionnaires; see `prepare_run`."""
        prepared = PreparedTrial(
            trial.hash,
            trial.label,
            trial.seed,
            trial.editor,
            trial.model,
            trial.inputs,
            batch_size=trial.batch_size,
            checkpoints=trial.all_checkpoints,
            stop_when=trial.stop_when,
        )
        try:
            return self._work_out(trial, prepared)
        except PluginError as error:
            return replace(prepared, failure=error)

    def _work_out(self, trial: Trial, prepared: PreparedTrial) -> PreparedTrial:
        self._check_editor(trial)
        _check_stream(trial)
        wanted: dict[str, Any] = {
            "n_edits": trial.n_edits,
            "n_batches": trial.n_batches,
            "batch_size": trial.batch_size,
            "relations": trial.relations,
            "sample": trial.sample,
            "seed": trial.seed if trial.sample == "shuffled" else 0,
            "on_conflict": trial.on_conflict,
        }
        asked = None if trial.facts == "all" else (trial.facts, trial.model.fingerprint)
        selection = (id(trial.dataset), *wanted.values(), asked)
        if selection not in self._selected:
            self._selected[selection] = self._select(trial, wanted)
        batches, conflicts, n_known = self._selected[selection]
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
        return replace(
            prepared,
            metrics=metrics,
            batches=self._asked[questioning],
            n_conflicts=len(conflicts),
            n_known=n_known,
        )

    def _select(self, trial: Trial, wanted: Mapping[str, Any]) -> _Selection:
        cases = trial.dataset.cases()
        if trial.facts == "all":
            return *select_batches(cases, **wanted), None
        sieve = KnowledgeFilter(trial.model, trial.facts == "known", self._cache)
        batches, conflicts = select_batches(cases, **wanted, choose=sieve.choose)
        return batches, conflicts, (sieve.n_known, sieve.n_asked)

    def _check_editor(self, trial: Trial) -> None:
        """Refuse an editor that cannot do its work, and second moments that it cannot use."""
        trial.editor.check_usable(trial.model)
        path = trial.inputs.second_moments
        if path is None or trial.model.planned_device is not None:
            return
        for module, layers in trial.editor.needs_second_moments(trial.model).items():
            for layer in layers:
                trial.model.architecture.check_layer(layer)
            checked = (id(trial.model), path, module, tuple(layers))
            if checked not in self._checked:
                with warnings.catch_warnings(action="ignore"):  # the editor will warn of the same
                    read_second_moments(trial.model, layers, path, module)
                self._checked.add(checked)


def has_questions(metric: AnyMetric, dataset: Dataset) -> bool:
    """Whether a dataset has what a metric needs, in one of its cases or held-out texts.

    A metric that asks the model itself brings what it needs.

    Raises:
        DataError: The dataset cannot be read.
    """
    if isinstance(metric, ModelMetric):
        return bool(metric.units())
    if isinstance(metric, Metric) and any(metric.questions(case) for case in dataset.cases()):
        return True
    return isinstance(metric, TextMetric) and any(map(metric.questions, dataset.held_out_texts()))


def _gather_batches(
    dataset: Dataset, metrics: Sequence[AnyMetric], batches: Sequence[Sequence[EditCase]]
) -> tuple[CaseBatch, ...]:
    """Give each batch its share of the held-out texts, and what the metrics ask about both."""
    _refuse_clash(metrics)
    is_read = any(isinstance(metric, TextMetric) for metric in metrics)
    held_out = dataset.held_out_texts() if is_read else ()
    texts = [(f"held-out-{index:05d}", text) for index, text in enumerate(held_out)]
    shares = [texts[start :: len(batches)] for start in range(len(batches))]
    unmasked = batches
    batches = [mask_contaminated(cases)[0] for cases in unmasked]
    gathered: list[dict[Question, None]] = [{} for _ in batches]
    units: list[dict[str, tuple[str, ...]]] = [{} for _ in batches]
    for metric in metrics:
        if isinstance(metric, ModelMetric):
            if not (own := tuple(metric.units())):
                raise _nothing_to_ask(metric, dataset, 0)
            for start, of_batch in enumerate(units):
                of_batch[metric.name] = own[start :: len(batches)]
            continue
        has_asked = False
        for cases, share, known in zip(batches, shares, gathered, strict=True):
            questions = _ask_about(metric, cases, share)
            known.update(dict.fromkeys(questions))
            has_asked = has_asked or bool(questions)
        if not has_asked:
            raise _nothing_to_ask(metric, dataset, sum(map(len, batches)))
    if not any(gathered) and not any(units):
        raise ConfigError("run: there is nothing to measure, got no metric.")
    return tuple(
        CaseBatch.asking(cases, share, known, whole, of_batch)
        for cases, share, known, whole, of_batch in zip(
            batches, shares, gathered, unmasked, units, strict=True
        )
    )


def _ask_about(
    metric: AnyMetric, cases: Sequence[EditCase], texts: Sequence[tuple[str, str]]
) -> list[Question]:
    questions: list[Question] = []
    if isinstance(metric, Metric):
        questions += [question for case in cases for question in metric.questions(case)]
    if isinstance(metric, TextMetric):
        questions += [question for _, text in texts for question in metric.questions(text)]
    return questions


def _check_stream(trial: Trial) -> None:
    """Refuse batches, checkpoints and a rule that do not go together."""
    size, n = trial.batch_size, trial.n_edits
    if size is None:
        if trial.checkpoints or trial.stop_when is not None:
            raise ConfigError(
                "stream: there are checkpoints only where facts are written in batches, got no "
                "batch size. Give --batch-size, or leave out --checkpoint and --stop-when."
            )
        return
    if size < 1 or trial.n_batches > 1:
        raise ConfigError(
            f"stream: all facts go into one model, {size} at a time, got {trial.n_batches} "
            "separate ones to have enough cases; expected one, and a positive size. Leave out "
            "--min-cases, or --batch-size."
        )
    for checkpoint in trial.checkpoints:
        if not 0 < checkpoint <= n or (checkpoint % size and checkpoint != n):
            raise ConfigError(
                f"stream: no batch ends at a checkpoint, got {checkpoint} of {n} facts written "
                f"{size} at a time; expected a multiple of {size}, at most {n}, or {n}."
            )
    if (rule := trial.stop_when) is not None:
        known = [name for metric in trial.metrics for name in metric.quantities]
        if rule.metric not in known:
            raise UnknownNameError("metric in --stop-when", rule.metric, known)


def _nothing_to_ask(metric: AnyMetric, dataset: Dataset, n_cases: int) -> ConfigError:
    if isinstance(metric, ModelMetric):
        lacking = "got no documents of its own"
    elif isinstance(metric, Metric):
        lacking = f"got {n_cases} cases without what it needs"
    else:
        lacking = f"got {len(dataset.held_out_texts())} held-out texts"
    return ConfigError(
        f"metric '{metric.name}': has nothing to ask about dataset '{dataset.name}', {lacking}. "
        f"Metrics for it are: {', '.join(dataset.default_metrics)}."
    )


def _refuse_clash(metrics: Sequence[AnyMetric]) -> None:
    for one, other in combinations(metrics, 2):
        shared = {row.name for row in one.rows} & {row.name for row in other.rows}
        if shared:
            raise ConfigError(
                f"metrics: '{one.name}' and '{other.name}' both produce '{min(shared)}', got "
                "both. Choose one of them for each dataset."
            )
