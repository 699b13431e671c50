"""Scores of tokens under teacher forcing, with as few forward passes as possible.

The last token of a continuation is only ever predicted, so it is left out of the input; then all
one-token continuations of a prompt have the same input, and more generally any input that begins
another one is read off that other one's pass: in a causal model, nothing later changes it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch

from editbench.models.editable import EditableModel
from editbench.models.head import select_head_positions
from editbench.questions import Score, ScoreAnswer

Label = TypeVar("Label")

# Logits are the largest thing in memory: 2^27 of them are 512 MiB in float32.
_MAX_LOGITS = 2**27
_MAX_LOGITS_IN_FLOAT32 = 2**24


@dataclass(frozen=True, slots=True)
class Passage(Generic[Label]):
    """Tokens to score, and what comes before them.

    Attributes:
        label: What the scores are for.
        context: Ids of the tokens before; at least one.
        targets: Ids of the tokens to score; at least one.
    """

    label: Label
    context: Sequence[int]
    targets: Sequence[int]


@dataclass(frozen=True, slots=True)
class _Row(Generic[Label]):
    """One input sequence, and what is read off it."""

    ids: tuple[int, ...]
    # Per passage: its label, the position that predicts its first target, and its targets.
    read: list[tuple[Label, int, Sequence[int]]] = field(default_factory=list)

    @property
    def positions(self) -> list[int]:
        """The positions at which logits are needed, ascending."""
        return sorted(
            {first + offset for _, first, targets in self.read for offset in range(len(targets))}
        )


def score_continuations(
    model: EditableModel,
    questions: Sequence[Score],
    token_budget: int,
    report: Callable[[int], None],
) -> dict[Score, ScoreAnswer]:
    """Answer distinct `Score` questions.

    log p is taken in float32 over the whole vocabulary, with whatever the architecture does after
    its head. `argmax` compares with the largest logit.

    Args:
        model: The model as it stands.
        questions: Distinct questions.
        token_budget: At most how many tokens one forward pass holds.
        report: Called with the number of questions each pass has answered.

    Raises:
        RequestError: A prompt or continuation has no token, or together they are too long.
    """
    passages = []
    for question in questions:
        prompt, continuation = model.tokens.encode_continuation(
            question.prompt, question.continuation
        )
        model.check_length(len(prompt) + len(continuation) - 1, question.prompt)
        passages.append(Passage(question, prompt, continuation))
    answers: dict[Score, ScoreAnswer] = {}
    for scores in score_passages(model, passages, token_budget):
        answers.update(scores)
        report(len(scores))
    return answers


def score_passages(
    model: EditableModel, passages: Iterable[Passage[Label]], token_budget: int
) -> Iterator[list[tuple[Label, ScoreAnswer]]]:
    """Score the targets of passages, none of them longer than the model takes.

    Args:
        model: The model as it stands.
        passages: What to score.
        token_budget: At most how many tokens one forward pass holds.

    Yields:
        For each forward pass, the labels that it has scores of, with the scores.
    """
    for batch in _make_batches(_make_rows(passages), token_budget, model.n_logits):
        yield list(_score_batch(model, batch))


def _make_rows(passages: Iterable[Passage[Label]]) -> list[_Row[Label]]:
    asked = sorted(
        (((*passage.context, *passage.targets[:-1]), passage) for passage in passages),
        key=lambda entry: entry[0],
    )
    rows: list[_Row[Label]] = []
    # In sorted order whatever begins with a sequence follows it; so from the back, a sequence
    # that begins another one begins the one that was taken last.
    for ids, passage in reversed(asked):
        if not rows or rows[-1].ids[: len(ids)] != ids:
            rows.append(_Row(ids))
        rows[-1].read.append((passage.label, len(passage.context) - 1, passage.targets))
    return rows


def _make_batches(
    rows: list[_Row[Label]], token_budget: int, n_logits: int
) -> Iterator[list[_Row[Label]]]:
    """Group rows of like length; the longest first, so that a lack of memory shows at once."""
    batch: list[_Row[Label]] = []
    width = n_positions = 0
    for row in sorted(rows, key=lambda row: len(row.ids), reverse=True):
        n_new = len(row.positions)
        is_full = (len(batch) + 1) * width > token_budget
        if batch and (is_full or (n_positions + n_new) * n_logits > _MAX_LOGITS):
            yield batch
            batch, n_positions = [], 0
        width = len(batch[0].ids) if batch else len(row.ids)
        batch.append(row)
        n_positions += n_new
    if batch:
        yield batch


def _score_batch(
    model: EditableModel, batch: list[_Row[Label]]
) -> Iterator[tuple[Label, ScoreAnswer]]:
    places = [(index, position) for index, row in enumerate(batch) for position in row.positions]
    place_index = {place: index for index, place in enumerate(places)}
    rows, positions = torch.tensor(places).unbind(dim=1)
    with select_head_positions(model, rows, positions):
        output = model.model(**model.batch([row.ids for row in batch]), use_cache=False)
    logits = output.logits[0]
    wanted = [
        (place_index[index, first + offset], token)
        for index, row in enumerate(batch)
        for _, first, targets in row.read
        for offset, token in enumerate(targets)
    ]
    log_probs, argmax = _read_tokens(logits, torch.tensor(wanted, device=logits.device))
    done = 0
    for row in batch:
        for label, _, targets in row.read:
            own = slice(done, done + len(targets))
            done += len(targets)
            yield label, ScoreAnswer(tuple(log_probs[own]), tuple(argmax[own]))


def _read_tokens(logits: torch.Tensor, wanted: torch.Tensor) -> tuple[list[float], list[bool]]:
    """Look up log p of tokens, in slices so that float32 copies stay small.

    Args:
        logits: ``[n_places, vocab]``.
        wanted: Long, ``[n_wanted, 2]``: a row of `logits`, and a token.
    """
    places, tokens = wanted.unbind(dim=1)
    slices = logits.split(max(1, _MAX_LOGITS_IN_FLOAT32 // logits.shape[1]))
    normalizers = torch.cat([part.float().logsumexp(dim=1) for part in slices])
    log_probs = logits[places, tokens].float() - normalizers[places]
    argmax = logits.argmax(dim=1)[places] == tokens
    return log_probs.tolist(), argmax.tolist()
