"""Questions that are put to a model, and the answers it gives.

Metrics say which questions they need; the runner asks each distinct question once; metrics turn
the answers into numbers. Nothing here knows what a model is.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Score:
    """How likely is `continuation` after `prompt`?

    Attributes:
        prompt: What the model is given.
        continuation: What may follow, without what joins it to the prompt.
        joiner: What stands between the two; None is the space that the prompt needs, if any.
        chat: Whether the prompt is a user's message, which the model's chat template goes around.
    """

    prompt: str
    continuation: str
    joiner: str | None = None
    chat: bool = False


@dataclass(frozen=True, slots=True)
class Generate:
    """What does the model write after `prompt`, `n_tokens` tokens in all, the prompt's included?

    Attributes:
        prompt: What the model is given.
        n_tokens: Where it ends.
        chat: Whether the prompt is a user's message, which the model's chat template goes around.
    """

    prompt: str
    n_tokens: int
    chat: bool = False


@dataclass(frozen=True, slots=True)
class Write:
    """What does the model say after `prompt`, always with the likeliest token?

    Its text ends where the model ends it, by an end-of-sequence token.

    Attributes:
        prompt: What the model is given.
        n_tokens: How many tokens it writes at most, the prompt's not counted.
        chat: Whether the prompt is a user's message, which the model's chat template goes around.
        sentence: Whether the text also ends with its first sentence or line: a model that was not
            tuned to answer goes on to something else.
    """

    prompt: str
    n_tokens: int
    chat: bool = False
    sentence: bool = False


@dataclass(frozen=True, slots=True)
class Read:
    """How likely is each token of `text`, read from its beginning?

    A text that is longer than the model takes is read in windows, each of which begins with the
    last token of the one before. Where the tokenizer puts nothing before a text, nothing predicts
    its first token, which is left out then.
    """

    text: str


@dataclass(frozen=True, slots=True)
class Diverge:
    """How far from the unedited model's is the distribution of the next token?

    Attributes:
        text: What both read.
        everywhere: Whether each place of the text that predicts one of its tokens is asked about,
            as `Read` would; otherwise only what follows the text.
        chat: Whether the text is a user's message, which the model's chat template goes around.
    """

    text: str
    everywhere: bool = False
    chat: bool = False


PlainQuestion = Score | Generate | Write | Read | Diverge
"""What a model is asked as it stands."""


@dataclass(frozen=True, slots=True)
class Before:
    """What does the model say to `question` without the edit?

    The unedited model is asked, whichever edit is on the model that other questions go to.
    """

    question: PlainQuestion


@dataclass(frozen=True, slots=True)
class ScoreAnswer:
    """The tokens of a continuation, or of a text that was read, under teacher forcing.

    Attributes:
        log_probs: log p of each token, given all before it.
        argmax: Whether each token is the most likely one at its place.
    """

    log_probs: tuple[float, ...]
    argmax: tuple[bool, ...]

    @property
    def mean_log_prob(self) -> float:
        """Mean over tokens of log p: the reference's length-normalised score."""
        return sum(self.log_probs) / len(self.log_probs)


@dataclass(frozen=True, slots=True)
class GenerateAnswer:
    """A sampled text, the prompt included."""

    text: str


@dataclass(frozen=True, slots=True)
class WriteAnswer:
    """What was written behind the prompt."""

    text: str


@dataclass(frozen=True, slots=True)
class DivergeAnswer:
    """KL(unedited ‖ as it is) of next-token distributions in nats, place by place."""

    nats: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over places."""
        return sum(self.nats) / len(self.nats)


Question = PlainQuestion | Before
Answer = ScoreAnswer | GenerateAnswer | WriteAnswer | DivergeAnswer
Answers = Mapping[Question, Answer]
