"""``--plan``: what a command would compute, and what it says of that before long work."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from editbench.cli.layers import WantedLayers
from editbench.cli.options import shared
from editbench.cli.progress import ProgressDisplay
from editbench.cli.terminal import lay_out, terminal_width
from editbench.errors import ConfigError

if TYPE_CHECKING:
    from editbench.costs.plan import Plan, Work
    from editbench.costs.stage import ExpectedCache, StageCost
    from editbench.editors.base import Editor, Resources
    from editbench.models.architecture import ProjectionKind
    from editbench.models.editable import EditableModel
    from editbench.requests import EditRequest
    from editbench.runner import PreparedRun
    from editbench.runner.prepare import PreparedTrial
    from editbench.runner.trial import CaseBatch
    from editbench.second_moments.collection_work import TokenCount

_LONG_SECONDS = 30.0
_N_ESTIMATED = 20  # of the batches of a stream
_ALONE = "That is the time of this machine working alone; a cluster's machines share the work."


plan_option = shared(
    "--plan",
    "only_plan",
    is_flag=True,
    help="Say what would be computed, how much memory it takes and how long, and stop. Of a model "
    "folder, configuration and tokenizer are enough. The machine's speed is measured once, in a "
    "second or two, and kept in the cache folder.",
)


def refuse_tracing(layers: WantedLayers) -> None:
    """Refuse ``--layers auto`` in a plan: finding them takes the weights, and time.

    Raises:
        ConfigError: That is what is asked for.
    """
    if layers.is_auto:
        raise ConfigError(
            f"--plan: nothing is computed, so no layers can be traced, got --layers {layers.text}. "
            "Give numbers."
        )


def show_plan(work: "Sequence[Work]", cache: Path | None, *, is_divided: bool = False) -> None:
    """Print what some work will cost; in `cache` this machine's speed is kept, once it is measured.

    `is_divided` says that a cluster will do it, which may have any number of machines.
    """
    from editbench.costs.plan import Plan

    plan = Plan.of(work, cache)
    lines = list(plan.describe())
    text = "\n".join(lines)
    if plan.work and max(map(len, lines)) > terminal_width():
        text = _lay_out_plan(plan)
    click.echo(text.rstrip("\n"))
    if is_divided:
        click.echo(_ALONE)


def _lay_out_plan(plan: "Plan") -> str:
    """A plan whose lines are too long for the terminal."""
    from editbench.costs.plan import HEADER
    from editbench.results.tables.model import Cell, Column, Table
    from editbench.results.tables.terminal import draw_table

    stage, *numbers = HEADER
    columns = (Column(stage), *(Column(name, align="right") for name in numbers), Column("parts"))
    tables = [
        Table(
            piece.label,
            columns,
            (tuple(tuple(map(Cell, plan.describe_stage(piece, each))) for each in piece.stages),),
        )
        for piece in plan.work
    ]
    return lay_out(*map(draw_table, tables), *plan.describe_total())


def announce(
    work: "Sequence[Work]",
    cache: Path | None,
    display: ProgressDisplay,
    *,
    is_divided: bool = False,
) -> None:
    """Say what work will cost, if it is long; `cache` and `is_divided` are as for `show_plan`."""
    from editbench.costs.machine import SLOW
    from editbench.costs.plan import Plan

    at_most = sum(SLOW.seconds(stage) for piece in work for stage in piece.stages)
    if at_most < _LONG_SECONDS:
        return  # not worth a measurement
    plan = Plan.of(work, cache)
    if (plan.total_seconds or 0.0) >= _LONG_SECONDS:
        for line in plan.summarize():
            display.say(line)
        if is_divided:
            display.say(_ALONE)


def work_of_trials(
    run: "PreparedRun", cache: Path | None, *, resumed: Path | None = None
) -> "list[Work]":
    """What trials will compute, those before them in the same run taken into account.

    What the folder of a `resumed` run has finished is left out.
    """
    from editbench.costs.answers import estimate_answers
    from editbench.costs.plan import Work
    from editbench.costs.stage import ExpectedCache, StageCost, add_stages
    from editbench.progress import report_nothing
    from editbench.results.store import has_succeeded
    from editbench.runner.trial_run import describe

    expected = ExpectedCache()
    # Trials share what they are asked, and that costs the same after every editor.
    answered: dict[tuple[object, ...], list[StageCost]] = {}
    work = []
    for trial in run.prepared:
        unedited = trial.questionnaires if trial.asks_unedited else ()
        if resumed is not None and has_succeeded(resumed, trial.hash):
            if cache is not None:  # where its answers are
                expected.keys.update(("answers", id(each)) for each in unedited)
            continue
        resources = trial.inputs.resources(trial.seed, cache, report_nothing)
        stages: list[StageCost] = []
        if trial.failure is not None:
            stages.append(StageCost.unknown(trial.editor.name, describe(trial.failure)))
        # Batches that do not follow one another are each written into the unedited model.
        streams = [trial.writes] if trial.batch_size else [[each] for each in trial.writes]
        for batches in streams:
            stages += _ask_stream(trial.editor, trial.model, batches, resources, expected)
        for questionnaire in unedited:  # which are asked once in a run
            if expected.add("answers", id(questionnaire)):
                asked = questionnaire.questions
                asking = partial(estimate_answers, trial.model, asked, is_edited=False)
                stages += _ask("answers", asking)
        for batch in () if trial.is_unedited else trial.asks:
            stages += _ask("answers", partial(_estimate_asking, trial, batch, answered))
        stages += _of_model_metrics(trial)
        work.append(Work(trial.label, trial.model, tuple(add_stages(stages))))
    return work


def _estimate_asking(
    trial: "PreparedTrial", batch: "CaseBatch", known: "dict[tuple[object, ...], list[StageCost]]"
) -> "list[StageCost]":
    """What it takes to ask about a batch; `known` is what others of the same questions take."""
    from editbench.costs.answers import estimate_answers

    preface = trial.editor.preface(batch.requests)
    if preface is not None:
        return estimate_answers(trial.model, batch.questions, preface=preface)
    key = (trial.model.fingerprint, batch.questions)
    if key not in known:
        known[key] = estimate_answers(trial.model, batch.questions)
    return known[key]


def _of_model_metrics(trial: "PreparedTrial") -> "Iterator[StageCost]":
    """What metrics that ask the model itself take: only they know, so it is named, not counted."""
    from editbench.costs.stage import StageCost

    units: dict[str, int] = {}
    for batch in trial.batches if trial.is_unedited else trial.asks:
        for name, own in batch.units.items():
            units[name] = units.get(name, 0) + len(own)
    for name, n in units.items():
        yield StageCost.unknown(name, f"{n:,} documents, whose cost is not estimated")


def work_of_edit(
    editor: "Editor",
    model: "EditableModel",
    batches: "Sequence[Sequence[EditRequest]]",
    resources: "Resources",
    *,
    with_check: bool,
) -> "list[Work]":
    """What computing one edit takes; with a check, the model is asked before and after it."""
    from editbench.costs.answers import estimate_answers
    from editbench.costs.plan import Work
    from editbench.costs.stage import ExpectedCache, add_stages
    from editbench.models.greedy import go_on

    requests = [request for batch in batches for request in batch]
    stages = _ask_stream(editor, model, batches, resources, ExpectedCache())
    if with_check:
        questions = [request.question for request in requests]
        texts = [go_on(model, question) for question in questions]
        stages += 2 * _ask("answers", partial(estimate_answers, model, [*questions, *texts]))
    label = f"{editor.name} on {model.name}, {len(requests):,} edits"
    return [Work(label, model, tuple(add_stages(stages)))]


def work_of_collection(
    model: "EditableModel",
    layers: "Sequence[int]",
    n_tokens: "TokenCount",
    module: "ProjectionKind",
    n_shards: int,
) -> "list[Work]":
    """What collecting one of several shards of second moments takes, of `n_tokens` in all."""
    from editbench.costs.plan import Work
    from editbench.second_moments.collection_work import STAGE, estimate_collection

    share = n_tokens if n_tokens == "auto" else -(-n_tokens // n_shards)
    stages = _ask(STAGE, lambda: [estimate_collection(model, layers, share, module)])
    return [Work(f"second moments of {model.name}", model, tuple(stages))]


def _ask_stream(
    editor: "Editor",
    model: "EditableModel",
    batches: "Sequence[Sequence[EditRequest]]",
    resources: "Resources",
    expected: "ExpectedCache",
) -> "list[StageCost]":
    """Estimate what writing batches one after another takes.

    What is found on an edited model no cache of the unedited one holds, and what is made once for a
    model is made for the first batch. Of many batches some are estimated, and stand for those after
    them.
    """
    from editbench.editors.solve_estimates import NULL_SPACES
    from editbench.second_moments.collection_work import STAGE

    stages: list[StageCost] = []
    found: list[StageCost] = []
    apart = -(-len(batches) // _N_ESTIMATED)
    for index, batch in enumerate(batches):
        if index < 2 or index % apart == 0:
            given = replace(resources, cache=None) if index else resources
            found = _ask(editor.name, partial(editor.estimate, model, batch, given, expected))
        stages += [each for each in found if index == 0 or each.name not in (STAGE, NULL_SPACES)]
    return stages


def _ask(name: str, estimate: "Callable[[], Sequence[StageCost]]") -> "list[StageCost]":
    """Estimate some work; where that fails the work may fail, too, which is reported then."""
    from editbench.costs.stage import StageCost

    try:
        return list(estimate())
    except Exception as error:
        return [StageCost.unknown(name, " ".join(str(error).split()))]
