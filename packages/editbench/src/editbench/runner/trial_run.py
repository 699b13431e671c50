"""One trial, wherever it is run: edit, ask, measure."""

import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from time import perf_counter
from typing import Any

from editbench.editors.subject_tokens import check_requests
from editbench.errors import EditbenchError, PluginError
from editbench.models.out_of_memory import explaining_out_of_memory, free_memory_of_errors
from editbench.progress import Progress
from editbench.questions import Answers
from editbench.results.row import Status
from editbench.results.store import TrialRecord
from editbench.results.stream_records import CheckpointRecord, FactRecord
from editbench.results.transcript import CaseTranscript
from editbench.runner.conditions import Conditions
from editbench.runner.measuring import Measurement, measure
from editbench.runner.prepare import PreparedTrial
from editbench.runner.provenance import PeakMemory
from editbench.runner.stream_run import run_stream, tell_facts
from editbench.runner.transcribing import transcribe


@dataclass(frozen=True)
class TrialOutcome:
    """What came out of a trial.

    Attributes:
        record: How it went.
        values: The numbers; none if it failed.
        transcripts: What was asked about each case, and what the model said; none if it failed.
        spoiled: Why the model is of no use to later trials, as these are told; None if it is. An
            editor broke its contract and left it changed, or its device failed.
    """

    record: TrialRecord
    values: Sequence[Measurement] = ()
    transcripts: Sequence[CaseTranscript] = ()
    spoiled: str | None = None


def run_trial(
    trial: PreparedTrial,
    conditions: Conditions,
    unedited: Callable[[], Answers],
    on_progress: Progress,
) -> TrialOutcome:
    """Run a trial; whatever goes wrong in it is part of the outcome.

    `unedited` returns what the unedited model answers to at least the trial's questions; it is
    called once, if an edit changes nothing or metrics compare with it.
    """
    found = _Found(changed_something=trial.is_unedited)
    message = trace = None
    memory = PeakMemory(trial.model.device)
    operation = f"trial of '{trial.editor.name}' on '{trial.model.name}'"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            with explaining_out_of_memory(operation):
                for batch in trial.batches:
                    check_requests(trial.model, batch.requests)
                if n_masked := sum(batch.n_masked for batch in trial.batches):
                    warnings.warn(
                        f"portability: {n_masked} probes do not count, since other requests of "
                        "their batch change what they follow from, or one that they follow from "
                        "is not in it.",
                        stacklevel=2,
                    )
                gather = _write_apart if trial.batch_size is None else _write_stream
                gather(found, trial, conditions, cache(unedited), on_progress)
        except (Exception, SystemExit) as error:  # its failure must not take the others with it
            message, trace = describe(error), traceback.format_exc()
        spoiled = None
        try:
            if trace is not None:
                free_memory_of_errors()  # the next trial may need what this one had
            if trial.model.state != trial.model.fingerprint:
                spoiled = (
                    f"run trial: the weights of '{trial.model.name}' are not what they were, since "
                    f"editor '{trial.editor.name}' changed them. Resume the run without that "
                    "editor."
                )
                message = _join(
                    message,
                    f"editor '{trial.editor.name}' left the model changed: it must return an edit "
                    "and give the model back bit-identical. 'editbench check' tests an editor for "
                    "that.",
                )
        except Exception as error:  # after an error on it a CUDA device answers nothing any more
            spoiled = (
                f"run trial: the weights of '{trial.model.name}' cannot be read after a trial of "
                f"editor '{trial.editor.name}', got {describe(error).rstrip('.')}. Its device may "
                "have failed: resume the run in another process."
            )
            message, trace = _join(message, spoiled), trace or traceback.format_exc()
    status: Status = "error" if message else "ok" if found.changed_something else "no_effect"
    record = TrialRecord(
        trial=trial.hash,
        status=status,
        message=message,
        traceback=trace,
        finished=now(),
        seconds=found.seconds,
        peak_memory_bytes=memory.measure(),
        n_conflicts=trial.n_conflicts,
        n_known=trial.n_known,
        n_shared_subjects=trial.n_shared_subjects,
        edits=tuple(found.cards),
        warnings=tuple(dict.fromkeys(str(warning.message) for warning in caught)),
        checkpoints=tuple(found.checkpoints),
        facts=tuple(found.facts),
        stopped=found.stopped,
    )
    if status == "error":
        return TrialOutcome(record, spoiled=spoiled)
    return TrialOutcome(record, found.values, found.transcripts)


