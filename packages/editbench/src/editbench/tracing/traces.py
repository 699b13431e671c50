"""What tracing a prompt yields; nothing here needs torch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from editbench.tracing.facts import KnownFact
from editbench.tracing.settings import Kind, SeveredKind

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TracedPrompt:
    """A fact's prompt in tokens.

    Attributes:
        fact: The fact.
        token_ids: The whole prompt, with what the tokenizer puts before every text.
        subject: The subject's tokens, as a range of positions.
        answer: The token whose probability is traced: the model's own first choice.
        texts: Each token as text, to label a picture with; a part of a character shows as ``·``.
        answer_text: The answer as text.
    """

    fact: KnownFact
    token_ids: tuple[int, ...]
    subject: range
    answer: int
    texts: tuple[str, ...]
    answer_text: str


@dataclass(frozen=True)
class PromptTrace:
    """What tracing one prompt found.

    Attributes:
        prompt: The prompt.
        high_score: Probability of the answer in the clean run.
        low_score: Its mean with the subject corrupted and nothing restored.
        scores: By kind, the mean probability after restoring: `[n_tokens, n_layers]`, and
            `[n_layers]` at the last subject token for the severed kinds.
    """

    prompt: TracedPrompt
    high_score: float
    low_score: float
    scores: dict[Kind | SeveredKind, Scores]
