"""What a model says by itself: the text that a user gets who sends a prompt and draws nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from editbench.models.editable import EditableModel
from editbench.models.scoring import follow_prompts
from editbench.questions import Answer, Score, ScoreAnswer, Write, WriteAnswer

_N_SHOWN = 8  # tokens of what is said, at least


@dataclass(frozen=True, slots=True)
class Said:
    """What a model says after a prompt.

    Attributes:
        is_target: Whether its text begins with what was asked for.
        text: How it goes on, as far as is needed to tell and show; what was asked for where that
            is it.
    """

    is_target: bool
    text: str


def say_greedily(model: EditableModel, questions: Sequence[Score]) -> list[Said]:
    """Let a model go on after prompts, always with the likeliest token, and compare the texts.

    A model may spell a continuation in other tokens than the tokenizer does, so that tokens that
    are not all the likeliest are no answer yet: then the text is written, up to an
    end-of-sequence token.

    Args:
        model: The model as it stands.
        questions: Prompts, with what is asked for.

    Returns:
        What it says to each.

    Raises:
        RequestError: A prompt or continuation has no token, or together they are too long.
    """
    asked = list(dict.fromkeys(questions))
    scores = _follow(model, asked)
    said = {
        question: Said(True, question.continuation)
        for question in asked
        if isinstance(answer := scores[question], ScoreAnswer) and all(answer.argmax)
    }
    texts = {question: go_on(model, question) for question in asked if question not in said}
    written = _follow(model, list(texts.values()))
    for question, asking in texts.items():
        prompt, expected = model.tokens.encode_question(question)
        decode = model.tokens.decode
        text = _text(written[asking])
        wanted = decode([*prompt, *expected])[len(decode(prompt)) :]
        said[question] = Said(text.startswith(wanted), text)
    return [said[question] for question in questions]


def write_greedily(model: EditableModel, questions: Sequence[Score], n_tokens: int) -> list[str]:
    """How a model goes on after prompts, always with the likeliest token, as users would read it.

    Args:
        model: The model as it stands.
        questions: Prompts; what they ask for is not looked at.
        n_tokens: How many tokens it writes; fewer where it ends its text, or takes no more.

    Returns:
        What it writes after each.

    Raises:
        RequestError: A prompt has no token, or is longer than the model takes.
    """
    asked = [Write(question.prompt, n_tokens, question.chat) for question in questions]
    written = _follow(model, asked)
    return [_text(written[each]) for each in asked]


def go_on(model: EditableModel, question: Score) -> Write:
    """What is written to see whether a text begins with what is asked for."""
    _, expected = model.tokens.encode_question(question)
    # No tokens are shorter than a byte.
    n_bytes = len(f"{question.joiner or ' '}{question.continuation}".encode())
    return Write(question.prompt, max(len(expected), n_bytes, _N_SHOWN), question.chat)


def _follow(model: EditableModel, questions: Sequence[Score | Write]) -> Mapping[Any, Answer]:
    with torch.no_grad():
        return follow_prompts(
            model, list(dict.fromkeys(questions)), model.memory.tokens, lambda n_new: None
        )


def _text(answer: Answer) -> str:
    return cast(WriteAnswer, answer).text
