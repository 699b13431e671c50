"""How far edits have moved a model: KL divergence of next-token distributions, before ‖ after."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from editbench.models.batches import batches_of_like_length
from editbench.models.editable import EditableModel
from editbench.models.out_of_memory import Halving
from editbench.models.reading import cut_text
from editbench.models.scoring import read_logits
from editbench.questions import Diverge, DivergeAnswer

# A question, a row of tokens, and the places behind which next tokens are compared.
_Row = tuple[Diverge, Sequence[int], range]


def find_divergences(
    model: EditableModel,
    questions: Sequence[Diverge],
    token_budget: int,
    report: Callable[[int], None],
) -> dict[Diverge, DivergeAnswer]:
    """Answer distinct `Diverge` questions.

    Exact: whole vocabularies are compared, in float32. The unedited model reads as many batches as
    `MemoryBudget.kept_bytes` hold the logits of, then the edits come back on and the same batches
    are read again. Of a model without edits the answer is 0, and nothing is run.

    Args:
        model: The model as it stands. Its edits come off meanwhile, and on again.
        questions: Distinct questions.
        token_budget: At most how many tokens one forward pass holds.
        report: Called with the number of questions answered.

    Raises:
        RequestError: A text has no token, or a prompt is longer than the model takes.
    """
    nats: dict[Diverge, list[float]] = {question: [] for question in questions}
    before = [row for each in questions for row in make_compared_rows(model, each)]
    rows = [row for each in questions for row in make_compared_rows(model, each, as_asked=True)]
    if model.edits_on:
        found: dict[int, list[float]] = {}
        for group in _group(model, rows, token_budget):
            found.update(_compare(model, before, rows, group))
    else:
        found = {index: [0.0] * len(places) for index, (_, _, places) in enumerate(rows)}
    for index, (question, _, _) in enumerate(rows):
        nats[question] += found[index]
    if questions:
        report(len(questions))
    return {question: DivergeAnswer(tuple(each)) for question, each in nats.items()}


def make_compared_rows(
    model: EditableModel, question: Diverge, *, as_asked: bool = False
) -> Iterator[_Row]:
    """What is read to answer a question: its prompt, or its text in passages that the model takes.

    A prompt may be read `as_asked`, behind what edits of prompts put before it.

    Raises:
        RequestError: A text has no token, or a prompt is longer than the model takes.
    """
    if not question.everywhere:
        prompt = model.as_asked(question.text) if as_asked else question.text
        ids = model.tokens.encode(prompt, chat=question.chat)
        model.check_length(len(ids), question.text)
        yield question, ids, range(len(ids) - 1, len(ids))
        return
    for passage in cut_text(model, question, question.text):
        ids = [*passage.context, *passage.targets[:-1]]
        yield question, ids, range(len(passage.context) - 1, len(ids))


def divergence(
    before: Float[Tensor, "places vocabulary"], after: Float[Tensor, "places vocabulary"]
) -> Float[Tensor, " places"]:
    """KL(before ‖ after) of the distributions that logits stand for, in nats, in float32.

    What `before` says never happens adds nothing.
    """
    p, q = before.float().log_softmax(dim=1), after.float().log_softmax(dim=1)
    share = p.exp()
    return torch.where(share > 0, share * (p - q), 0.0).sum(dim=1).clamp(min=0.0)


def _group(
    model: EditableModel, rows: Sequence[_Row], token_budget: int
) -> Iterator[list[list[int]]]:
    """Batches of rows, as many together as the logits of fit into what may be kept."""
    bytes_of_place = model.size.n_logits * model.size.itemsize
    budget = min(token_budget, model.memory.reads)
    group: list[list[int]] = []
    n_kept = 0
    for batch in batches_of_like_length([ids for _, ids, _ in rows], budget):
        n_bytes = sum(len(rows[index][2]) for index in batch.rows) * bytes_of_place
        if group and n_kept + n_bytes > model.memory.kept_bytes:
            yield group
            group, n_kept = [], 0
        group.append(batch.rows)
        n_kept += n_bytes
    if group:
        yield group


def _compare(
    model: EditableModel,
    unedited: Sequence[_Row],
    rows: Sequence[_Row],
    group: Sequence[Sequence[int]],
) -> Iterator[tuple[int, list[float]]]:
    halving = Halving(f"reading on '{model.name}'")
    n_places = sum(len(rows[index][2]) for batch in group for index in batch)
    kept_on = model.memory.place(n_places * model.size.n_logits * model.size.itemsize)

    def read(some: Sequence[int], which: Sequence[_Row] = rows) -> Tensor:
        places = [(row, place) for row, index in enumerate(some) for place in which[index][2]]
        return read_logits(model, model.batch([which[index][1] for index in some]), places)

    with model.unedited("divergence"):
        first = partial(read, which=unedited)
        before = [torch.cat([p.to(kept_on) for p in halving.run(batch, first)]) for batch in group]
    for batch, expected in zip(group, before, strict=True):
        nats: list[float] = []
        for logits in halving.run(batch, read):
            for part in logits.split(model.memory.reads_in_float32):
                same = expected[len(nats) : len(nats) + len(part)].to(part.device)
                nats += divergence(same, part).tolist()
        for index in batch:
            n_own = len(rows[index][2])
            yield index, nats[:n_own]
            del nats[:n_own]
