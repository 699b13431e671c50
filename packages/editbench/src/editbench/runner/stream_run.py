"""One stream of edits: batch after batch, asked at checkpoints, each kept when it is done."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from time import perf_counter

import pandas as pd

from editbench.edits.card import EditCard
from editbench.progress import Progress
from editbench.questions import Answers, Before
from editbench.requests import cut_batches, find_superseded
from editbench.results.quantities import evaluate
from editbench.results.stream_records import CheckpointRecord, FactRecord
from editbench.runner.checkpoints import Checkpoint, StreamFolder, last_of
from editbench.runner.conditions import Conditions
from editbench.runner.measuring import Measurement, facts_of, measure
from editbench.runner.prepare import PreparedTrial
from editbench.runner.provenance import describe_rows
from editbench.runner.transcribing import transcribe
from editbench.runner.trial import CaseBatch


def run_stream(
    trial: PreparedTrial,
    conditions: Conditions,
    unedited: Callable[[], Answers],
    on_progress: Progress,
) -> Iterator[Checkpoint]:
    """Write the batches of a trial one after another, and ask at its checkpoints.

    Checkpoints that are kept already are not asked again, and the stream goes on from the last of
    them. One that cannot put down what it carries is written again up to there.

    Args:
        trial: The trial.
        conditions: What it is run with.
        unedited: What the unedited model answers, as for `run_trial`.
        on_progress: Told about batches, and what they do.

    Yields:
        Checkpoints in their order, up to the last or to one at which the stream stops.
    """
    folder, carried = None, None
    known: list[Checkpoint] = []
    if conditions.streams is not None:
        folder = StreamFolder(conditions.streams / trial.hash, trial.hash)
        known, carried = folder.read()
    yield from known
    n_known, writes = last_of(known), trial.writes
    if n_known == trial.n_cases or (known and known[-1].stops):
        return
    resources = trial.inputs.resources(trial.seed, conditions.cache, on_progress)
    stream = trial.editor.open_stream(trial.model, resources, carried)
    n_written, n_carried, seconds = 0, n_known if carried is not None else 0, 0.0
    for index, batch in enumerate(writes):
        n_written += len(batch)
        if n_written <= n_carried:
            continue
        on_progress("batches", index, len(writes))
        began = perf_counter()
        if n_written <= n_known or n_written not in trial.checkpoints:
            stream.add(batch)
            seconds += perf_counter() - began
            continue
        edit = stream.write(batch)
        seconds += perf_counter() - began
        on_progress("batches", index + 1, len(writes))
        began = perf_counter()
        asked = trial.asked_at(n_written)
        answers = conditions.ask(trial, asked, edit, unedited, on_progress)
        values = measure(asked, trial.metrics, answers, checkpoint=n_written, card=edit.card)
        examine = conditions.examiner.examine
        values += examine(trial, asked, edit, on_progress, checkpoint=n_written)
        before = partial(_measure_unedited, trial, asked, conditions, unedited, on_progress)
        norms = edit.card.extra.get("updates", {})
        checkpoint = Checkpoint(
            trial=trial.hash,
            record=CheckpointRecord(
                n_written=n_written,
                n_superseded=n_written - len(asked.cases),
                update_norms={name: each["relative_norm"] for name, each in norms.items()},
                key_drift=_drift_by_batch(trial, stream.measure_drift(edit)),
                seconds={"edit": seconds, "answer": perf_counter() - began},
            ),
            values=tuple(values),
            transcripts=tuple(
                transcribe(trial.batches[0].unmasked[:n_written], asked, trial.metrics, answers)
            ),
            card=edit.card.model_dump(mode="json"),
            changes_something=edit.changes_something,
            stops=_judge(trial, values, before),
        )
        if folder is not None:
            goes_on = n_written < trial.n_cases and not checkpoint.stops
            folder.keep(checkpoint, stream.carried if goes_on else None)
        yield checkpoint
        if checkpoint.stops:
            return
        seconds = 0.0


def tell_facts(trial: PreparedTrial, checkpoint: Checkpoint) -> list[FactRecord]:
    """What became of all facts that had been written at a checkpoint."""
    requests = trial.batches[0].requests[: checkpoint.record.n_written]
    superseded = find_superseded(requests)
    last_place = {request.fact: place for place, request in enumerate(requests)}
    told = {fact["case_id"]: fact for fact in facts_of(EditCard.model_validate(checkpoint.card))}
    records = []
    for place, request in enumerate(requests):
        fact, later = told.get(request.case_id, {}), superseded.get(place)
        records.append(
            FactRecord(
                case_id=request.case_id,
                batch=last_place[request.fact] // (trial.batch_size or len(requests)),
                status=fact.get("status") if later is None else "superseded",
                why=fact.get("why"),
                superseded_by=None if later is None else requests[later].case_id,
            )
        )
    return records


def _drift_by_batch(
    trial: PreparedTrial, drift: Mapping[int, Sequence[float]]
) -> dict[str, tuple[float | None, ...]]:
    """The mean over the facts of each batch that were written at a layer; None where none was."""
    return {
        str(layer): tuple(
            round(sum(known) / len(known), 6) if known else None
            for part in cut_batches(moved, trial.batch_size)
            for known in [[each for each in part if not math.isnan(each)]]
        )
        for layer, moved in drift.items()
    }


def _judge(
    trial: PreparedTrial,
    values: Sequence[Measurement],
    unedited: Callable[[], Sequence[Measurement]],
) -> str | None:
    """Why a stream ends at a checkpoint; None if it goes on."""
    rule = trial.stop_when
    if rule is None:
        return None
    before = unedited() if rule.is_relative else values
    value, reference = (_evaluate(trial, rule.metric, each) for each in (values, before))
    if value is None or reference is None:
        warnings.warn(
            f"--stop-when {rule}: no fact has a {rule.metric} at a checkpoint, where the stream "
            "goes on unjudged.",
            stacklevel=2,
        )
        return None
    return rule.judge(value, reference)


def _measure_unedited(
    trial: PreparedTrial,
    asked: CaseBatch,
    conditions: Conditions,
    unedited: Callable[[], Answers],
    on_progress: Progress,
) -> list[Measurement]:
    """What the unedited model comes to on the questions of a checkpoint."""
    known = unedited()
    answers: Answers = {
        **{question: known[question] for question in asked.questions},
        **{Before(question): known[question] for question in asked.before},
    }
    return [
        *measure(asked, trial.metrics, answers, checkpoint=0),
        *conditions.examiner.examine(trial, asked, None, on_progress, checkpoint=0),
    ]


def _evaluate(trial: PreparedTrial, metric: str, values: Sequence[Measurement]) -> float | None:
    """A metric's mean, or a score, as a report has it; None where no case has a value."""
    frame = pd.DataFrame([each[:3] for each in values], columns=["unit", "metric", "value"])
    table = frame.pivot(index="unit", columns="metric", values="value")
    described = [each for metric in trial.metrics for each in describe_rows(metric)]
    return evaluate(table, described).get(metric)
