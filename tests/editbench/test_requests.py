"""Requests, and the conflicts between them (Eqn 5)."""

import hashlib
import json
import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editbench.edits.card import hash_requests
from editbench.errors import RequestError, UnknownNameError
from editbench.questions import Score
from editbench.requests import (
    EditCase,
    EditRequest,
    Probe,
    find_conflicts,
    find_superseded,
    resolve_conflicts,
)

SHARED = Path(__file__).parents[2].parent / "shared"
ALL_REQUESTS = SHARED / "data" / "counterfact" / "requests-21919.json"


def request(
    case_id: str,
    target: str,
    subject: str = "Lyon",
    prompt: str = "{} lies in",
    relation: str | None = None,
) -> EditRequest:
    return EditRequest(case_id, subject, prompt, target, relation)


# Few values for each field, so that requests often meet.
requests = st.builds(
    EditRequest,
    case_id=st.uuids().map(str),
    subject=st.sampled_from(["Lyon", "Nice", "Metz"]),
    prompt=st.sampled_from(["{} lies in", "{} is in", "Where is {}?"]),
    target=st.sampled_from(["Spain", "Peru", " Peru"]),
    relation=st.sampled_from([None, "P17", "P30", "P131"]),
)
request_lists = st.lists(requests, max_size=12, unique_by=lambda each: each.case_id)


def same_place(one: EditRequest, other: EditRequest) -> bool:
    return one.subject == other.subject and (
        one.prompt == other.prompt or (one.relation is not None and one.relation == other.relation)
    )


def conflicting_ids(given_requests: list[EditRequest]) -> set[frozenset[str]]:
    """Oracle: close "same place" transitively, keep the classes with two targets."""
    classes = [{each.case_id} for each in given_requests]
    for one, other in combinations(given_requests, 2):
        if same_place(one, other):
            joined = [found for found in classes if found & {one.case_id, other.case_id}]
            classes = [found for found in classes if found not in joined]
            classes.append(set.union(*joined))
    target = {each.case_id: each.target.strip() for each in given_requests}
    return {frozenset(found) for found in classes if len({target[each] for each in found}) > 1}


class TestEditRequest:
    def test_fills_the_subject_into_the_prompt(self) -> None:
        made = request("1", "Spain", subject="{x}", prompt="Where {} is: in")
        assert made.text == "Where {x} is: in"
        assert made.text[made.subject_start :].startswith("{x}")

    @pytest.mark.parametrize("prompt", ["Lyon lies in", "{} and {} lie in", "{0} lies in"])
    def test_refuses_a_prompt_without_exactly_one_place(self, prompt: str) -> None:
        with pytest.raises(RequestError, match=r"request '7': field 'prompt' .* exactly once, got"):
            request("7", "Spain", prompt=prompt)

    @pytest.mark.parametrize("field", ["subject", "target"])
    def test_refuses_blank_fields(self, field: str) -> None:
        values = {"case_id": "7", "target": "Spain", field: " \t"}
        with pytest.raises(RequestError, match=f"request '7': field '{field}' must not be empty"):
            request(**values)


