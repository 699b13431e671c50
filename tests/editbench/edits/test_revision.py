"""Facts that go, come, and take the place of others."""

from datetime import date

import pytest

from editbench.edits.revision import compare_facts, revise, separate_batches
from editbench.errors import RequestError, UnknownNameError
from editbench.requests import EditRequest, FactNotes

LENA = EditRequest("1", "Lena Ort", "{} was born in", "Genoa", relation="born in")
IVO = EditRequest("2", "Ivo Brandt", "{} was born in", "Lisbon", relation="born in")
MARA = EditRequest("3", "Mara Voss", "{} works as a", "pilot")


def ids(requests):
    return [request.case_id for request in requests]


def test_what_is_dropped_goes_and_the_rest_keeps_its_order():
    revision = revise([LENA, IVO, MARA], drop=["2"])
    assert revision.requests == (LENA, MARA)
    assert revision.dropped == (IVO,)


def test_an_id_that_is_not_there_is_refused_and_the_nearest_one_named():
    with pytest.raises(UnknownNameError, match="'lena-1'"):
        revise([EditRequest("lena-1", "Lena", "{} is", "here")], drop=["lena_1"])


def test_a_fact_with_another_target_supersedes_the_older_one():
    by_relation = EditRequest("9", "Lena Ort", "The birthplace of {} is", "Oslo", "born in")
    by_prompt = EditRequest("8", "Mara Voss", "{} works as a", "baker")
    revision = revise([LENA, IVO, MARA], more=[by_relation, by_prompt])
    assert revision.requests == (IVO, by_relation, by_prompt)
    assert revision.superseded == ((LENA, by_relation), (MARA, by_prompt))
    assert revision.added == (by_relation, by_prompt)


def test_a_fact_that_is_there_already_stays_where_it_is_and_takes_on_new_notes():
    noted = EditRequest("7", *LENA.fact[:3], notes=FactNotes(author="R. Kern"))
    revision = revise([LENA, IVO], more=[noted])
    assert ids(revision.requests) == ["1", "2"]
    assert revision.requests[0].notes.author == "R. Kern"
    assert ids(revision.known) == ["1"]
    assert revision.added == ()


def test_ids_stay_distinct():
    new = EditRequest("1", "Nils Rau", "{} was born in", "Turin")
    also = EditRequest("1-2", "Nora Rau", "{} was born in", "Turin")
    revision = revise([LENA], more=[also, new])
    assert ids(revision.requests) == ["1", "1-2", "1-3"]


@pytest.mark.parametrize(
    ("day", "left"), [("2026-03-30", ["1", "2"]), ("2026-03-31", ["2"]), ("2027-01-01", ["2"])]
)
def test_what_has_expired_is_left_out_from_its_day_on(day, left):
    ending = EditRequest("1", *LENA.fact[:3], notes=FactNotes(expires="2026-03-31"))
    for revision in (
        revise([ending, IVO], as_of=date.fromisoformat(day)),
        revise([], more=[ending, IVO], as_of=date.fromisoformat(day)),
    ):
        assert ids(revision.requests) == left
        assert len(revision.expired) == 2 - len(left)
    assert ids(revise([ending, IVO]).requests) == ["1", "2"]


@pytest.mark.parametrize("notes", [FactNotes(expires="2027-03-31"), FactNotes()])
def test_a_fact_that_is_written_anew_with_a_later_end_or_none_is_there(notes):
    ending = EditRequest("1", *LENA.fact[:3], notes=FactNotes(expires="2026-03-31"))
    renewed = EditRequest("1", *LENA.fact[:3], notes=notes)
    revision = revise([ending, IVO], more=[renewed], as_of=date(2026, 8, 1))
    assert sorted(ids(revision.requests)) == ["1", "2"]
    assert revision.expired == ()
    (written,) = (request for request in revision.requests if request.case_id == "1")
    assert written.notes == notes


def test_undoing_a_restored_fact_is_a_change():
    """What is in force counts: the first fact is superseded again."""
    restored = EditRequest("5", *LENA.fact[:3])
    difference = compare_facts([LENA, MOVED, restored], [LENA, MOVED])
    assert difference.changed == ((restored, MOVED),)
    assert (difference.n_same, difference.dropped, difference.added) == (0, (), ())


def test_two_edits_are_compared_by_what_their_facts_say():
    moved = EditRequest("x", "Lena Ort", "{} was born in", "Oslo")
    same = EditRequest("y", *IVO.fact[:3])
    new = EditRequest("z", "Nils Rau", "{} was born in", "Turin")
    difference = compare_facts([LENA, IVO, MARA], [new, same, moved])
    assert difference.dropped == (MARA,)
    assert difference.added == (new,)
    assert difference.changed == ((LENA, moved),)
    assert difference.n_same == 1
    nothing = compare_facts([LENA, IVO], [IVO, LENA])
    assert (nothing.dropped, nothing.added, nothing.changed, nothing.n_same) == ((), (), (), 2)


MOVED = EditRequest("4", "Lena Ort", "{} was born in", "Oslo")


def test_a_later_batch_supersedes_what_an_earlier_one_wrote_and_both_are_written():
    for revision in (
        revise([], more=[LENA, IVO, MOVED], batch_size=2),
        revise([LENA, IVO, MOVED], batch_size=2),
        revise([LENA, IVO, MOVED], more=[LENA, IVO, MOVED], batch_size=2),
    ):
        assert revision.requests == (LENA, IVO, MOVED)
        assert revision.superseded == ()


def test_new_facts_of_one_batch_must_not_contradict_each_other():
    for size in (None, 3):
        with pytest.raises(RequestError, match="conflicting requests: 1 group"):
            revise([], more=[LENA, IVO, MOVED], batch_size=size)
    with pytest.raises(RequestError, match="conflicting requests"):
        revise([LENA], more=[LENA, MOVED])


def test_old_facts_that_come_to_be_in_one_batch_are_reduced_to_the_later():
    revision = revise([LENA, IVO, MOVED], drop=["2"], batch_size=2)
    assert revision.requests == (MOVED,)
    assert revision.superseded == ((LENA, MOVED),)
    # Without 1, 3 comes to be beside 5.
    baker = EditRequest("5", "Mara Voss", "{} works as a", "baker")
    rest, left_out = separate_batches([LENA, MOVED, IVO, MARA, baker], 2)
    assert rest == [MOVED, IVO, baker]
    assert left_out == {LENA: MOVED, MARA: baker}


def test_an_old_fact_that_was_superseded_can_hold_again():
    again = EditRequest("9", *LENA.fact[:3])
    revision = revise([LENA, IVO, MOVED], more=[again], batch_size=2)
    assert ids(revision.requests) == ["2", "9"]
    assert revision.superseded == ((MOVED, again),)
    assert revision.added == (again,)
    revision = revise([LENA, IVO], more=[MOVED, MARA, again], batch_size=2)
    assert ids(revision.requests) == ["2", "4", "3", "9"]
