"""Running trials: edit, ask, measure, store; one after the other, each safe once it is done."""

import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from editbench.editors.base import Progress, report_nothing
from editbench.editors.unedited import Unedited
from editbench.edits.edit import Edit
from editbench.errors import EditbenchError, PluginError
from editbench.models.answering import answer_questions
from editbench.questions import Answer, Answers, Generate, Question
from editbench.results.manifest import RunManifest
from editbench.results.row import Row, Status
from editbench.results.store import RunStore, TrialRecord
from editbench.results.transcript import CaseTranscript
from editbench.runner.measuring import measure
from editbench.runner.plan import Batch, PlannedTrial, describe_metrics, plan_trials
from editbench.runner.provenance import PeakMemory, gather_provenance
from editbench.runner.transcribing import transcribe
from editbench.runner.trial import Trial

TrialFinished = Callable[[Trial, Sequence[Row]], object]


@dataclass(frozen=True, slots=True)
class RunSummary:
    """How a run went.

    Attributes:
        folder: Where its results are.
        n_run: Trials that were run now, failed ones included.
        n_skipped: Trials that were done already.
        failures: For each trial that failed, what it was and what went wrong.
        warnings: What was warned about, each once.
    """

    folder: Path
    n_run: int
    n_skipped: int
    failures: tuple[tuple[Trial, str], ...]
    warnings: tuple[str, ...]


def run_grid(
    trials: Sequence[Trial],
    folder: Path,
    *,
    resume: bool = False,
    cache: Path | None = None,
    token_budget: int | None = None,
    provenance: Mapping[str, Any] | None = None,
    on_progress: Progress = report_nothing,
    on_trial_finished: TrialFinished | None = None,
) -> RunSummary:
    """Run trials and store what they yield.

    Everything that can be known to be wrong is checked before the first trial begins. After that a
    trial that fails becomes a row that says why, and the others go on. A trial is stored whole as
    soon as it is finished: an interrupt or a crash loses only the one that is being run.

    Args:
        trials: What to run, in this order.
        folder: The run folder.
        resume: Go on with the run that the folder holds, skipping what is done; trials that
            failed are tried again.
        cache: Where editors may keep what is worth keeping between runs.
        token_budget: How many tokens to put to a model at once when it is asked; None chooses by
            device.
        provenance: What else ``run.json`` should say about where the run comes from.
        on_progress: Told about the work as it advances.
        on_trial_finished: Called after each trial that was run, once its rows are stored. What it
            raises is warned about.

    Returns:
        How the run went.

    Raises:
        EditbenchError: The trials cannot be run, or the folder cannot be used; see
            `plan_trials` and `RunStore`.
    """
    planned = plan_trials(trials)
    manifest = RunManifest(
        created=_now(),
        provenance={**gather_provenance(trials), **(provenance or {})},
        metrics=describe_metrics(trials),
        trials={plan.trial.hash: plan.trial.description for plan in planned},
    )
    with RunStore.open(folder, manifest, resume=resume) as store:
        run = _Run(store, cache, token_budget, on_progress, on_trial_finished)
        n_cases = sum(plan.n_cases for plan in planned)
        n_done = 0
        for index, plan in enumerate(planned):
            note = f"trial {index + 1} of {len(planned)}: {plan.trial.label}"
            on_progress("cases", n_done, n_cases, note)
            run.advance(plan)
            n_done += plan.n_cases
        on_progress("cases", n_cases, n_cases)
    distinct_warnings = tuple(dict.fromkeys(run.warnings))
    return RunSummary(folder, run.n_run, run.n_skipped, tuple(run.failures), distinct_warnings)


