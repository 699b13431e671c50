"""What answering questions costs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain, groupby
from typing import Any

from editbench.costs.stage import Forward, StageCost, add_stages, sum_cost
from editbench.models.answering import word_as_asked
from editbench.models.batches import Padded
from editbench.models.divergence import make_compared_rows
from editbench.models.editable import EditableModel
from editbench.models.generation import PromptExtent, batch_prompts
from editbench.models.passages import Opening, Passage, RowExtent
from editbench.models.reading import cut_text
from editbench.models.scoring import batch_passages, make_openings, make_passages
from editbench.questions import Diverge, Generate, PlainQuestion, Read, Score, Write


def estimate_answers(
    model: EditableModel,
    questions: Iterable[PlainQuestion],
    token_budget: int | None = None,
    *,
    preface: Callable[[str], str] | None = None,
    is_edited: bool = True,
) -> list[StageCost]:
    """What `answer_questions` costs: the batches that it will run, counted and not run.

    Args:
        model: The model, with weights or without.
        questions: The questions; each is asked once.
        token_budget: At most how many tokens one forward pass holds; None chooses by device.
        preface: What an edit of prompts will put before each; None for nothing. See
            `Editor.preface`.
        is_edited: Whether an edit will be on the model, so that it is compared with itself before.

    Returns:
        A stage of scores and one of generated texts, if there are such questions.
    """
    with nullcontext() if preface is None else model.prefacing(preface):
        return _estimate_answers(model, questions, token_budget, is_edited=is_edited)


def _estimate_answers(
    model: EditableModel,
    questions: Iterable[PlainQuestion],
    token_budget: int | None,
    *,
    is_edited: bool,
) -> list[StageCost]:
    budget = model.memory.tokens if token_budget is None else token_budget
    asked = list(dict.fromkeys(word_as_asked(model, each) for each in questions))
    scores = make_passages(model, [each for each in asked if isinstance(each, Score)])
    openings = make_openings(model, [each for each in asked if isinstance(each, Write)])
    texts = chain.from_iterable(
        cut_text(model, each, each.text) for each in asked if isinstance(each, Read)
    )
    prompts = [question for question in asked if isinstance(question, Generate)]
    compared = [each for each in asked if isinstance(each, Diverge)] if is_edited else []
    stages = [
        _estimate_scores(model, scores, budget, openings),
        _estimate_scores(model, list(texts), budget),
        *(  # without the edits and with them
            _estimate_scores(model, _make_compared_passages(model, compared, as_asked), budget)
            for as_asked in (False, True)
        ),
        _estimate_texts(model, prompts, budget),
    ]
    return add_stages(stage for stage in stages if stage.n_tokens)


def _make_compared_passages(
    model: EditableModel, questions: Iterable[Diverge], as_asked: bool
) -> list[Passage[Any]]:
    return [
        Passage(each, ids[: places.start + 1], ids[places.start : places.stop])
        for each in questions
        for _, ids, places in make_compared_rows(model, each, as_asked=as_asked)
    ]


def _estimate_scores(
    model: EditableModel,
    passages: Sequence[Passage[Any]],
    budget: int,
    openings: Sequence[Opening[Any]] = (),
) -> StageCost:
    extents = [batch.extent for batch in batch_passages(model, passages, budget, openings)]
    prefixes = _run_prefixes(model, extents)
    forwards = chain(prefixes, chain.from_iterable(_score(model, extent) for extent in extents))
    n_passes = len(prefixes) + sum(1 + bool(extent.branches.n_rows) for extent in extents)
    return replace(
        sum_cost("answers: scores", forwards, model.size),
        chunks=f"{n_passes:,} batches of at most {budget:,} tokens",
    )


def _run_prefixes(
    model: EditableModel, extents: Iterable[RowExtent | PromptExtent]
) -> list[Forward]:
    """What rows begin with, once for all batches of them, which follow each other."""
    prefixes = [prefix for prefix, _ in groupby(extent.prefix for extent in extents) if prefix]
    return [Forward(Padded.of([prefix]), model.size.n_layers) for prefix in prefixes]


def _score(model: EditableModel, extent: RowExtent) -> Iterator[Forward]:
    """Rows, and their branches and texts behind them; texts may end sooner."""
    n_blocks, branches, n_shared = model.size.n_layers, extent.branches, len(extent.prefix)
    n_reads = extent.n_reads - branches.n_tokens
    yield Forward(extent.rows, n_blocks, n_shared=n_shared, n_reads=n_reads)
    if branches.n_rows:
        yield Forward(
            branches, n_blocks, extent.rows.width, n_shared=n_shared, n_reads=branches.n_tokens
        )
    texts = extent.texts
    yield from _write_on(model, texts.n_rows, extent.rows.width, texts.width, n_shared)


def _estimate_texts(model: EditableModel, questions: Sequence[Generate], budget: int) -> StageCost:
    extents = [batch.extent for batch in batch_prompts(model, questions, budget)]
    prefixes = _run_prefixes(model, extents)
    forwards = chain(prefixes, chain.from_iterable(_write(model, extent) for extent in extents))
    stage = sum_cost("answers: texts", forwards, model.size)
    n_cached = max((extent.prompts.n_rows * extent.width for extent in extents), default=0)
    largest = max((extent.prompts.n_rows for extent in extents), default=0)
    return replace(
        stage,
        n_peak_bytes=stage.n_peak_bytes + n_cached * model.size.n_cache_bytes,
        chunks=f"{len(extents):,} batches of at most {largest:,} texts",
    )


def _write(model: EditableModel, extent: PromptExtent) -> Iterator[Forward]:
    """The prompts, padding included, and then a token at a time; the last one is not read."""
    n_rows, width, n_steps = extent.prompts.n_rows, extent.prompts.width, extent.n_missing
    n_shared = len(extent.prefix)
    prompts = Padded.full(n_rows, width)
    yield Forward(prompts, model.size.n_layers, n_shared=n_shared, n_reads=n_rows)
    yield from _write_on(model, n_rows, width, n_steps, n_shared)


def _write_on(
    model: EditableModel, n_rows: int, width: int, n_steps: int, n_shared: int
) -> Iterator[Forward]:
    """`n_steps` tokens behind rows that have been read, of which the first takes no pass."""
    if n_steps > 1:
        # What is there before a token grows; its mean is what costs go by.
        one, before = Padded.full(n_rows, 1), width + (n_steps - 2) // 2
        yield Forward(
            one,
            model.size.n_layers,
            before,
            n_shared=n_shared,
            n_reads=n_rows,
            n_times=n_steps - 1,
        )
