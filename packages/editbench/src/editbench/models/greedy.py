"""What a model says by itself: the text that a user gets who sends a prompt and draws nothing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from editbench.models.editable import EditableModel
from editbench.models.generation import generate_texts
from editbench.models.scoring import score_continuations
from editbench.questions import Generate, GenerateAnswer, Score

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
    with torch.no_grad():
        scores = score_continuations(model, asked, model.memory.tokens, _report_nothing)
        said = {
            question: Said(True, question.continuation)
            for question in asked
            if all(scores[question].argmax)
        }
        continuations = {
            question: go_on(model, question) for question in asked if question not in said
        }
        texts = _generate(model, continuations.values())
    for question, continuation in continuations.items():
        prompt, expected = model.tokens.encode_question(question)
        wanted = model.tokens.decode([*prompt, *expected])
        text = texts[continuation].text
        said[question] = Said(text.startswith(wanted), _cut_prompt(model, prompt, text))
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
    prompts = [model.tokens.encode_question(question)[0] for question in questions]
    asked = [
        _continue(model, question, len(prompt) + n_tokens)
        for question, prompt in zip(questions, prompts, strict=True)
    ]
    texts = _generate(model, asked)
    return [
        _cut_prompt(model, prompt, texts[each].text)
        for prompt, each in zip(prompts, asked, strict=True)
    ]


def find_ends(model: EditableModel) -> frozenset[int]:
    """The tokens at which a model's own generation stops."""
    settings = getattr(model.model, "generation_config", None) or model.model.config
    ends = settings.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset([ends] if isinstance(ends, int) else ends)


def go_on(model: EditableModel, question: Score) -> Generate:
    """What is written to see whether a text begins with what is asked for."""
    prompt, expected = model.tokens.encode_question(question)
    # No tokens are shorter than a byte.
    n_bytes = len(f"{question.joiner or ' '}{question.continuation}".encode())
    return _continue(model, question, len(prompt) + max(len(expected), n_bytes, _N_SHOWN))


def _continue(model: EditableModel, question: Score, n_tokens: int) -> Generate:
    """Ask for a text of so many tokens with its prompt, or of as many as the model takes."""
    if model.max_positions is not None:
        n_tokens = min(n_tokens, model.max_positions)
    return Generate(question.prompt, n_tokens, question.chat)


def _generate(model: EditableModel, asked: Iterable[Generate]) -> dict[Generate, GenerateAnswer]:
    """Write texts up to their ends, always with the likeliest token."""
    return generate_texts(
        model,
        list(dict.fromkeys(asked)),
        0,
        model.memory.tokens,
        _report_nothing,
        top_k=1,
        ends=find_ends(model),
    )


def _cut_prompt(model: EditableModel, prompt: Sequence[int], text: str) -> str:
    # The last character may lack some of its bytes.
    return text[len(model.tokens.decode(prompt)) :].rstrip("\ufffd")


def _report_nothing(_: int) -> None:
    pass
