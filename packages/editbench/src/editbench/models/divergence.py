"""How far edits have moved a model: KL divergence of next-token distributions, before ‖ after."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from editbench.models.batches import Padded, batches_of_like_length
from editbench.models.editable import EditableModel
from editbench.models.out_of_memory import Halving
from editbench.models.prefix_groups import PrefixGroup, group_by_prefix
from editbench.models.reading import cut_text
from editbench.models.scoring import read_logits
from editbench.models.shared_prefix import LatestPrefix, SharedPrefix
from editbench.questions import Diverge, DivergeAnswer

# A question, a row of tokens, and the places behind which next tokens are compared.
_Row = tuple[Diverge, Sequence[int], range]


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows that are read together: their numbers, and what all of them begin with.

    `unedited` is what they begin with as the unedited model reads them.
    """

    rows: list[int]
    prefix: tuple[int, ...]
    unedited: tuple[int, ...]


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
        for group in _group(model, before, rows, token_budget):
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
    model: EditableModel, unedited: Sequence[_Row], rows: Sequence[_Row], token_budget: int
) -> Iterator[list[_Batch]]:
    """Batches of rows, as many together as the logits of fit into what may be kept."""
    bytes_of_place = model.size.n_logits * model.size.itemsize
    group: list[_Batch] = []
    n_kept = 0
    for batch in _batch(model, unedited, rows, token_budget):
        n_bytes = sum(len(rows[index][2]) for index in batch.rows) * bytes_of_place
        if group and n_kept + n_bytes > model.memory.kept_bytes:
            yield group
            group, n_kept = [], 0
        group.append(batch)
        n_kept += n_bytes
    if group:
        yield group


def _batch(
    model: EditableModel, unedited: Sequence[_Row], rows: Sequence[_Row], token_budget: int
) -> Iterator[_Batch]:
    """Rows of like length, those together that share what they begin with; edited or not."""
    budget, n_copied = min(token_budget, model.memory.reads), model.memory.copied_tokens

    def share(which: Sequence[_Row], some: Sequence[int]) -> Iterator[PrefixGroup[int]]:
        return group_by_prefix(
            model, some, lambda index: which[index][1][: which[index][2].start], token_budget
        )

    for outer in share(rows, range(len(rows))):
        for inner in share(unedited, outer.rows):
            longest = max(len(outer.prefix), len(inner.prefix))

            def is_loose(extent: Padded, longest: int = longest) -> bool:
                return longest > 0 and extent.n_rows * (longest + extent.width) > n_copied

            own = [rows[index][1][len(outer.prefix) :] for index in inner.rows]
            for batch in batches_of_like_length(own, budget, is_loose):
                members = [inner.rows[place] for place in batch.rows]
                yield _Batch(members, outer.prefix, inner.prefix)


def _compare(
    model: EditableModel,
    unedited: Sequence[_Row],
    rows: Sequence[_Row],
    group: Sequence[_Batch],
) -> Iterator[tuple[int, list[float]]]:
    halving = Halving(f"reading on '{model.name}'")
    n_places = sum(len(rows[index][2]) for batch in group for index in batch.rows)
    kept_on = model.memory.place(n_places * model.size.n_logits * model.size.itemsize)

    def read(some: Sequence[int], which: Sequence[_Row], prefix: SharedPrefix) -> Iterator[Tensor]:
        def run(some: Sequence[int]) -> Tensor:
            return _read(model, [which[index] for index in some], prefix)

        return halving.run(some, run)

    with model.unedited("divergence"):
        latest = LatestPrefix(model)
        before = [
            torch.cat(
                [
                    logits.to(kept_on)
                    for logits in read(batch.rows, unedited, latest.get(batch.unedited))
                ]
            )
            for batch in group
        ]
    latest = LatestPrefix(model)
    for batch, expected in zip(group, before, strict=True):
        nats: list[float] = []
        for logits in read(batch.rows, rows, latest.get(batch.prefix)):
            for part in logits.split(model.memory.reads_in_float32):
                same = expected[len(nats) : len(nats) + len(part)].to(part.device)
                nats += divergence(same, part).tolist()
        for index in batch.rows:
            n_own = len(rows[index][2])
            yield index, nats[:n_own]
            del nats[:n_own]


def _read(model: EditableModel, rows: Sequence[_Row], prefix: SharedPrefix) -> Tensor:
    """Logits at the places of rows, all of which begin with a prefix, `[n_places, vocabulary]`."""
    arguments: dict[str, Any] = prefix.inputs([ids for _, ids, _ in rows], "right")
    n_before = len(prefix.ids)
    places = [(row, place - n_before) for row, (_, _, some) in enumerate(rows) for place in some]
    if n_before:
        arguments |= {"past_key_values": prefix.cache(), "use_cache": True}
    return read_logits(model, arguments, places)
