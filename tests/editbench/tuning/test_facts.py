"""Which facts a search sees, and which it does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from editbench.errors import ConfigError
from editbench.requests import EditCase, EditRequest
from editbench.testing import toy_cases
from editbench.tuning.facts import Size, divide, leave_out


def fact(number, subject):
    return EditCase(EditRequest(str(number), subject, f"{{}} has number {number}", "three"))


def subjects_of(facts):
    return {case.request.subject.casefold() for case in facts.cases()}


@given(
    st.lists(st.sampled_from("abcdefghAB"), min_size=1, max_size=40),
    st.integers(1, 12),
    st.integers(1, 30),
    st.integers(0, 3),
)
def test_no_subject_is_in_both_halves(names, n_edits, min_cases, seed):
    cases = [fact(*pair) for pair in enumerate(names)]
    try:
        division = divide(cases, n_edits, min_cases=min_cases, seed=seed)
    except ConfigError:
        assert n_edits > len(cases) // 2 or len(set("".join(names).lower())) < 8
        return
    size = division.size
    assert subjects_of(division.search).isdisjoint(subjects_of(division.held_out))
    for half in (division.search, division.held_out):
        assert len(half.cases()) == size.n_edits * size.n_batches
        assert set(half.cases()) <= set(cases)
    assert size.n_edits == n_edits
    assert n_edits * (size.n_batches - 1) < min_cases
    again = divide(cases, n_edits, min_cases=min_cases, seed=seed)
    assert again.search.fingerprint == division.search.fingerprint


def test_rungs_grow_to_the_whole():
    cases = toy_cases(32)
    assert divide(cases, 16, min_cases=1, seed=0).rungs == (Size(4, 1), Size(16, 1))
    assert divide(cases, 1, min_cases=12, seed=0).rungs == (Size(1, 3), Size(1, 12))
    assert divide(cases, 3, min_cases=1, seed=0).rungs == (Size(3, 1),)


def test_as_many_facts_as_there_are():
    assert divide(toy_cases(11), None, min_cases=100, seed=0).size == Size(5, 1)


def test_too_few_facts():
    with pytest.raises(ConfigError, match="got 6 facts about 6 subjects for n_edits 4; expected a"):
        divide(toy_cases(6), 4, min_cases=1, seed=0)
    with pytest.raises(ConfigError, match="got 0 facts"):
        divide([], None, min_cases=1, seed=0)


def test_of_contradictions_the_first_is_kept():
    cases = [fact(0, "Ana"), fact(0, "Boris"), fact(1, "Carmen"), fact(2, "Dora")]
    other = EditCase(EditRequest("late", "Ana", "{} has number 0", "four"))
    division = divide([*cases, other], 2, min_cases=1, seed=0)
    found = {
        case.request.case_id for case in (*division.search.cases(), *division.held_out.cases())
    }
    assert "late" not in found


def test_excluded_subjects_are_left_out_whatever_their_capitals():
    cases = [fact(0, "Ana Lund"), fact(1, "Boris")]
    assert leave_out(cases, [fact(7, " ANA lund")]) == cases[1:]
