"""RippleEdits: a sentence taken apart, tests with conditions, neighbors."""

import json
from pathlib import Path
from typing import Any

import pytest

from editbench.datasets import RippleEditsDataset
from editbench.errors import DataError
from editbench.portability import PortabilityProbe, Query
from editbench.requests import EditCase, EditRequest, Probe


def query(prompt: str, *answers: tuple[str, ...]) -> dict[str, Any]:
    named = [{"value": value, "aliases": list(aliases)} for value, *aliases in answers]
    return {"prompt": prompt, "answers": named, "query_type": "regular", "subject_id": "Q1"}


def case_of(*tests: dict[str, Any], joined: str = "OR", conditions: Any = ()) -> dict[str, Any]:
    return {
        "test_queries": list(tests),
        "test_condition": joined,
        "condition_queries": list(conditions),
    }


EDIT = {
    "prompt": "The name of the mother of Ida Moor is Ann Moor.",
    "subject_id": "Q1",
    "relation": "MOTHER",
    "target_id": "Q2",
    "original_fact": {
        "prompt": "The name of the mother of Ida Moor is Eve Orr.",
        "subject_id": "Q1",
        "relation": "MOTHER",
        "target_id": "Q3",
    },
}
RECORD = {
    "example_type": "random",
    "edit": EDIT,
    "Relation_Specifity": [
        case_of(
            query("The father of Ida Moor is", ("Bob Moor", "Robert")),
            conditions=[query("The father of Ida Moor is", ("Bob Moor",))],
        )
    ],
    "Logical_Generalization": [
        case_of(
            query("The sister of Ida Moor is", ("Bea Moor",)),
            query("The siblings of Ida Moor are", ("Bea Moor", ""), ("Cy Moor", "C.")),
            joined="AND",
            conditions=[query("The child of Ann Moor is", ("Bea Moor", "B", "Bea"))],
        )
    ],
    "Subject_Aliasing": [case_of(query("The mother of I. Moor is", ("Ann Moor",)))],
    "Compositionality_I": [case_of(query("The mother of Ida Moor lives in"))],
    "Compositionality_II": [case_of(query("The name of Cy's aunt is", ("Ann Moor",)))],
    "Forgetfulness": [],
}


def read(write, cache: Path, *records: dict[str, Any]) -> RippleEditsDataset:
    return RippleEditsDataset(write("ripple.json", json.dumps(records)), cache)


def test_a_record_becomes_a_case(write, cache: Path) -> None:
    dataset = read(write, cache, RECORD)
    (case,) = dataset.cases()
    assert case == EditCase(
        EditRequest("0", "Ida Moor", "The name of the mother of {} is", "Ann Moor", "MOTHER"),
        target_true="Eve Orr",
        probes=(
            Probe("efficacy", "The name of the mother of Ida Moor is", "Ann Moor", "Eve Orr"),
            Probe(
                "neighborhood",
                "The father of Ida Moor is",
                "Bob Moor",
                aliases=("Robert",),
                conditions=(Query("The father of Ida Moor is", ("Bob Moor",)),),
            ),
        ),
        portability=(
            PortabilityProbe(
                "reasoning",
                (
                    Query("The sister of Ida Moor is", ("Bea Moor",)),
                    Query("The siblings of Ida Moor are", ("Bea Moor", "Cy Moor", "C.")),
                ),
                needs_all=True,
                conditions=(Query("The child of Ann Moor is", ("Bea Moor", "Bea")),),
            ),
            PortabilityProbe("multi_hop", (Query("The name of Cy's aunt is", ("Ann Moor",)),)),
            PortabilityProbe("aliasing", (Query("The mother of I. Moor is", ("Ann Moor",)),)),
        ),
    )
    (remark,) = dataset.remarks
    assert "ignored: 'test_queries' without an answer" in remark


@pytest.mark.parametrize(
    ("relation", "sentence", "prompt", "subject", "target"),
    [
        ("MOTHER", "The mother of Ida is Ann.", "The mother of {} is", "Ida", "Ann"),
        ("SIBLING", "The names of the siblings of Ida are Cy.",
         "The names of the siblings of {} are", "Ida", "Cy"),
        ("PLACE_OF_BIRTH", "The place of birth of Ida is Osk.",
         "The place of birth of {} is", "Ida", "Osk"),
        ("COUNTRY", "The name of the country which Osk is associated with is Zorn.",
         "The name of the country which {} is associated with is", "Osk", "Zorn"),
        ("FOLLOWS", "Book Two follows Book One.", "{} follows", "Book Two", "Book One"),
        ("FATHER", "The name of the father of Ida is Bob Jr..",
         "The name of the father of {} is", "Ida", "Bob Jr."),
    ],
)  # fmt: skip
def test_where_subject_and_target_stand(
    write, cache: Path, relation: str, sentence: str, prompt: str, subject: str, target: str
) -> None:
    edit = {"prompt": sentence, "relation": relation, "subject_id": "Q1", "target_id": "Q2"}
    (case,) = read(write, cache, {"edit": edit}).cases()
    assert (case.request.prompt, case.request.subject, case.request.target) == (
        prompt,
        subject,
        target,
    )


@pytest.mark.parametrize(
    "sentence",
    [
        "Ann is the mother of Ida.",
        "The name of the author of What Is Truth is John Is Great is Ann.",
        "The name of the mother of Ida is",
    ],
)
def test_what_can_be_read_in_no_way_or_in_two_is_left_out(
    write, cache: Path, sentence: str
) -> None:
    relation = "AUTHOR" if "author" in sentence else "MOTHER"
    dataset = read(write, cache, RECORD, {"edit": {"prompt": sentence, "relation": relation}})
    assert len(dataset.cases()) == 1
    assert "field 'edit.prompt' must be" in dataset.left_out[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edit": None}, "field 'edit' is missing"),
        ({"edit": {**EDIT, "relation": 3}}, "field 'edit.relation' has the wrong type, got 3"),
        (
            {"edit": {**EDIT, "original_fact": {"prompt": "Ida's mother is Eve."}}},
            "field 'edit.original_fact.prompt' must begin as the edit's does",
        ),
        ({"Forgetfulness": {}}, "field 'Forgetfulness' has the wrong type"),
        ({"Hearsay": []}, "Hearsay"),
        (
            {"Subject_Aliasing": [{**case_of(), "test_condition": "XOR"}]},
            "field 'Subject_Aliasing[0].test_condition' is unknown, got 'XOR'",
        ),
        (
            {"Subject_Aliasing": [case_of({"prompt": "Who?", "answers": ["Ann"]})]},
            "'Subject_Aliasing[0].test_queries[0].answers[0]' has the wrong type, got 'Ann'",
        ),
    ],
)
def test_faults_are_told_by_field(write, cache: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        read(write, cache, {**RECORD, **change}).cases()
    assert message in str(error.value)
