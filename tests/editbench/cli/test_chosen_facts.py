"""Which facts ``edit`` writes, where the model says some of them already."""

import pytest

from editbench.cli.chosen_facts import ChosenFacts
from editbench.errors import ConfigError
from editbench.models.greedy import Said
from editbench.requests import EditCase, EditRequest


class Told:
    """Stands in for the display: keeps what is said."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def fact(case_id, target, subject="Lena Ort"):
    return EditCase(EditRequest(case_id, subject, "{} was born in", target))


FACTS = ChosenFacts(
    (fact("1", "Genoa"), fact("2", "Lisbon", "Ivo Brandt"), fact("3", "Oslo")), batch_size=2
)


@pytest.mark.parametrize(
    ("known", "left", "n_known"),
    [
        ((False, True, False), ["3"], 1),  # 1 and 3 come to be in one batch
        ((False, False, True), ["1", "2", "3"], 0),  # 1 would be in the way of 3
        ((True, False, False), ["2", "3"], 1),
    ],
)
def test_a_known_fact_is_left_out_unless_it_takes_the_place_of_another(known, left, n_known):
    told = Told()
    said = [Said(is_target=each, text="") for each in known]
    found = FACTS.without_known(said, told)
    assert [request.case_id for request in found.requests] == left
    assert told.lines == [f"Known already, left out: {n_known} fact(s)."]


def test_what_stands_is_what_no_later_batch_takes_the_place_of():
    assert [case.request.case_id for case in FACTS.standing] == ["2", "3"]
    assert list(FACTS.describe_superseded()) == ["Superseded by later batches: 1 fact(s): 1 by 3"]


def test_nothing_is_left_of_what_is_known():
    one = ChosenFacts(FACTS.cases[:1], None)
    with pytest.raises(ConfigError, match="the model knows them all"):
        one.without_known([Said(is_target=True, text="")], Told())