@dataclass
class _Found:
    """What has come out of a trial so far."""

    changed_something: bool
    seconds: dict[str, float] = field(default_factory=lambda: {"edit": 0.0, "answer": 0.0})
    cards: list[dict[str, Any]] = field(default_factory=list)
    values: list[Measurement] = field(default_factory=list)
    transcripts: Sequence[CaseTranscript] = ()
    checkpoints: list[CheckpointRecord] = field(default_factory=list)
    facts: Sequence[FactRecord] = ()
    stopped: str | None = None


def _write_apart(
    found: _Found,
    trial: PreparedTrial,
    conditions: Conditions,
    unedited: Callable[[], Answers],
    on_progress: Progress,
) -> None:
    """Write each batch at once, into the unedited model, and ask about it."""
    resources = trial.inputs.resources(trial.seed, conditions.cache, on_progress)
    for index, batch in enumerate(trial.batches):
        if len(trial.batches) > 1:
            on_progress("batches", index, len(trial.batches))
        began = perf_counter()
        edit = trial.editor.edit(trial.model, batch.requests, resources)
        edited = perf_counter()
        answers = conditions.ask(trial, batch, edit, unedited, on_progress)
        n_written = len(batch.cases)
        examine = conditions.examiner.examine
        examined = examine(trial, batch, edit, on_progress, checkpoint=n_written)
        found.seconds["edit"] += edited - began
        found.seconds["answer"] += perf_counter() - edited
        found.cards.append(edit.card.model_dump(mode="json"))
        found.changed_something = found.changed_something or edit.changes_something
        found.values += measure(batch, trial.metrics, answers, checkpoint=n_written, card=edit.card)
        found.values += examined
        told = transcribe(batch.unmasked, batch, trial.metrics, answers)
        found.transcripts = [*found.transcripts, *told]


def _write_stream(
    found: _Found,
    trial: PreparedTrial,
    conditions: Conditions,
    unedited: Callable[[], Answers],
    on_progress: Progress,
) -> None:
    """Write all batches one after another, and ask at checkpoints; the last one is the trial's."""
    for checkpoint in run_stream(trial, conditions, unedited, on_progress):
        for stage, seconds in checkpoint.record.seconds.items():
            found.seconds[stage] += seconds
        found.cards = [checkpoint.card]
        found.values += checkpoint.values
        found.transcripts = checkpoint.transcripts
        found.checkpoints.append(checkpoint.record)
        found.changed_something = found.changed_something or checkpoint.changes_something
        found.facts = tell_facts(trial, checkpoint)
        n_written = checkpoint.record.n_written
        if checkpoint.stops and n_written == trial.n_cases:
            warnings.warn(
                f"--stop-when: the rule is broken when all facts are written: {checkpoint.stops}. "
                "A stream can only end in time at a --checkpoint.",
                stacklevel=2,
            )
        elif checkpoint.stops:
            found.stopped = f"after {n_written:,} of {trial.n_cases:,} facts: {checkpoint.stops}"


def failed_trial(trial: PreparedTrial, reason: str | PluginError) -> TrialOutcome:
    """The outcome of a trial that was not begun, could not be prepared, or was lost on its way."""
    trace = None if isinstance(reason, str) else "".join(traceback.format_exception(reason))
    return TrialOutcome(
        TrialRecord(
            trial=trial.hash,
            status="error",
            message=reason if isinstance(reason, str) else describe(reason),
            traceback=trace,
            finished=now(),
            n_conflicts=trial.n_conflicts,
            n_known=trial.n_known,
            n_shared_subjects=trial.n_shared_subjects,
        )
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
