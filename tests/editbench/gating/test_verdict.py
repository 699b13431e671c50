"""What a model says, judged."""

import math
from xml.etree import ElementTree

import pytest

from editbench.errors import ConfigError
from editbench.gating.checks import Check
from editbench.gating.junit import write_junit
from editbench.gating.verdict import (
    PerplexityVerdict,
    Sides,
    Verdict,
    judge,
    judge_perplexity,
)
from editbench.models.answering import answer_questions
from editbench.models.greedy import write_greedily
from editbench.progress import report_nothing
from editbench.questions import Read, Score
from editbench.testing import tiny_model, toy_cases


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def other():
    return tiny_model(seed=1)


@pytest.fixture(scope="module")
def prompts():
    return [case.request.text for case in toy_cases(3)]


def said(model, prompt, n_tokens=16):
    return write_greedily(model, [Score(prompt, ".")], n_tokens)[0]


def holds(sides, *checks):
    return [verdict.holds for verdict in judge(sides, checks, report_nothing)]


def test_what_is_looked_for_stands_in_the_text_as_whole_words(model, prompts):
    words = said(model, prompts[0]).split()
    pair, part = " ".join(words[1:3]), words[1][:-1]
    asked = [("says", (pair.upper(),)), ("says", (part + "§",)), ("says", ("§", pair)),
             ("never_says", (pair,)), ("never_says", ("§",))]  # fmt: skip
    checks = [Check(str(n), kind, prompts[0], texts) for n, (kind, texts) in enumerate(asked)]
    assert holds(Sides(model), *checks) == [True, False, True, False, True]


@pytest.mark.parametrize(
    ("text", "said", "holds"),
    [
        ("Rome", " the city of Rome, Italy", True),
        ("Rome", " a fan of Romeo", False),
        ("new york", " New\n York.", True),
        ("C++", " C++ and C", True),
    ],
)
def test_words(text, said, holds):
    from editbench.gating.verdict import _occurs

    assert _occurs(text, said) is holds


def test_unchanged_compares_with_the_model_as_it_was(model, other, prompts):
    check = Check("c:1", "unchanged", prompts[0])
    assert holds(Sides(model, original=model), check) == [True]
    assert said(model, prompts[0]) != said(other, prompts[0])
    assert holds(Sides(model, original=other), check) == [False]
    (verdict,) = judge(Sides(model, original=other), [check], report_nothing)
    assert verdict.problem == (
        f"expected {said(other, prompts[0])!r}, got {said(model, prompts[0])!r}"
    )
    with pytest.raises(ConfigError, match="c:1 compares with the model as it was"):
        judge(Sides(model), [check], report_nothing)


def test_a_neighbor_survives_if_it_is_said_still_or_was_not_said_before(model, other, prompts):
    mine, theirs = said(model, prompts[0]), said(other, prompts[0])
    only_mine = next(word for word in mine.split() if word not in theirs.split())
    only_theirs = next(word for word in theirs.split() if word not in mine.split())
    found = [Check("1", "survives", prompts[0], (text,)) for text in (only_mine, only_theirs, "§")]
    assert holds(Sides(model, original=other), *found) == [True, False, False]
    assert holds(Sides(model, original=model), *found) == [True, True, True]
    assert holds(Sides(model), *found) == [True, False, False]


def test_the_number_of_tokens_is_the_checks(model, prompts):
    last = said(model, prompts[0], 16).split()[-1]
    short, long = (Check("c", "says", prompts[0], (last,), n_tokens=n) for n in (1, 16))
    assert holds(Sides(model), long) == [True]
    assert holds(Sides(model), short) == [last in said(model, prompts[0], 1).split()]


def test_perplexity_is_the_geometric_mean_over_texts(model, other, prompts):
    def perplexity(of):
        answers = answer_questions(of, [Read(text) for text in prompts], seed=0, token_budget=100)
        return math.exp(-sum(a.mean_log_prob for a in answers.values()) / len(answers))

    sides = Sides(model, original=other)
    verdict = judge_perplexity(sides, prompts, 5.0, report_nothing)
    assert verdict.before == pytest.approx(perplexity(other), rel=1e-6)
    assert verdict.now == pytest.approx(perplexity(model), rel=1e-6)
    assert verdict.holds is (perplexity(model) <= 1.05 * perplexity(other))
    with pytest.raises(ConfigError, match="compares with the model as it was"):
        judge_perplexity(Sides(model), prompts, 5.0, report_nothing)


def test_junit_is_read_by_another_program():
    checks = [Check("c:1", "says", "A <&> \x00", ("x",)), Check("c:2", "never_says", "B", ("y",))]
    verdicts = [Verdict(checks[0], False, " no", None), Verdict(checks[1], True, " no", None)]
    text = write_junit("gate of m", verdicts, PerplexityVerdict(10.0, 11.0, 5.0))
    (suite,) = ElementTree.fromstring(text.encode())
    assert suite.attrib == {"name": "gate of m", "tests": "3", "failures": "2", "errors": "0"}
    assert [case.get("name") for case in suite] == ["c:1: A <&> �", "c:2: B", "held-out text"]
    failures = [case.findtext("failure") for case in suite]
    assert failures[:2] == ["expected 'x', got ' no'", None]
    assert failures[2] == "expected a rise of at most 5 %, got 10 %: from 10 to 11"
