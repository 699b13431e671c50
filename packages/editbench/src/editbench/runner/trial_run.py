"""One trial, wherever it is run: edit, ask, measure."""

import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any, Self

from editbench.editors.base import Editor, Progress
from editbench.editors.subject_tokens import check_requests
from editbench.editors.unedited import Unedited
from editbench.edits.edit import Edit
from editbench.errors import EditbenchError, PluginError
from editbench.metrics.base import AnyMetric
from editbench.models.answering import answer_questions
from editbench.models.editable import EditableModel
from editbench.models.out_of_memory import explaining_out_of_memory, free_memory_of_errors
from editbench.questions import Answers
from editbench.results.row import Status
from editbench.results.store import TrialRecord
from editbench.results.transcript import CaseTranscript
from editbench.runner.measuring import measure
from editbench.runner.plan import Batch, PlannedTrial
from editbench.runner.provenance import PeakMemory
from editbench.runner.transcribing import transcribe
from editbench.runner.trial import Inputs
from editbench.runner.unedited import Sheet


@dataclass(frozen=True)
class Conditions:
    """What all trials of a run are run with.

    Attributes:
        cache: Where to keep what is worth keeping between runs; None keeps nothing.
        token_budget: How many tokens to put to a model at once when it is asked; None chooses by
            device.
    """

    cache: Path | None
    token_budget: int | None


@dataclass(frozen=True)
class Work:
    """A planned trial, reduced to what running it takes.

    Attributes:
        trial: The trial's hash.
        label: What messages call it.
        seed: Source of every random choice.
        editor: The editor, with its configuration.
        model: The model, unedited.
        metrics: Its metrics, fitted to its dataset.
        batches: What is edited and asked about, each batch together.
        inputs: What else the editor is given.
        n_conflicts: How many groups of conflicting requests the policy resolved.
        sheets: Where the unedited model's answers to its questions are.
    """

    trial: str
    label: str
    seed: int
    editor: Editor
    model: EditableModel
    metrics: tuple[AnyMetric, ...]
    batches: tuple[Batch, ...]
    inputs: Inputs
    n_conflicts: int
    sheets: tuple[Sheet, ...]

    @classmethod
    def of(cls, plan: PlannedTrial, sheets: tuple[Sheet, ...]) -> Self:
        """Take it from a plan."""
        trial = plan.trial
        return cls(
            trial=trial.hash,
            label=trial.label,
            seed=trial.seed,
            editor=trial.editor,
            model=trial.model,
            metrics=plan.metrics,
            batches=plan.batches,
            inputs=trial.inputs,
            n_conflicts=plan.n_conflicts,
            sheets=sheets,
        )

    @property
    def is_unedited(self) -> bool:
        """Whether the trial is of the unedited model."""
        return isinstance(self.editor, Unedited)


@dataclass(frozen=True)
class TrialOutcome:
    """What came out of a trial.

    Attributes:
        record: How it went.
        values: Id of the case or text, name of the row metric, and value; none if it failed.
        transcripts: What was asked about each case, and what the model said; none if it failed.
        spoiled: Why the model is of no use to later trials, as these are told; None if it is. An
            editor broke its contract and left it changed, or its device failed.
    """

    record: TrialRecord
    values: Sequence[tuple[str, str, float]] = ()
    transcripts: Sequence[CaseTranscript] = ()
    spoiled: str | None = None


