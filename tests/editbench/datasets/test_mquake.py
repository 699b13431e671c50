"""MQuAKE and MQuAKE-Remastered: one case an edit, and the question over all facts at the last."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from editbench.datasets import MQuAKE, MQuAKERemastered
from editbench.errors import DataError
from editbench.portability import Hop, Query
from editbench.requests import EditCase, EditRequest, Probe
from editbench.runner.masking import mask_contaminated


def rewrite(subject: str, prompt: str, relation: str, new: str, true: str) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "relation_id": relation,
        "target_new": {"str": new, "id": "Q1"},
        "target_true": {"str": true, "id": "Q2"},
        "subject": subject,
        "question": f"What of {subject}?",
    }


CITIZEN = rewrite("Ida Moor", "{} is a citizen of", "P27", "Zorn", "Osk")
CAPITAL = rewrite("Zorn", "The capital of {} is", "P36", "Velm", "Zornburg")
RECORD = {
    "case_id": 7,
    "requested_rewrite": [CITIZEN],
    "questions": ["Which city rules Ida Moor's country?", "Capital of Ida Moor's country?", "So?"],
    "answer": "Oskburg",
    "answer_alias": [],
    "new_answer": "Zornburg",
    "new_answer_alias": ["Zorn City"],
    "single_hops": [],
    "new_single_hops": [],
    "orig": {
        "triples": [],
        "triples_labeled": [],
        "new_triples": [["Q7", "P27", "Q1"], ["Q1", "P36", "Q9"]],
        "new_triples_labeled": [
            ["Ida Moor", "country of citizenship", "Zorn"],
            ["Zorn", "capital", "Zornburg"],
        ],
        "edit_triples": [["Q7", "P27", "Q1"]],
    },
}
TWO_EDITS = {**RECORD, "case_id": 8, "requested_rewrite": [CITIZEN, CAPITAL], "new_answer": "Velm"}
OTHER = {**RECORD, "case_id": 9, "requested_rewrite": [CAPITAL], "questions": ["Where?"]}


def read(kind: type[MQuAKE], write, cache: Path, *records: dict[str, Any]) -> tuple[EditCase, ...]:
    return kind(write("mquake.json", json.dumps(records)), cache).cases()


def test_a_record_with_one_edit(write, cache: Path) -> None:
    (case,) = read(MQuAKE, write, cache, RECORD)
    assert case.request == EditRequest("7", "Ida Moor", "{} is a citizen of", "Zorn", "P27")
    assert case.target_true == "Osk"
    assert case.probes == (
        Probe("efficacy", "Ida Moor is a citizen of", "Zorn", "Osk"),
        Probe("paraphrase", "What of Ida Moor?", "Zorn", "Osk"),
    )
    (probe,) = case.portability
    assert (probe.kind, probe.needs_all, probe.conditions) == ("multi_hop", False, ())
    assert probe.queries[1] == Query("Capital of Ida Moor's country?", ("Zornburg", "Zorn City"))
    assert len(probe.queries) == 3
    assert probe.hops == (Hop("Ida Moor", "P27", "Zorn", is_edited=True),)


def test_a_record_with_two_edits_is_two_cases_and_asks_once(write, cache: Path) -> None:
    first, second = read(MQuAKE, write, cache, TWO_EDITS)
    assert [each.request.case_id for each in (first, second)] == ["8.1", "8.2"]
    assert first.portability == ()
    assert len(second.portability[0].hops) == 2
    # It counts only where both edits are written together.
    assert mask_contaminated([first, second])[1] == 0
    assert mask_contaminated([second]) == ([EditCase(second.request, "Zornburg", second.probes)], 1)


def test_remastered_masks_the_edits_of_others(write, cache: Path) -> None:
    """Record 9 moves the capital that the question of record 7 rests on, and 8 does so itself."""
    mine, other = read(MQuAKERemastered, write, cache, RECORD, OTHER)
    assert mine.portability[0].hops[1] == Hop("Zorn", "P36", "Zornburg", is_edited=False)
    assert mask_contaminated([mine])[1] == 0
    (masked, kept), n_masked = mask_contaminated([mine, other])
    assert (masked.portability, n_masked) == ((), 1)
    assert kept.portability == other.portability
    both = read(MQuAKERemastered, write, cache, TWO_EDITS, OTHER)
    assert mask_contaminated(both)[1] == 0
    # The original counts such questions all the same.
    assert mask_contaminated(read(MQuAKE, write, cache, RECORD, OTHER))[1] == 0


def test_rows_of_the_hub_are_read_as_well(write, cache: Path) -> None:
    flat = deepcopy(RECORD)
    chain = flat.pop("orig")
    for each in flat["requested_rewrite"]:
        each["target_new_str"] = each.pop("target_new")["str"]
        each["target_true_str"] = each.pop("target_true")["str"]
    flat |= {name: chain[name] for name in ("new_triples", "new_triples_labeled")}
    assert read(MQuAKERemastered, write, cache, flat) == read(
        MQuAKERemastered, write, cache, RECORD
    )


def test_an_edit_without_a_place_for_its_subject_is_left_out(write, cache: Path) -> None:
    bare = {**CITIZEN, "prompt": "Ida Moor is a citizen of"}
    path = write("mquake.json", json.dumps([{**RECORD, "requested_rewrite": [bare]}, OTHER]))
    dataset = MQuAKE(path, cache)
    assert [case.request.case_id for case in dataset.cases()] == ["9"]
    assert "'requested_rewrite[0].prompt' must contain '{}' exactly once" in dataset.left_out[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"requested_rewrite": []}, "'requested_rewrite' must hold at least one edit"),
        ({"requested_rewrite": {}}, "'requested_rewrite' has the wrong type, got {}"),
        ({"requested_rewrite": [{**CITIZEN, "subject": 3}]}, "'requested_rewrite[0].subject' has"),
        ({"questions": "Who?"}, "field 'questions' has the wrong type, got 'Who?'"),
        ({"questions": []}, "field 'questions' must hold at least one question"),
        ({"new_answer": None}, "field 'new_answer' is missing"),
        ({"case_id": None}, "field 'case_id' is missing"),
        ({"orig": {"new_triples": 3}}, "field 'orig.new_triples' must be a list of triples"),
        (
            {"orig": {"new_triples": [], "new_triples_labeled": [["a", "b", "c"]]}},
            "field 'orig.new_triples_labeled' must have 0 triples, got 1",
        ),
    ],
)
def test_faults_are_told_by_field(write, cache: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        read(MQuAKERemastered, write, cache, {**RECORD, **change})
    assert message in str(error.value)


def test_invalid_records_can_be_skipped(write, cache: Path) -> None:
    dataset = MQuAKE(write("mquake.json", json.dumps([{"case_id": 1}, RECORD])), cache)
    dataset.skip_invalid = True
    assert [case.request.case_id for case in dataset.cases()] == ["7"]
    assert len(dataset.left_out) == 1
