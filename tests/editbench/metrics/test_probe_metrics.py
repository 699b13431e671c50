import pytest

from editbench.metrics.base import Metric
from editbench.metrics.probes import Accuracy, Success, TokenAccuracy
from editbench.portability import Query
from editbench.questions import Before, Score, ScoreAnswer
from editbench.requests import EditCase, EditRequest, Probe

REQUEST = EditRequest("7", "Ana", "{} is a", "poet")


def case(*probes: Probe) -> EditCase:
    return EditCase(REQUEST, probes=probes)


def answer(*log_probs: float, argmax: str = "") -> ScoreAnswer:
    """`argmax` has a '+' for each token that is the most likely one, '-' for others."""
    right = tuple(sign == "+" for sign in argmax) or (False,) * len(log_probs)
    return ScoreAnswer(log_probs, right)


def test_success_worked_by_hand():
    judged = case(
        Probe("efficacy", "Ana is a", "poet", "judge"),
        Probe("paraphrase", "The job of Ana is", "poet", "judge"),
        Probe("paraphrase", "Ana, a", "poet", "judge"),
        Probe("neighborhood", "Bo is a", "judge", "poet"),
        Probe("neighborhood", "Cy is a", "judge", "poet"),
        Probe("neighborhood", "Di is a", "judge", "poet"),
    )
    answers = {
        # The new object wins: −1 > −2.
        Score("Ana is a", "poet"): answer(-1.0),
        Score("Ana is a", "judge"): answer(-2.0),
        # One of two paraphrases is won.
        Score("The job of Ana is", "poet"): answer(-0.1),
        Score("The job of Ana is", "judge"): answer(-0.2),
        Score("Ana, a", "poet"): answer(-3.0),
        Score("Ana, a", "judge"): answer(-0.2),
        # Neighborhood expects the true object; it wins once, and a tie is no success.
        Score("Bo is a", "judge"): answer(-1.0),
        Score("Bo is a", "poet"): answer(-1.5),
        Score("Cy is a", "judge"): answer(-1.0),
        Score("Cy is a", "poet"): answer(-1.0),
        Score("Di is a", "judge"): answer(-2.0),
        Score("Di is a", "poet"): answer(-1.0),
    }
    metric = Success()
    assert set(metric.questions(judged)) == set(answers)
    assert metric.values(judged, answers) == {
        "efficacy_success": 100.0,
        "paraphrase_success": 50.0,
        "neighborhood_success": pytest.approx(100 / 3),
    }


def test_success_compares_mean_log_probabilities_not_probabilities():
    probe = Probe("efficacy", "Ana is a", "bus driver", "judge")
    answers = {
        # log P = −3 < −2, but −1.5 a token: the reference calls it a success, the paper would not.
        Score("Ana is a", "bus driver"): answer(-1.0, -2.0),
        Score("Ana is a", "judge"): answer(-2.0),
    }
    assert Success().values(case(probe), answers) == {"efficacy_success": 100.0}


def test_a_tie_is_no_success_for_either_side():
    answers = {Score("p", "a"): answer(-1.0), Score("p", "b"): answer(-0.5, -1.5)}
    for expected, alternative in (("a", "b"), ("b", "a")):
        probe = Probe("neighborhood", "p", expected, alternative)
        assert Success().values(case(probe), answers) == {"neighborhood_success": 0.0}


