"""What follows from an edit: queries about it, and the facts that their answers rest on."""

from dataclasses import dataclass
from typing import Literal

from editbench.questions import Score

PortabilityKind = Literal["reasoning", "aliasing", "reversal", "multi_hop"]


@dataclass(frozen=True, slots=True)
class Query:
    """A prompt, and what the model may say next.

    Attributes:
        prompt: Complete text; the model is asked to continue it.
        answers: The answer, and other names of it or other right ones; any of them counts.
        joiner: What stands between prompt and answer; see `EditRequest`.
        chat: Whether the prompt is a user's message; see `EditRequest`.
    """

    prompt: str
    answers: tuple[str, ...]
    joiner: str | None = None
    chat: bool = False

    @property
    def questions(self) -> tuple[Score, ...]:
        """How likely is each of the answers after the prompt?"""
        return tuple(Score(self.prompt, each, self.joiner, self.chat) for each in self.answers)


@dataclass(frozen=True, slots=True)
class Hop:
    """One fact of those that an answer follows from.

    Attributes:
        subject: Whom it is about, as requests call it.
        relation: The relation's name in requests.
        target: The object.
        is_edited: Whether it is so only once a request has written it.
    """

    subject: str
    relation: str
    target: str
    is_edited: bool


@dataclass(frozen=True, slots=True)
class PortabilityProbe:
    """Does the model answer what follows from an edit?

    Attributes:
        kind: How it follows: by any other inference, under another name of the subject, in the
            other direction, or over further facts.
        queries: What is asked.
        needs_all: Whether all queries must be answered right; otherwise one is enough.
        conditions: What the unedited model must know, or else the probe does not count.
        hops: The facts that the answers follow from, where the dataset names them.
    """

    kind: PortabilityKind
    queries: tuple[Query, ...]
    needs_all: bool = False
    conditions: tuple[Query, ...] = ()
    hops: tuple[Hop, ...] = ()