def run_trial(
    work: Work,
    conditions: Conditions,
    unedited: Callable[[], Answers],
    on_progress: Progress,
) -> TrialOutcome:
    """Run a trial; whatever goes wrong in it is part of the outcome.

    Args:
        work: The trial.
        conditions: What it is run with.
        unedited: Returns what the unedited model answers to at least its questions; called once,
            if an edit changes nothing.
        on_progress: Told about the work as it advances.
    """
    seconds = {"edit": 0.0, "answer": 0.0}
    cards: list[dict[str, Any]] = []
    changed_something = work.is_unedited
    message = trace = None
    values: list[tuple[str, str, float]] = []
    transcripts: list[CaseTranscript] = []
    known: Answers = {}
    memory = PeakMemory(work.model.device)
    operation = f"trial of '{work.editor.name}' on '{work.model.name}'"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            with explaining_out_of_memory(operation):
                for batch in work.batches:
                    check_requests(work.model, (case.request for case in batch.cases))
                resources = work.inputs.resources(work.seed, conditions.cache, on_progress)
                for index, batch in enumerate(work.batches):
                    if len(work.batches) > 1:
                        on_progress("batches", index, len(work.batches))
                    began = perf_counter()
                    requests = [case.request for case in batch.cases]
                    edit = work.editor.edit(work.model, requests, resources)
                    edited = perf_counter()
                    if edit.changes_something:
                        answers = _ask(work, batch, edit, conditions, on_progress)
                    else:
                        known = known or unedited()
                        answers = {question: known[question] for question in batch.questions}
                    seconds["edit"] += edited - began
                    seconds["answer"] += perf_counter() - edited
                    cards.append(edit.card.model_dump(mode="json"))
                    changed_something = changed_something or edit.changes_something
                    values += measure(batch, work.metrics, answers)
                    transcripts += transcribe(batch.cases, answers)
        except (Exception, SystemExit) as error:  # its failure must not take the others with it
            message, trace = describe(error), traceback.format_exc()
        spoiled = None
        try:
            if trace is not None:
                free_memory_of_errors()  # the next trial may need what this one had
            if work.model.state != work.model.fingerprint:
                spoiled = _say_changed(work)
                message = _join(
                    message,
                    f"editor '{work.editor.name}' left the model changed: it must return an edit "
                    "and give the model back bit-identical. 'editbench check' tests an editor for "
                    "that.",
                )
        except Exception as error:  # after an error on it a CUDA device answers nothing any more
            spoiled = _say_unreadable(work, error)
            message, trace = _join(message, spoiled), trace or traceback.format_exc()
    status: Status = "error" if message else "ok" if changed_something else "no_effect"
    record = TrialRecord(
        trial=work.trial,
        status=status,
        message=message,
        traceback=trace,
        finished=now(),
        seconds=seconds,
        peak_memory_bytes=memory.measure(),
        n_conflicts=work.n_conflicts,
        edits=tuple(cards),
        warnings=tuple(dict.fromkeys(str(warning.message) for warning in caught)),
    )
    if status == "error":
        return TrialOutcome(record, spoiled=spoiled)
    return TrialOutcome(record, values, transcripts)


def failed_trial(work: Work, message: str) -> TrialOutcome:
    """The outcome of a trial that could not even be begun, or that nothing came back of."""
    return _failure(work.trial, message, n_conflicts=work.n_conflicts)


def unplanned_trial(plan: PlannedTrial, error: PluginError) -> TrialOutcome:
    """The outcome of a trial that could not be planned."""
    trace = "".join(traceback.format_exception(error))
    return _failure(plan.trial.hash, describe(error), traceback=trace)


def _failure(trial: str, message: str, **more: Any) -> TrialOutcome:
    finished = now()
    return TrialOutcome(
        TrialRecord(trial=trial, status="error", message=message, finished=finished, **more)
    )


def describe(error: BaseException) -> str:
    """One line: the message of an error that explains itself, else its type as well."""
    text = " ".join(" ".join([str(error), *getattr(error, "__notes__", ())]).split())
    return text if isinstance(error, EditbenchError) else f"{type(error).__name__}: {text}"


def now() -> str:
    """The time, ISO 8601 with time zone."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _join(first: str | None, then: str) -> str:
    """The message of what went wrong first, and of what did after that."""
    return then if first is None else f"{first.rstrip('.')}. After that: {then}"


def _say_changed(work: Work) -> str:
    return (
        f"run trial: the weights of '{work.model.name}' are not what they were, since editor "
        f"'{work.editor.name}' changed them. Resume the run without that editor."
    )


def _say_unreadable(work: Work, error: Exception) -> str:
    return (
        f"run trial: the weights of '{work.model.name}' cannot be read after a trial of editor "
        f"'{work.editor.name}', got {describe(error).rstrip('.')}. Its device may have failed: "
        "resume the run in another process."
    )


def _ask(
    work: Work, batch: Batch, edit: Edit, conditions: Conditions, on_progress: Progress
) -> Answers:
    with edit.applied(work.model):
        return answer_questions(
            work.model,
            batch.questions,
            seed=work.seed,
            token_budget=conditions.token_budget or work.model.memory.tokens,
            on_progress=lambda done, total: on_progress("answers", done, total),
        )