@dataclass
class _Run:
    """The state of a run: what it was given, and how it has gone so far."""

    store: RunStore
    cache: Path | None
    token_budget: int | None
    on_progress: Progress
    on_trial_finished: TrialFinished | None
    n_run: int = 0
    n_skipped: int = 0
    failures: list[tuple[Trial, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unedited_answers: dict[tuple[object, ...], Answers] = field(default_factory=dict)
    spoiled_models: dict[str, str] = field(default_factory=dict)

    def advance(self, plan: PlannedTrial) -> None:
        """Skip a trial that is done; run and store any other."""
        if self.store.is_finished(plan.trial.hash):
            self.n_skipped += 1
            return
        record, rows, transcripts = self._run(plan)
        self.store.write(record, rows, transcripts)
        self.n_run += 1
        self.warnings += record.warnings
        if record.status == "error":
            self.failures.append((plan.trial, record.message or ""))
        if self.on_trial_finished is not None:
            try:
                self.on_trial_finished(plan.trial, rows)
            except Exception as error:  # a listener is not worth a run
                self.warnings.append(f"after {plan.trial.label}: {_describe(error)}")

    def _run(self, plan: PlannedTrial) -> tuple[TrialRecord, list[Row], list[CaseTranscript]]:
        trial = plan.trial
        seconds = {"edit": 0.0, "answer": 0.0}
        cards: list[dict[str, Any]] = []
        changed_something = isinstance(trial.editor, Unedited)
        message = trace = None
        values: list[tuple[str, str, float]] = []
        transcripts: list[CaseTranscript] = []
        memory = PeakMemory(trial.model.device)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            try:
                self._refuse_spoiled(trial)
                for index, batch in enumerate(plan.batches):
                    if len(plan.batches) > 1:
                        self.on_progress("batches", index, len(plan.batches))
                    began = perf_counter()
                    edit = trial.editor.edit(
                        trial.model,
                        [case.request for case in batch.cases],
                        trial.resources(self.cache, self.on_progress),
                    )
                    edited = perf_counter()
                    answers = self._answer(trial, batch, edit)
                    seconds["edit"] += edited - began
                    seconds["answer"] += perf_counter() - edited
                    cards.append(edit.card.model_dump(mode="json"))
                    changed_something = changed_something or edit.changes_something
                    values += measure(batch, plan.metrics, answers)
                    transcripts += transcribe(batch.cases, answers)
            except Exception as error:  # one trial's failure must not take the others with it
                message, trace = _describe(error), traceback.format_exc()
            message = self._find_spoiled(trial) or message
        status: Status = "error" if message else "ok" if changed_something else "no_effect"
        record = TrialRecord(
            trial=trial.hash,
            status=status,
            message=message,
            traceback=trace,
            finished=_now(),
            seconds=seconds,
            peak_memory_bytes=memory.measure(),
            n_conflicts=plan.n_conflicts,
            edits=tuple(cards),
            warnings=tuple(dict.fromkeys(str(warning.message) for warning in caught)),
        )
        if status == "error":
            values, transcripts = [], []
        return record, self._rows(trial, record, values), transcripts

    def _answer(self, trial: Trial, batch: Batch, edit: Edit) -> Answers:
        if not edit.changes_something:
            return self._answer_unedited(trial, batch)
        with edit.applied(trial.model):
            return self._ask(trial, batch.questions)

    def _answer_unedited(self, trial: Trial, batch: Batch) -> Answers:
        """Answers of the unedited model, remembered for the rest of the run.

        They are remembered by whole sets of questions: if single ones were, what a batch holds,
        and with it the last bits of an answer, would depend on where a run was interrupted.
        """
        sampled = tuple(q for q in batch.questions if isinstance(q, Generate))
        others = tuple(q for q in batch.questions if not isinstance(q, Generate))
        answers: dict[Question, Answer] = {}
        for questions, seed in ((others, None), (sampled, trial.seed)):
            key = (trial.model.fingerprint, seed, questions)
            if key not in self.unedited_answers:
                self.unedited_answers[key] = self._ask(trial, questions)
            answers.update(self.unedited_answers[key])
        return answers

    def _ask(self, trial: Trial, questions: Sequence[Question]) -> Answers:
        return answer_questions(
            trial.model,
            questions,
            seed=trial.seed,
            token_budget=self.token_budget or trial.model.token_budget,
            on_progress=lambda done, total: self.on_progress("answers", done, total),
        )

    def _rows(
        self, trial: Trial, record: TrialRecord, values: Sequence[tuple[str, str, float]]
    ) -> list[Row]:
        # A resumed run may find the model in another place; what the run called it first stays.
        description = self.store.manifest.trials[trial.hash]

        def row(case_id: str | None, metric: str | None, value: float | None) -> Row:
            return Row(
                trial=trial.hash,
                editor=description.editor,
                model=description.model,
                dataset=description.dataset,
                n_edits=description.n_edits,
                seed=description.seed,
                case_id=case_id,
                metric=metric,
                value=value,
                status=record.status,
                message=record.message,
            )

        return [row(*value) for value in values] or [row(None, None, None)]

    def _refuse_spoiled(self, trial: Trial) -> None:
        if editor := self.spoiled_models.get(trial.model.fingerprint):
            raise PluginError(
                f"run trial: the weights of '{trial.model.name}' are not what they were, since "
                f"editor '{editor}' changed them. Resume the run without that editor."
            )

    def _find_spoiled(self, trial: Trial) -> str | None:
        """Whether the editor broke its contract and left the model changed."""
        fingerprint = trial.model.fingerprint
        known = fingerprint in self.spoiled_models
        if known or trial.model.compute_fingerprint() == fingerprint:
            return None
        self.spoiled_models[fingerprint] = trial.editor.name
        return (
            f"editor '{trial.editor.name}' left the model changed: it must return an edit and give "
            "the model back bit-identical. 'editbench check' tests an editor for that."
        )


def _describe(error: Exception) -> str:
    """One line: the message of an error that explains itself, else its type as well."""
    text = " ".join(str(error).split())
    return text if isinstance(error, EditbenchError) else f"{type(error).__name__}: {text}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
