"""Neighbors with the edited fact in sight, and divergences, worked by hand."""

import math

import pytest

from editbench.metrics.specificity import CounterFactPlus, Divergence
from editbench.questions import Diverge, DivergeAnswer, Score, ScoreAnswer
from editbench.requests import EditCase, EditRequest, Probe

CASE = EditCase(
    EditRequest("7", "Ana", "{} is a", "poet"),
    probes=(
        Probe("efficacy", "Ana is a", "poet", "judge"),
        Probe("neighborhood", "Bo is a", "judge", "poet"),
        Probe("neighborhood", "Cy is a", "judge", "poet"),
    ),
)


def answer(*log_probs: float) -> ScoreAnswer:
    return ScoreAnswer(log_probs, (False,) * len(log_probs))


def test_counterfact_plus_worked_by_hand():
    answers = {
        Score("Ana is a poet. Bo is a", "judge"): answer(math.log(0.5)),
        Score("Ana is a poet. Bo is a", "poet"): answer(math.log(0.2)),
        # Two tokens: their geometric mean, 0.1, is what counts, as for success.
        Score("Ana is a poet. Cy is a", "judge"): answer(math.log(0.2), math.log(0.05)),
        Score("Ana is a poet. Cy is a", "poet"): answer(math.log(0.6)),
    }
    metric = CounterFactPlus()
    assert set(metric.questions(CASE)) == set(answers)
    assert metric.values(CASE, answers) == {
        "neighborhood_plus_success": 50.0,
        "neighborhood_plus_margin": pytest.approx(100 * (0.3 - 0.5) / 2),
    }


def test_edited_sentence_has_the_space_that_its_script_has():
    request = EditRequest("8", "李小明", "{}出生在", "中国")
    case = EditCase(request, probes=(Probe("neighborhood", "王芳出生在", "法国", "中国"),))
    first, _ = CounterFactPlus().questions(case)
    assert first.prompt == "李小明出生在中国. 王芳出生在"


def test_nothing_to_judge_gives_no_value():
    case = EditCase(CASE.request, probes=(Probe("neighborhood", "who?", "Bo"),))
    assert CounterFactPlus().questions(case) == ()
    assert CounterFactPlus().values(case, {}) == {}
    assert Divergence().values(EditCase(CASE.request), {}) == {}


def test_divergence_is_the_mean_over_neighbors_and_over_places():
    metric = Divergence()
    answers = {Diverge("Bo is a"): DivergeAnswer((0.5,)), Diverge("Cy is a"): DivergeAnswer((0.1,))}
    assert set(metric.questions(CASE)) == set(answers)
    assert metric.values(CASE, answers) == {"neighborhood_divergence": pytest.approx(0.3)}
    text = {Diverge("It rains.", everywhere=True): DivergeAnswer((0.0, 1.0, 2.0))}
    assert set(metric.questions("It rains.")) == set(text)
    assert metric.values("It rains.", text) == {"text_divergence": 1.0}
