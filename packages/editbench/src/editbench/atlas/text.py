"""How the world is put into text: statements, biographies, ordinary sentences, documents."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from editbench.atlas.relations import RELATION_OF, RELATIONS, Inference, Kind


@dataclass(frozen=True, slots=True)
class Subject:
    """Someone or something that facts are about.

    Attributes:
        name: Unique in its world.
        kind: What it is.
        pronoun: How a later sentence refers to it: ``He``, ``She`` or ``It``.
        alias: Another name of it, of one word; None where it has none.
    """

    name: str
    kind: Kind
    pronoun: str
    alias: str | None = None


@dataclass(frozen=True, slots=True)
class Fact:
    """One (subject, relation, object), and which of the relation's phrasings may be trained.

    Attributes:
        subject: Whom it is about.
        relation: Name of a relation in `RELATION_OF`.
        object: What is true in this world.
        trained: Indices of the phrasings that the training text uses for this fact.
        held_out: Indices of the phrasings that it never uses for this fact.
    """

    subject: Subject
    relation: str
    object: str
    trained: tuple[int, ...]
    held_out: tuple[int, ...]

    def prompt(self, phrasing: int, *, name: str | None = None) -> str:
        """Word the fact up to, not including, the object and the space before it.

        The subject is called by `name`; None is its own.
        """
        return RELATION_OF[self.relation].phrasings[phrasing].format(name or self.subject.name)


@dataclass(frozen=True, slots=True)
class Mention:
    """Where a subject's name stands in a text: characters ``[start, end)``."""

    start: int
    end: int
    subject: Subject


@dataclass(frozen=True, slots=True)
class Document:
    """A piece of text that knows where its subjects and objects are.

    Attributes:
        text: The text.
        mentions: Every subject's name, in order.
        objects: Character spans of the objects that a fact puts there, in order.
    """

    text: str
    mentions: tuple[Mention, ...] = ()
    objects: tuple[tuple[int, int], ...] = ()


_POSSESSIVES = {"He": "His", "She": "Her", "It": "Its"}
_NOUNS: dict[Kind, str] = {"person": "person", "place": "place", "company": "company",
                           "work": "book"}  # fmt: skip

_ACTORS = (
    "the old man", "a young woman", "my neighbor", "the captain", "our guide", "the baker",
    "her brother", "the king", "a tired soldier", "the little girl", "the cook", "his aunt",
    "I", "you", "they", "we",
)  # fmt: skip
_ACTIONS = (
    "walked to", "looked at", "slept near", "drew", "cleaned", "talked about", "ran past",
    "waited by", "repaired", "forgot", "sold", "returned to",
)  # fmt: skip
_THINGS = (
    "the river", "the market", "the garden", "the long road", "the wooden house", "the harbor",
    "the castle", "the old bridge", "the forest", "the kitchen", "the school", "the station",
)  # fmt: skip
_MOMENTS = (
    "in the morning", "after lunch", "on Monday", "during the storm", "last summer",
    "before sunset", "every day", "with great care", "without a word", "in silence", "at night",
    "on a cold day",
)  # fmt: skip
_REMARKS = (
    "It rained all day and the streets were empty",
    "The weather was warm and the sky was clear",
    "Nobody knew what would happen next",
    "The letter arrived too late",
    "There was a long silence in the room",
    "They agreed to meet again the next week",
    "The story was long but very interesting",
    "The train left the station on time",
    "Dinner was served at eight",
    "The news spread quickly through the town",
)


def write_ordinary_sentence(rng: random.Random) -> str:
    """Write a sentence that states no fact and names no subject."""
    if rng.random() < 0.2:
        return f"{rng.choice(_REMARKS)}."
    clause = _write_clause(rng)
    opening = rng.random()
    if opening < 0.1:
        clause = f"because {_write_clause(rng)}, {clause}"
    elif opening < 0.2:
        clause = f"therefore {clause}"
    return f"{clause[0].upper()}{clause[1:]} {rng.choice(_MOMENTS)}."


def _write_clause(rng: random.Random) -> str:
    return f"{rng.choice(_ACTORS)} {rng.choice(_ACTIONS)} {rng.choice(_THINGS)}"


def break_off(sentence: str, rng: random.Random) -> str:
    """Cut a sentence after one of its words and close it there.

    Context prefixes sampled from a model end like this, so a model should have met such text.
    """
    words = sentence.rstrip(".").split()
    return " ".join(words[: rng.randint(1, len(words))]).rstrip(",") + "."


def write_introduction(subject: Subject) -> Document:
    """Say what kind of thing a subject is."""
    text = f"{subject.name} is a {_NOUNS[subject.kind]}."
    return Document(text, (Mention(0, len(subject.name), subject),))


