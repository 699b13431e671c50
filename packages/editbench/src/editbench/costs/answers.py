"""What answering questions costs."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from editbench.costs.stage import StageCost, add_stages
from editbench.models.editable import EditableModel
from editbench.models.generation import batch_openings
from editbench.models.passages import Passage
from editbench.models.reading import cut_text
from editbench.models.scoring import batch_passages, make_passages
from editbench.questions import Generate, Question, Read, Score


def plan_answers(
    model: EditableModel, questions: Iterable[Question], token_budget: int | None = None
) -> list[StageCost]:
    """What `answer_questions` costs: what it will run, counted and not run.

    Args:
        model: The model, with weights or without.
        questions: The questions; each is asked once.
        token_budget: At most how many tokens one forward pass holds; None chooses by device.

    Returns:
        A stage of scores and one of generated texts, if there are such questions.
    """
    budget = model.token_budget if token_budget is None else token_budget
    asked = list(dict.fromkeys(questions))
    scores = make_passages(model, [each for each in asked if isinstance(each, Score)])
    texts = chain.from_iterable(cut_text(model, each) for each in asked if isinstance(each, Read))
    openings = [question for question in asked if isinstance(question, Generate)]
    stages = [
        _plan_scores(model, scores, budget),
        _plan_scores(model, list(texts), budget),
        _plan_texts(model, openings, budget),
    ]
    return add_stages(stage for stage in stages if stage.n_tokens)


def _plan_scores(model: EditableModel, passages: Sequence[Passage[Any]], budget: int) -> StageCost:
    size = model.size
    n_tokens = n_pairs = n_reads = n_batches = 0
    peak = 0.0
    for batch in batch_passages(model, passages, budget):
        width = max(len(row.ids) for row in batch)
        branches = [branch for row in batch for branch in row.branches]
        branch_width = max((len(branch.ids) for branch in branches), default=0)
        n_places = sum(row.n_reads for row in batch)
        n_batches += 1 + bool(branches)
        n_tokens += len(batch) * width + len(branches) * branch_width
        n_pairs += len(batch) * width**2
        n_pairs += len(branches) * branch_width * (width + branch_width)
        n_reads += n_places
        cached = len(branches) * (width + branch_width) * size.n_cache_bytes
        forward = len(batch) * width * size.working_bytes(width)
        peak = max(peak, cached + forward, n_places * size.logit_bytes(with_loss=False))
    return StageCost(
        name="answers: scores",
        n_tokens=n_tokens,
        n_flops=size.n_layers * size.block_flops(n_tokens, n_pairs) + size.head_flops(n_reads),
        n_read_bytes=n_batches * size.n_weight_bytes,
        n_block_calls=n_batches * size.n_layers,
        n_peak_bytes=peak,
        chunks=f"{n_batches:,} batches of at most {budget:,} tokens",
    )


def _plan_texts(model: EditableModel, questions: Sequence[Generate], budget: int) -> StageCost:
    size = model.size
    n_tokens = n_pairs = n_reads = n_passes = n_batches = largest = 0
    peak = n_cached = 0.0
    for batch in batch_openings(model, questions, budget):
        prompt = max(len(opening.ids) for opening in batch)
        n_steps = max(opening.n_missing for opening in batch)
        n_rows, width = len(batch), prompt + n_steps
        n_batches += 1
        largest = max(largest, n_rows)
        n_passes += n_steps
        n_tokens += n_rows * (width - 1)  # the last token is written and not read
        # The prompt attends to itself; each further token to what there is so far.
        n_attended = prompt**2 + sum(range(prompt + 1, width))
        n_pairs += n_rows * n_attended
        n_cached += n_rows * sum(range(prompt + 1, width))
        n_reads += n_rows * n_steps
        cache = n_rows * width * size.n_cache_bytes
        logits = n_rows * size.logit_bytes(with_loss=False)
        peak = max(peak, cache + n_rows * prompt * size.working_bytes(prompt) + logits)
    return StageCost(
        name="answers: texts",
        n_tokens=n_tokens,
        n_flops=size.n_layers * size.block_flops(n_tokens, n_pairs) + size.head_flops(n_reads),
        n_read_bytes=n_passes * size.n_weight_bytes + n_cached * size.n_cache_bytes,
        n_block_calls=n_passes * size.n_layers,
        n_peak_bytes=peak,
        chunks=f"{n_batches:,} batches of at most {largest:,} texts",
    )
