"""Questions put to a model: each distinct one once, in batches, exactly as if asked alone."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import cast

import torch

from editbench.errors import RequestError
from editbench.models.editable import EditableModel
from editbench.models.generation import generate_texts
from editbench.models.passages import Passage
from editbench.models.scoring import follow_prompts, run_passages
from editbench.questions import (
    Answer,
    Generate,
    GenerateAnswer,
    PlainQuestion,
    Question,
    Read,
    Score,
    ScoreAnswer,
    Write,
)

Progress = Callable[[int, int], None]


def answer_questions(
    model: EditableModel,
    questions: Iterable[PlainQuestion],
    *,
    seed: int,
    token_budget: int,
    on_progress: Progress | None = None,
) -> dict[Question, Answer]:
    """Ask a model questions.

    An answer does not depend on what else is asked, beyond the rounding of a batched forward pass;
    the global random state is neither read nor changed.

    Args:
        model: The model, edited or not, as it stands.
        questions: What to ask; repetitions are asked once.
        seed: Decides, together with the prompt, what is sampled for a `Generate`.
        token_budget: At most how many tokens, padding included, one forward pass holds (a single
            longer text has a pass of its own).
        on_progress: Called with the number of questions answered and of all.

    Returns:
        An answer to every question, in the order they were first asked.

    Raises:
        RequestError: A text has no tokens, or a prompt more than the model takes.
    """
    wordings = {question: _as_asked(model, question) for question in questions}
    asked = list(dict.fromkeys(wordings.values()))
    followed = [question for question in asked if isinstance(question, Score | Write)]
    prompts = [question for question in asked if isinstance(question, Generate)]
    texts = [question for question in asked if isinstance(question, Read)]
    n_done = 0

    def report(n_new: int) -> None:
        nonlocal n_done
        n_done += n_new
        if on_progress is not None:
            on_progress(n_done, len(asked))

    answers: dict[PlainQuestion, Answer] = {}
    # Not inference mode: some models cache tensors on the way, and an editor may need them later.
    with torch.no_grad():
        answers.update(follow_prompts(model, followed, token_budget, report).items())
        answers.update(read_texts(model, texts, token_budget, report).items())
        answers.update(generate_texts(model, prompts, seed, token_budget, report).items())
    return {
        question: _without_preamble(question, wording, answers[wording])
        for question, wording in wordings.items()
    }


def _as_asked(model: EditableModel, question: PlainQuestion) -> PlainQuestion:
    """The question behind what edits of prompts put before it."""
    if isinstance(question, Read) or (prompt := model.as_asked(question.prompt)) == question.prompt:
        return question
    if isinstance(question, Generate):
        before, after = (
            len(model.tokens.encode(text, chat=question.chat)) for text in (question.prompt, prompt)
        )
        return replace(question, prompt=prompt, n_tokens=question.n_tokens + after - before)
    return replace(question, prompt=prompt)


def _without_preamble(question: PlainQuestion, wording: PlainQuestion, answer: Answer) -> Answer:
    """A generated text begins with the prompt that was asked for."""
    if (
        isinstance(question, Generate)
        and isinstance(wording, Generate)
        and isinstance(answer, GenerateAnswer)
    ):
        preamble = wording.prompt.removesuffix(question.prompt)
        return replace(answer, text=answer.text.removeprefix(preamble))
    return answer


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
        own = list(cut_text(model, question))
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


def cut_text(model: EditableModel, question: Read) -> Iterator[Passage[tuple[Read, int]]]:
    """Divide a text into passages that the model takes, labeled with their numbers from 0.

    Raises:
        RequestError: The text has no token that another one comes before.
    """
    opening = model.tokens.opening
    ids = model.tokens.encode(question.text)[len(opening) :]
    start = 0 if opening else 1
    if len(ids) <= start:
        raise RequestError(
            f"reading: nothing is left to predict, got {question.text!r}. Give a longer text."
        )
    window = len(ids) if model.max_positions is None else model.max_positions - len(opening)
    for index, first in enumerate(range(start, len(ids), window)):
        # The last token of a passage is predicted and not read, so a window has room for one more.
        context = [*opening, *ids[max(0, first - 1) : first]]
        yield Passage((question, index), context, ids[first : first + window])


def _join(parts: Sequence[ScoreAnswer]) -> ScoreAnswer:
    return ScoreAnswer(
        tuple(score for part in parts for score in part.log_probs),
        tuple(right for part in parts for right in part.argmax),
    )
