"""Portability, worked by hand."""

import pytest

from editbench.metrics.generation_match import N_TOKENS
from editbench.metrics.portability import Portability
from editbench.portability import PortabilityProbe, Query
from editbench.questions import Before, Score, ScoreAnswer, Write, WriteAnswer
from editbench.requests import EditCase, EditRequest

REQUEST = EditRequest("7", "Ida", "The mother of {} is", "Ann")
RIGHT = ScoreAnswer((-0.1, -0.1), (True, True))
WRONG = ScoreAnswer((-0.1, -2.0), (True, False))  # one token of two is not enough


def text(prompt: str) -> Write:
    return Write(prompt, N_TOKENS, sentence=True)


def probe(kind, *queries: Query, **fields) -> PortabilityProbe:
    return PortabilityProbe(kind, queries, **fields)


def test_worked_example():
    sister, siblings = Query("Her sister is", ("Bea",)), Query("Her siblings are", ("Bea", "Cy"))
    born = Query("Her mother was born in", ("Osk", "Port Osk"))
    case = EditCase(
        REQUEST,
        portability=(
            probe("reasoning", sister, siblings, needs_all=True),
            probe("reasoning", sister, siblings),
            probe("multi_hop", born),
            probe("reversal", Query("The child of Ann is", ("Ida",))),
        ),
    )
    answers = {
        Score("Her sister is", "Bea"): WRONG,
        Score("Her siblings are", "Bea"): WRONG,
        Score("Her siblings are", "Cy"): RIGHT,
        Score("Her mother was born in", "Osk"): WRONG,
        Score("Her mother was born in", "Port Osk"): RIGHT,  # an alias
        Score("The child of Ann is", "Ida"): WRONG,
        # In its own words the model says that of the first three probes, too.
        text("Her sister is"): WriteAnswer("the painter Bea."),
        text("Her siblings are"): WriteAnswer("Bea and Cy."),
        text("Her mother was born in"): WriteAnswer("a port, Osk"),
        text("The child of Ann is"): WriteAnswer("Idalia."),
    }
    metric = Portability()
    assert set(metric.questions(case)) == set(answers)
    assert metric.values(case, answers) == {
        "portability_accuracy": 50.0,  # the second and the third of four
        "portability_generation": 75.0,
        "reasoning_accuracy": 50.0,
        "multi_hop_accuracy": 100.0,
        "reversal_accuracy": 0.0,
    }


def test_a_probe_whose_condition_fails_without_the_edit_does_not_count():
    known, unknown = Query("Ann was born in", ("Osk",)), Query("Ann's child is", ("Bea",))
    lives = Query("Her mother lives in", ("Osk",))
    case = EditCase(
        REQUEST,
        portability=(
            probe("multi_hop", lives, conditions=(known,)),
            probe("multi_hop", Query("Her mother is from", ("Osk",)), conditions=(known, unknown)),
        ),
    )
    (ask_known,), (ask_unknown,) = known.questions, unknown.questions
    answers = {
        Score("Her mother lives in", "Osk"): RIGHT,
        Score("Her mother is from", "Osk"): WRONG,
        Before(ask_known): RIGHT,
        Before(ask_unknown): WRONG,
        # What the edited model would say there does not matter.
        ask_known: WRONG,
        ask_unknown: RIGHT,
        text("Her mother lives in"): WriteAnswer("Rome."),
        text("Her mother is from"): WriteAnswer("Osk."),
        # Left to itself the unedited model says both.
        Before(text("Ann was born in")): WriteAnswer("Osk."),
        Before(text("Ann's child is")): WriteAnswer("the young Bea."),
    }
    metric = Portability()
    assert set(metric.questions(case)) == set(answers) - {ask_known, ask_unknown}
    assert metric.values(case, answers) == {
        "portability_accuracy": 100.0,  # of the first alone
        "portability_generation": 50.0,  # of both
        "multi_hop_accuracy": 100.0,
    }
    silent = Before(text("Ann was born in"))
    nothing_known = {**answers, Before(ask_known): WRONG, silent: WriteAnswer("")}
    assert metric.values(case, nothing_known) == {}


@pytest.mark.parametrize("portability", [(), None])
def test_a_case_without_consequences_has_no_value(portability):
    case = EditCase(REQUEST) if portability is None else EditCase(REQUEST, portability=portability)
    assert Portability().questions(case) == ()
    assert Portability().values(case, {}) == {}
