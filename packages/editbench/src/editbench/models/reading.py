"""Ordinary text, read from its beginning: how likely each token is."""

from collections.abc import Callable, Iterator, Sequence
from typing import cast

from editbench.errors import RequestError
from editbench.models.editable import EditableModel
from editbench.models.passages import Label, Passage
from editbench.models.scoring import run_passages
from editbench.questions import Read, ScoreAnswer


def read_texts(
    model: EditableModel,
    questions: Sequence[Read],
    token_budget: int,
    report: Callable[[int], None],
) -> dict[Read, ScoreAnswer]:
    """Answer distinct `Read` questions.

    Every token is scored once, but for a first one that nothing comes before. A text that is longer
    than the model takes is read in windows of that length, each of which begins with the last token
    of the one before (and with what the tokenizer puts before any text).

    Raises:
        RequestError: A text has no token that another one comes before.
    """
    windows: dict[Read, int] = {}
    passages = []
    for question in questions:
        own = list(cut_text(model, question, question.text))
        windows[question] = len(own)
        passages += own
    found: dict[Read, dict[int, ScoreAnswer]] = {question: {} for question in questions}
    for scores in run_passages(model, passages, token_budget):
        n_done = 0
        for (question, index), answer in scores:
            found[question][index] = cast(ScoreAnswer, answer)
            n_done += len(found[question]) == windows[question]
        report(n_done)
    return {
        question: _join([parts[index] for index in sorted(parts)])
        for question, parts in found.items()
    }


def cut_text(model: EditableModel, label: Label, text: str) -> Iterator[Passage[tuple[Label, int]]]:
    """Divide a text into passages that the model takes, labeled with their numbers from 0, too.

    Raises:
        RequestError: The text has no token that another one comes before.
    """
    opening = model.tokens.opening
    ids = model.tokens.encode(text)[len(opening) :]
    start = 0 if opening else 1
    if len(ids) <= start:
        raise RequestError(
            f"reading: nothing is left to predict, got {text!r}. Give a longer text."
        )
    window = len(ids) if model.max_positions is None else model.max_positions - len(opening)
    for index, first in enumerate(range(start, len(ids), window)):
        # The last token of a passage is predicted and not read, so a window has room for one more.
        context = [*opening, *ids[max(0, first - 1) : first]]
        yield Passage((label, index), context, ids[first : first + window])


def _join(parts: Sequence[ScoreAnswer]) -> ScoreAnswer:
    return ScoreAnswer(
        tuple(score for part in parts for score in part.log_probs),
        tuple(right for part in parts for right in part.argmax),
    )
