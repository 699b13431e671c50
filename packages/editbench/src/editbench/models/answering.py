"""Questions put to a model: each distinct one once, in batches, exactly as if asked alone."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from editbench.models.divergence import find_divergences
from editbench.models.editable import EditableModel
from editbench.models.generation import generate_texts
from editbench.models.reading import read_texts
from editbench.models.scoring import follow_prompts
from editbench.questions import (
    Answer,
    Diverge,
    Generate,
    GenerateAnswer,
    PlainQuestion,
    Question,
    Read,
    Score,
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
        model: The model, edited or not, as it stands. Where it is compared with the unedited one,
            edits come off for a while, and on again.
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
    wordings = {question: word_as_asked(model, question) for question in questions}
    asked = list(dict.fromkeys(wordings.values()))
    followed = [question for question in asked if isinstance(question, Score | Write)]
    prompts = [question for question in asked if isinstance(question, Generate)]
    texts = [question for question in asked if isinstance(question, Read)]
    compared = [question for question in asked if isinstance(question, Diverge)]
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
        answers.update(find_divergences(model, compared, token_budget, report).items())
        answers.update(generate_texts(model, prompts, seed, token_budget, report).items())
    return {
        question: _without_preamble(question, wording, answers[wording])
        for question, wording in wordings.items()
    }


def word_as_asked(model: EditableModel, question: PlainQuestion) -> PlainQuestion:
    """The question behind what edits of prompts put before it, as the model is asked."""
    if isinstance(question, Read | Diverge):  # which sees to it itself
        return question
    if (prompt := model.as_asked(question.prompt)) == question.prompt:
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
