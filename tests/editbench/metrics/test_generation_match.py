"""Generated texts against expected answers, by SQuAD's published normalization."""

import pytest

from editbench.metrics.generation_match import (
    N_CHAT_TOKENS,
    N_TOKENS,
    GenerationExact,
    GenerationMatch,
    contains,
    normalize,
)
from editbench.questions import Write, WriteAnswer
from editbench.requests import EditCase, EditRequest, Probe

REQUEST = EditRequest("7", "Ana", "{} is a", "poet")


def plain(prompt: str) -> Write:
    return Write(prompt, N_TOKENS, sentence=True)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        # Lower case, punctuation, articles and white space, as SQuAD 1.1's script has them: marks
        # vanish without leaving a space, articles only as whole words.
        ("The  Eiffel\tTower!", "eiffel tower"),
        ("a well-known An. apple", "wellknown apple"),
        ("U.S.A.", "usa"),
        ("there, anthem", "there anthem"),
        ("“Zoë” – São Paulo", "“zoë” – são paulo"),  # only ASCII marks are punctuation
        ("The", ""),
    ],
)
def test_normalization_is_the_published_one(text, normal):
    assert normalize(text) == normal


@pytest.mark.parametrize(
    ("text", "answer", "said"),
    [
        (" English, and he lives there.", "English", True),
        (" the ENGLISH.", "The English", True),
        (" Romesville.", "Rome", False),  # whole words
        (" Old Rome, York.", "Rome York", True),  # marks do not count
        (" York Rome.", "Rome York", False),
        ("他出生在中国。", "中国", True),  # no spaces between words
        (" grade A.", "A", True),
        (" grade b, a good one.", "A", False),  # nothing is left of it: as it stands
        ("", "Rome", False),
        (" Rome", " ", False),
    ],
)
def test_containment(text, answer, said):
    assert contains(text, answer) == said


def test_rates_worked_by_hand():
    judged = EditCase(
        REQUEST,
        probes=(
            Probe("efficacy", "Ana is a", "poet", "judge"),
            Probe("paraphrase", "The job of Ana is", "poet", "judge"),
            Probe("paraphrase", "Ana, a", "poet", aliases=("writer of poems",)),
            Probe("neighborhood", "Bo is a", "judge", "poet"),
            Probe("neighborhood", "Cy is a", "judge"),
            Probe("neighborhood", "Di is a", "judge"),
        ),
    )
    answers = {
        plain("Ana is a"): WriteAnswer(" Poet."),
        plain("The job of Ana is"): WriteAnswer(" to judge."),
        plain("Ana, a"): WriteAnswer(" a writer of poems!"),
        plain("Bo is a"): WriteAnswer(" judge of the court."),
        plain("Cy is a"): WriteAnswer(" poet."),
        plain("Di is a"): WriteAnswer(" The judge"),
    }
    contained, exact = GenerationMatch(), GenerationExact()
    assert set(contained.questions(judged)) == set(exact.questions(judged)) == set(answers)
    assert contained.values(judged, answers) == {
        "efficacy_generation": 100.0,
        "paraphrase_generation": 50.0,
        "neighborhood_generation": pytest.approx(200 / 3),
    }
    assert exact.values(judged, answers) == {
        "efficacy_generation_exact": 100.0,
        "paraphrase_generation_exact": 50.0,  # the articles of "a writer" do not count
        "neighborhood_generation_exact": pytest.approx(100 / 3),
    }


@pytest.mark.parametrize(
    ("prompt", "expected", "aliases", "n_tokens"),
    [
        ("Ana is a", "poet", (), 5),
        ("Ana 出生在", "联合国总部", (), 15),
        ("What is Ana?", "poet", (), 24),
        ("Ana wrote", "The Winter of Our Discontent", (), 9),
        ("Ana wrote", "Winter", ("The Winter of Our Discontent",), 9),
    ],
)
def test_plain_texts_are_as_long_as_an_answer(prompt, expected, aliases, n_tokens):
    probe = Probe("efficacy", prompt, expected, aliases=aliases)
    (question,) = GenerationMatch().questions(EditCase(REQUEST, probes=(probe,)))
    assert question == Write(prompt, n_tokens, sentence=True)


def test_a_chat_is_asked_for_the_whole_answer():
    probe = Probe("efficacy", "What is Ana?", "poet", chat=True)
    (question,) = GenerationMatch().questions(EditCase(REQUEST, probes=(probe,)))
    assert question == Write("What is Ana?", N_CHAT_TOKENS, chat=True, sentence=False)