class TestFindConflicts:
    def test_same_prompt(self) -> None:
        (conflict,) = find_conflicts([request("1", "Spain"), request("2", "Peru")])
        assert str(conflict) == "'Lyon', '{} lies in': 'Spain' (1), 'Peru' (2)"

    def test_same_relation_under_other_words(self) -> None:
        (conflict,) = find_conflicts(
            [
                request("1", "Spain", prompt="{} is in", relation="P17"),
                request("2", "Peru", prompt="{} lies in", relation="P17"),
            ]
        )
        assert conflict.relation == "P17"

    @pytest.mark.parametrize(
        "other",
        [
            request("2", "Spain"),
            request("2", " Spain "),
            request("2", "Peru", subject="Nice"),
            request("2", "Peru", prompt="{} was founded in"),
        ],
    )
    def test_no_conflict(self, other: EditRequest) -> None:
        assert find_conflicts([request("1", "Spain"), other]) == []

    def test_transitive_through_prompt_and_relation(self) -> None:
        chain = [
            request("1", "Spain", prompt="a {}", relation=None),
            request("2", "Spain", prompt="b {}", relation="P17"),
            request("3", "Peru", prompt="a {}", relation="P17"),
        ]
        (conflict,) = find_conflicts(chain)
        assert conflict.requests == tuple(chain)

    @settings(max_examples=50, deadline=None)
    @given(request_lists)
    def test_equals_the_definition(self, given_requests: list[EditRequest]) -> None:
        found = find_conflicts(given_requests)
        assert {
            frozenset(each.case_id for each in conflict.requests) for conflict in found
        } == conflicting_ids(given_requests)

    @settings(max_examples=50, deadline=None)
    @given(request_lists)
    def test_lists_conflicts_and_members_in_order(self, given_requests: list[EditRequest]) -> None:
        position = {each.case_id: index for index, each in enumerate(given_requests)}
        found = [
            [position[each.case_id] for each in conflict.requests]
            for conflict in find_conflicts(given_requests)
        ]
        assert all(group == sorted(group) for group in found)
        assert found == sorted(found)

    @settings(max_examples=50, deadline=None)
    @given(request_lists, st.randoms(use_true_random=False))
    def test_order_does_not_decide_what_conflicts(self, given_requests, random) -> None:
        shuffled = random.sample(given_requests, len(given_requests))

        def ids(found):
            return {frozenset(each.case_id for each in conflict.requests) for conflict in found}

        assert ids(find_conflicts(shuffled)) == ids(find_conflicts(given_requests))

    @pytest.mark.parametrize("n_places", [1, 20_000])
    def test_twenty_thousand_requests_take_moments(self, n_places: int) -> None:
        many = [
            request(str(index), f"target {index}", prompt=f"{{}} {index % n_places}")
            for index in range(20_000)
        ]
        started = time.process_time()
        found = find_conflicts(many)
        assert time.process_time() - started < 2
        assert len(found) == (1 if n_places == 1 else 0)

    def test_all_of_counterfact(self) -> None:
        if not ALL_REQUESTS.exists():
            pytest.skip(f"needs {ALL_REQUESTS}")
        everything = [
            EditRequest(
                str(each["case_id"]),
                each["subject"],
                each["prompt"],
                each["target_new"],
                each["relation_id"],
            )
            for each in json.loads(ALL_REQUESTS.read_text(encoding="utf-8"))
        ]
        started = time.process_time()
        found = find_conflicts(everything)
        assert time.process_time() - started < 2
        # 339 groups share subject and relation id; four pairs share only subject and prompt.
        assert len(everything) == 21_919
        assert len(found) == 343
        assert sum(len(conflict.requests) for conflict in found) == 1_017