def test_accuracies_worked_by_hand():
    judged = case(
        Probe("efficacy", "e", "poet"),
        Probe("paraphrase", "p", "poet laureate"),
        Probe("neighborhood", "n1", "bus driver"),
        Probe("neighborhood", "n2", "judge"),
        Probe("neighborhood", "n3", "old man"),
    )
    answers = {
        Score("e", "poet"): answer(-1.0, argmax="+"),
        Score("p", "poet laureate"): answer(-1.0, -1.0, argmax="-+"),
        Score("n1", "bus driver"): answer(-1.0, -1.0, -1.0, argmax="+++"),
        Score("n2", "judge"): answer(-1.0, argmax="-"),
        Score("n3", "old man"): answer(-1.0, -1.0, argmax="+-"),
    }
    assert set(Accuracy().questions(judged)) == set(answers)
    assert set(TokenAccuracy().questions(judged)) == set(answers)
    # Whole objects: 1 of 1, 0 of 1, 1 of 3.
    assert Accuracy().values(judged, answers) == {
        "efficacy_accuracy": 100.0,
        "paraphrase_accuracy": 0.0,
        "neighborhood_accuracy": pytest.approx(100 / 3),
    }
    # Tokens, pooled over a kind's prompts: 1 of 1, 1 of 2, 4 of 6.
    assert TokenAccuracy().values(judged, answers) == {
        "efficacy_accuracy": 100.0,
        "paraphrase_accuracy": 50.0,
        "neighborhood_accuracy": pytest.approx(400 / 6),
    }


@pytest.mark.parametrize("metric", [Success(), Accuracy(), TokenAccuracy()])
def test_what_a_case_cannot_define_is_left_out(metric: Metric):
    assert metric.questions(case()) == ()
    assert metric.values(case(), {}) == {}
    only = case(Probe("paraphrase", "p", "a", "b"))
    answers = {question: answer(-1.0, argmax="+") for question in metric.questions(only)}
    assert list(metric.values(only, answers)) == [metric.produces[1]]


def test_without_an_alternative_there_is_no_success():
    mixed = case(Probe("efficacy", "p", "a"), Probe("efficacy", "q", "a", "b"))
    answers = {Score("q", "a"): answer(-1.0), Score("q", "b"): answer(-2.0)}
    assert set(Success().questions(mixed)) == set(answers)
    assert Success().values(mixed, answers) == {"efficacy_success": 100.0}
    assert Success().questions(case(Probe("efficacy", "p", "a"))) == ()


@pytest.mark.parametrize("metric", [Success(), Accuracy(), TokenAccuracy()])
def test_a_question_is_named_once(metric: Metric):
    twice = Probe("efficacy", "p", "a", "b")
    questions = metric.questions(case(twice, twice))
    assert len(questions) == len(set(questions)) > 0


def test_names_are_the_documented_ones():
    kinds = ("efficacy", "paraphrase", "neighborhood")
    success = tuple(f"{kind}_success" for kind in kinds)
    accuracy = tuple(f"{kind}_accuracy" for kind in kinds)
    assert (Success.name, Success.produces, Success.aggregates) == (
        "success",
        success,
        {"score": success},
    )
    for metric, name in ((Accuracy, "accuracy"), (TokenAccuracy, "token-accuracy")):
        assert (metric.name, metric.produces) == (name, accuracy)
        assert metric.aggregates == {"accuracy_score": accuracy}


def test_a_probe_whose_condition_fails_without_the_edit_does_not_count():
    known, unknown = Query("Bo is a", ("judge",)), Query("Cy is a", ("judge", "lawyer"))
    judged = case(
        Probe("neighborhood", "Bo is a", "judge", conditions=(known,)),
        Probe("neighborhood", "Cy is a", "judge", conditions=(known, unknown)),
    )
    answers = {
        Score("Bo is a", "judge"): answer(-1.0, argmax="-"),
        Score("Cy is a", "judge"): answer(-1.0, argmax="+"),
        Before(Score("Bo is a", "judge")): answer(-1.0, argmax="+"),
        Before(Score("Cy is a", "judge")): answer(-1.0, argmax="-"),
        Before(Score("Cy is a", "lawyer")): answer(-1.0, argmax="-"),
    }
    metric = Accuracy()
    assert set(metric.questions(judged)) == set(answers)
    assert metric.values(judged, answers) == {"neighborhood_accuracy": 0.0}
    answers[Before(Score("Cy is a", "lawyer"))] = answer(-1.0, argmax="+")
    assert metric.values(judged, answers) == {"neighborhood_accuracy": 50.0}
    assert Success().questions(judged) == ()