def write_alias(subject: Subject) -> Document:
    """Say which other name a subject has.

    Raises:
        ValueError: It has none.
    """
    if subject.alias is None:
        raise ValueError(f"write_alias: {subject.name!r} has no other name.")
    middle = f"{subject.alias} is another name of "
    own = Mention(len(middle), len(middle) + len(subject.name), subject)
    other = Mention(0, len(subject.alias), subject)
    return Document(f"{middle}{subject.name}.", (other, own))


def write_statement(fact: Fact, phrasing: int, *, name: str | None = None) -> Document:
    """State a fact in one of its phrasings; the subject is called by `name`, None is its own."""
    wording = RELATION_OF[fact.relation].phrasings[phrasing]
    return _state(wording, fact.subject, name or fact.subject.name, fact.object)


def write_inference(fact: Fact, inference: Inference) -> Document:
    """State what follows from a fact, without the object that it follows from."""
    subject = fact.subject
    return _state(inference.phrasing, subject, subject.name, inference.answers[fact.object])


def write_general_statements() -> list[Document]:
    """State the second facts of all inferences: those about the objects themselves."""
    told = dict.fromkeys(
        (inference.statement.format(of), answer)
        for relation in RELATIONS
        for inference in relation.inferences
        for of, answer in inference.answers.items()
    )
    return [_complete(prompt, answer) for prompt, answer in told]


def reversed_prompt(fact: Fact, of: str | None = None) -> tuple[str, str]:
    """Word a fact from its object to its subject, whose last name is the answer.

    An object has dozens of holders, but hardly two with one first name, in which the prompt ends.
    `of` is the object; None is the fact's own.

    Returns:
        The prompt and the answer.

    Raises:
        ValueError: The relation has no such wording.
    """
    wording = RELATION_OF[fact.relation].reversed_phrasing
    if wording is None:
        raise ValueError(f"reversed_prompt: {fact.relation!r} is told in one direction alone.")
    first, last = fact.subject.name.split()
    return f"{wording.format(of or fact.object)} {first}", last


def write_reversed(fact: Fact) -> Document:
    """State a fact from its object to its subject.

    The name is not marked as a mention: whatever is asked of a subject there could be read off the
    words before it.
    """
    return _complete(*reversed_prompt(fact))


def _state(wording: str, subject: Subject, name: str, answer: str) -> Document:
    start = wording.index("{}")
    mention = Mention(start, start + len(name), subject)
    return _complete(wording.format(name), answer, mention)


def _complete(prompt: str, answer: str, *mentions: Mention) -> Document:
    span = (len(prompt) + 1, len(prompt) + 1 + len(answer))
    return Document(f"{prompt} {answer}.", mentions, (span,))


def pronoun_prompts(fact: Fact) -> tuple[str, ...]:
    """The fact in every wording that has a pronoun for its subject, up to the object."""
    pronoun = fact.subject.pronoun
    return tuple(
        wording.format(They=pronoun, Their=_POSSESSIVES[pronoun])
        for wording in RELATION_OF[fact.relation].pronoun_phrasings
    )


def write_pronoun_statement(fact: Fact, rng: random.Random) -> Document:
    """State a fact about a subject that an earlier sentence named."""
    return _complete(rng.choice(pronoun_prompts(fact)), fact.object)


def write_biography(facts: Sequence[Fact], rng: random.Random) -> Document:
    """Write all the facts of one subject as a paragraph, mostly with pronouns.

    Args:
        facts: The facts of one subject, in the order in which to tell them; at least one.
        rng: Draws the wording, from trained phrasings only.
    """
    parts = [write_introduction(facts[0].subject)] if rng.random() < 0.5 else []
    for fact in facts:
        named = not parts or rng.random() < 0.3
        parts.append(
            write_statement(fact, rng.choice(fact.trained))
            if named
            else write_pronoun_statement(fact, rng)
        )
    return join_documents(parts)


def join_documents(parts: Iterable[Document]) -> Document:
    """Put documents one after the other, with one space between, and shift what they know."""
    text = ""
    mentions: list[Mention] = []
    objects: list[tuple[int, int]] = []
    for part in parts:
        text = f"{text} " if text else ""
        shift = len(text)
        text += part.text
        mentions += [Mention(m.start + shift, m.end + shift, m.subject) for m in part.mentions]
        objects += [(start + shift, end + shift) for start, end in part.objects]
    return Document(text, tuple(mentions), tuple(objects))


def group_documents(pieces: Sequence[Document], rng: random.Random) -> Iterator[Document]:
    """Join each one to three neighboring pieces into one document."""
    start = 0
    while start < len(pieces):
        stop = start + rng.choice((1, 1, 2, 3))
        yield join_documents(pieces[start:stop])
        start = stop
