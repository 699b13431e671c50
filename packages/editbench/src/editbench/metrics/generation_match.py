"""Does the model say the object, left to itself? Texts against the answers they should have."""

import re
import string
from typing import ClassVar, cast

from editbench.metrics.probes import ProbeMetric
from editbench.models.joining import needs_space
from editbench.portability import Query
from editbench.questions import Answers, Question, Write, WriteAnswer
from editbench.requests import Probe

N_TOKENS = 5
"""How many tokens a model writes behind a plain prompt at most, but for long objects."""

N_QUESTION_TOKENS = 24
"""How many tokens it writes behind a question mark at most: answers to questions are sentences."""

N_CHAT_TOKENS = 32
"""How many tokens it writes as an answer to a message at most."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def probe_text(probe: Probe | Query) -> Write:
    """What is asked for a probe's or query's text: a sentence, or as a chat the whole answer."""
    if probe.chat:
        return Write(probe.prompt, N_CHAT_TOKENS, chat=True)
    is_question = probe.prompt.rstrip().endswith(("?", "？"))
    least = N_QUESTION_TOKENS if is_question else N_TOKENS
    names = probe.answers if isinstance(probe, Query) else (probe.expected, *probe.aliases)
    return Write(probe.prompt, max(least, *map(_count_tokens, names)), sentence=True)


def _count_tokens(name: str) -> int:
    """How many tokens a name may take: a token has three letters or more, but in other scripts."""
    return len(name) // 3 if name.isascii() else len(name.encode())


class GenerationMatch(ProbeMetric):
    """Does what the model writes by itself contain the expected object?

    Nothing of the answer is given: from the prompt on the model writes the likeliest token, until
    it ends its text (end of sequence). Behind a plain prompt a model that was not tuned to answer
    goes on to something else, so there its first sentence or line is what counts, and of it no more
    than the object's place: `N_TOKENS` tokens, `N_QUESTION_TOKENS` behind a question mark, or if
    that is more, as many as the longest of the object's names may take: one for three letters, or
    for each byte where not all of them are ASCII. As a chat the whole answer
    counts, at most `N_CHAT_TOKENS` tokens of it.

    Text and object are normalized as for SQuAD (Rajpurkar et al. 2016, the evaluation script of
    version 1.1): lower case, ASCII punctuation left out, the words a, an and the left out, white
    space made single. The text has the object if its words contain the object's, whole and in
    sequence, or those of one of the probe's aliases. The expected object is the new one for
    efficacy and paraphrase, the true one for neighborhood.

    A case's value is the share of its probes with the object, in percent; a table's value the mean
    over cases. ``generation_score`` is the harmonic mean of the three means.
    """

    name: ClassVar[str] = "generation-match"
    produces: ClassVar[tuple[str, ...]] = (
        "efficacy_generation",
        "paraphrase_generation",
        "neighborhood_generation",
    )
    aggregates: ClassVar[dict[str, tuple[str, ...]]] = {"generation_score": produces}

    def probe_questions(self, probe: Probe) -> tuple[Question, ...]:
        """What does the model write after the prompt?"""
        return (probe_text(probe),)

    def judge(self, probe: Probe, answers: Answers) -> tuple[bool, ...]:
        """One judgement: does the text match one of the names of what is expected?"""
        text = cast(WriteAnswer, answers[probe_text(probe)]).text
        return (any(self.matches(text, name) for name in (probe.expected, *probe.aliases)),)

    def matches(self, text: str, answer: str) -> bool:
        """Whether a text contains an answer, both normalized."""
        return contains(text, answer)


class GenerationExact(GenerationMatch):
    """Is what the model writes by itself the expected object, and nothing else?

    As `GenerationMatch`, but the normalized text must equal the normalized object or one of its
    aliases: SQuAD's exact match. A model that goes on in its sentence fails, whatever it says.
    """

    name: ClassVar[str] = "generation-exact"
    produces: ClassVar[tuple[str, ...]] = (
        "efficacy_generation_exact",
        "paraphrase_generation_exact",
        "neighborhood_generation_exact",
    )
    aggregates: ClassVar[dict[str, tuple[str, ...]]] = {"generation_exact_score": produces}

    def matches(self, text: str, answer: str) -> bool:
        """Whether a text equals an answer, both normalized."""
        wanted = normalize(answer)
        return normalize(text) == wanted if wanted else text.strip() == answer.strip()


def contains(text: str, answer: str) -> bool:
    """Whether the normalized words of a text have those of an answer in them, in sequence.

    What a script writes without spaces may stand anywhere. Where normalizing leaves nothing of the
    answer (the grade ``A``), it is looked for as it stands, capitals included.
    """
    wanted, said = normalize(answer), normalize(text)
    if not wanted:
        bare = re.escape(answer.strip())
        return bool(bare) and re.search(rf"(?<!\w){bare}(?!\w)", text) is not None
    return f" {wanted} " in f" {said} " if needs_space(wanted, wanted) else wanted in said


def normalize(text: str) -> str:
    """SQuAD's normalization: lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())