class TestResolveConflicts:
    disagreeing = (
        EditCase(request("1", "Spain")),
        EditCase(request("2", "Rome", prompt="{} was founded by")),
        EditCase(request("3", "Peru")),
    )

    def test_no_conflict_keeps_all_under_every_policy(self) -> None:
        for policy in ("error", "drop-all", "keep-first"):
            assert resolve_conflicts(self.disagreeing[:2], policy) == (
                list(self.disagreeing[:2]),
                [],
            )

    def test_error_names_the_first_and_the_ways_out(self) -> None:
        with pytest.raises(RequestError) as caught:
            resolve_conflicts(self.disagreeing, "error")
        message = str(caught.value)
        assert "1 group(s)" in message
        assert "'Spain' (1), 'Peru' (3)" in message
        assert "--on-conflict drop-all" in message

    def test_drop_all(self) -> None:
        kept, conflicts = resolve_conflicts(self.disagreeing, "drop-all")
        assert kept == [self.disagreeing[1]]
        assert len(conflicts) == 1

    def test_keep_first(self) -> None:
        kept, conflicts = resolve_conflicts(self.disagreeing, "keep-first")
        assert kept == list(self.disagreeing[:2])
        assert len(conflicts) == 1

    def test_keep_first_keeps_one_of_a_case_that_is_listed_twice(self) -> None:
        case = self.disagreeing[0]
        kept, _ = resolve_conflicts([case, case, self.disagreeing[2]], "keep-first")
        assert kept == [case]

    def test_an_unknown_policy_is_refused(self) -> None:
        with pytest.raises(UnknownNameError, match=r"'drop_all'\. Did you mean 'drop-all'"):
            resolve_conflicts(self.disagreeing, "drop_all")  # type: ignore[arg-type]

    @settings(max_examples=50, deadline=None)
    @given(request_lists)
    def test_what_remains_agrees(self, given_requests: list[EditRequest]) -> None:
        cases = [EditCase(each) for each in given_requests]
        conflicting = set().union(*conflicting_ids(given_requests))
        for policy in ("drop-all", "keep-first"):
            kept, conflicts = resolve_conflicts(cases, policy)
            assert find_conflicts([case.request for case in kept]) == []
            assert kept == [case for case in cases if case in kept]
            n_lost = sum(
                len(conflict.requests) - (policy == "keep-first") for conflict in conflicts
            )
            assert len(cases) - len(kept) == n_lost
            untouched = [case for case in cases if case.request.case_id not in conflicting]
            assert all(case in kept for case in untouched)


class TestSuperseded:
    def test_the_last_one_with_another_target_takes_the_place(self) -> None:
        given = [
            request("a", "Spain"),
            request("b", "Spain "),
            request("c", "Peru"),
            request("d", "Peru", subject="Nice"),
            request("e", "Spain"),
        ]
        assert find_superseded(given[:4]) == {0: 2, 1: 2}
        assert find_superseded(given) == {2: 4}  # what was said first holds again

    @given(request_lists)
    def test_nobody_contradicts_what_is_left(self, given_requests: list[EditRequest]) -> None:
        superseded = find_superseded(given_requests)
        assert all(later > place for place, later in superseded.items())
        left = [each for place, each in enumerate(given_requests) if place not in superseded]
        assert find_conflicts(left) == []


class TestJoinerAndChat:
    PLAIN = EditRequest("1", "Lyon", "{} lies in", "France")

    def test_unset_they_leave_addresses_as_they_were(self) -> None:
        fields = {
            "case_id": "1",
            "subject": "Lyon",
            "prompt": "{} lies in",
            "target": "France",
            "relation": None,
        }
        content = json.dumps([fields], ensure_ascii=False).encode()
        assert hash_requests([self.PLAIN]) == hashlib.sha256(content).hexdigest()
        shown = ", ".join(f"{name}={value!r}" for name, value in fields.items())
        assert repr(self.PLAIN) == f"EditRequest({shown})"
        assert repr(Probe("efficacy", "Lyon lies in", "France")) == (
            "Probe(kind='efficacy', prompt='Lyon lies in', expected='France', alternative=None)"
        )

    @pytest.mark.parametrize("changes", [{"joiner": ""}, {"joiner": " "}, {"chat": True}])
    def test_set_they_tell_requests_apart(self, changes) -> None:
        other = replace(self.PLAIN, **changes)
        assert hash_requests([other]) != hash_requests([self.PLAIN])
        assert other.fact != self.PLAIN.fact
        assert repr(other) != repr(self.PLAIN)
        assert other.question == replace(self.PLAIN.question, **changes)

    def test_probe_asks_as_its_request_does(self) -> None:
        probe = Probe("efficacy", "Lyon lies in", "France", joiner="", chat=True)
        assert probe.question("Italy") == Score("Lyon lies in", "Italy", "", True)
