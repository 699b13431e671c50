"""KnowEdit, QAEdit and WikiBigEdit in their own formats."""

import json
from pathlib import Path

import pytest

from editbench.datasets import KnowEditDataset, QAEditDataset, WikiBigEditDataset
from editbench.errors import ConfigError, DataError
from editbench.portability import PortabilityProbe, Query
from editbench.requests import EditCase, EditRequest, Probe

QAEDIT = {
    "id": "nq_12",
    "source": "NQ",
    "prompt": "who wrote the hollow song",
    "target": "Ida Moor ",
    "subject": "hollow song",
    "rephrase": "the hollow song was written by whom",
    "locality": [
        {"loc": "capital of Norland?", "loc_ans": "Osk"},
        {"loc": "who built Quarry Hall?", "loc_ans": "Max Roth"},
    ],
}
WIKIBIGEDIT = {
    "tag": "update",
    "subject": "Quill FC",
    "update": "Who coaches Quill FC?",
    "rephrase": "Which person is the coach of Quill FC?",
    "ans": "Ida Moor",
    "loc": "Who coaches Roth FC?",
    "loc_ans": "Ben Orr",
    "mhop": "Where was the coach of Quill FC born?",
    "mhop_ans": "Osk",
    "personas": "Ahoy, who be coachin' Quill FC?",
}
KNOWEDIT = {
    "subject": "Ida Moor",
    "prompt": "The mother of Ida Moor is",
    "target_new": "Ann Moor",
    "ground_truth": "Eve Orr",
    "portability": {
        "Logical_Generalization": [
            {"prompt": "The child of Ann Moor is", "ground_truth": [["Ida Moor", "I. Moor"], [""]]}
        ],
        "Reasoning": [{"prompt": "The aunt of Ida Moor is", "ground_truth": [[" Bea "]]}],
        "Subject_Aliasing": [{"prompt": "The mother of I. Moor is", "ground_truth": "Ann Moor"}],
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The father of Ida Moor is", "ground_truth": [["Bob Moor", "Robert"]]}
        ],
        "Forgetfulness": [],
    },
}
WIKIBIO = {
    "text": "This is a passage about ida moor. ida moor was",
    "labels": "a painter.",
    "concept": "ida moor",
    "locality": {
        "Relation_Specificity": [{"prompt": "The field of ida moor is", "ground_truth": [["art"]]}]
    },
}


def test_qaedit(write, cache: Path) -> None:
    (case,) = QAEditDataset(write("qaedit.json", json.dumps([QAEDIT])), cache).cases()
    assert case == EditCase(
        EditRequest("0", "hollow song", "who wrote the {}", "Ida Moor"),
        probes=(
            Probe("efficacy", "who wrote the hollow song", "Ida Moor"),
            Probe("paraphrase", "the hollow song was written by whom", "Ida Moor"),
            Probe("neighborhood", "capital of Norland?", "Osk", "Ida Moor"),
            Probe("neighborhood", "who built Quarry Hall?", "Max Roth", "Ida Moor"),
        ),
    )


def test_wikibigedit(write, cache: Path) -> None:
    path = write("wiki.json", json.dumps([WIKIBIGEDIT, {**WIKIBIGEDIT, "mhop": None}]))
    first, second = WikiBigEditDataset(path, cache).cases()
    assert first == EditCase(
        EditRequest("0", "Quill FC", "Who coaches {}?", "Ida Moor"),
        probes=(
            Probe("efficacy", "Who coaches Quill FC?", "Ida Moor"),
            Probe("paraphrase", "Which person is the coach of Quill FC?", "Ida Moor"),
            Probe("neighborhood", "Who coaches Roth FC?", "Ben Orr", "Ida Moor"),
        ),
        portability=(
            PortabilityProbe(
                "multi_hop", (Query("Where was the coach of Quill FC born?", ("Osk",)),)
            ),
        ),
    )
    assert second.portability == ()


def test_knowedit(write, cache: Path) -> None:
    (case,) = KnowEditDataset(write("cf.json", json.dumps([KNOWEDIT])), cache).cases()
    assert case.request == EditRequest("0", "Ida Moor", "The mother of {} is", "Ann Moor")
    assert case.target_true == "Eve Orr"
    assert case.probes[1:] == (
        Probe("neighborhood", "The father of Ida Moor is", "Bob Moor", "Ann Moor"),
    )
    assert case.portability == (
        PortabilityProbe(
            "reasoning", (Query("The child of Ann Moor is", ("Ida Moor", "I. Moor")),)
        ),
        PortabilityProbe("reasoning", (Query("The aunt of Ida Moor is", ("Bea",)),)),
        PortabilityProbe("aliasing", (Query("The mother of I. Moor is", ("Ann Moor",)),)),
    )


def test_of_a_repeated_subject_the_last_one_is_taken(write, cache: Path) -> None:
    (case,) = KnowEditDataset(write("bio.json", json.dumps([WIKIBIO])), cache).cases()
    assert case.request.prompt == "This is a passage about ida moor. {} was"
    assert case.request.target == "a painter."
    assert [probe.kind for probe in case.probes] == ["efficacy", "neighborhood"]


def test_records_without_their_subject_are_told_counted_and_left_out(write, cache: Path) -> None:
    records = [{**QAEDIT, "subject": "Hollow Song"}, QAEDIT]
    path = write("qaedit.json", json.dumps(records))
    dataset = QAEditDataset(path, cache)
    assert [case.request.subject for case in dataset.cases()] == ["hollow song"]
    (reason,) = dataset.left_out
    assert "field 'subject' does not occur in the prompt" in reason
    assert "'Hollow Song'" in reason
    assert f"{path}: left out 1 of 2 records:" in dataset.remarks
    whole = QAEditDataset(write("whole.json", json.dumps(records[1:])), cache)
    assert dataset.fingerprint != whole.fingerprint


@pytest.mark.parametrize(
    ("kind", "record", "message"),
    [
        (QAEditDataset, {**QAEDIT, "target": 3}, "field 'target' has the wrong type, got 3"),
        (QAEditDataset, {**QAEDIT, "prompt": "who? {} {}"}, "field 'prompt' must"),
        (QAEditDataset, {**QAEDIT, "rephrase": None, "locality": 3}, "field 'locality' has the"),
        (
            QAEditDataset,
            {**QAEDIT, "locality": [{"loc": "x?"}]},
            "'locality[0].loc_ans' is miss",
        ),
        (
            QAEditDataset,
            {**QAEDIT, "subject": None},
            "'subject' is missing",
        ),
        (WikiBigEditDataset, {**WIKIBIGEDIT, "mhop": 3}, "field 'mhop' has the wrong type, got 3"),
        (WikiBigEditDataset, {**WIKIBIGEDIT, "ans": ""}, "field 'ans' is empty"),
        (
            KnowEditDataset,
            {**KNOWEDIT, "portability": {"Hearsay": []}},
            "field 'portability.Hearsay' is unknown; expected one of reasoning,",
        ),
        (
            KnowEditDataset,
            {**KNOWEDIT, "portability": {"Reasoning": [{"prompt": "So"}]}},
            "field 'portability.Reasoning[0].ground_truth' is missing",
        ),
        (
            KnowEditDataset,
            {**KNOWEDIT, "portability": "none"},
            "field 'portability' has the wrong type, got 'none'",
        ),
    ],
)
def test_faults_are_told_by_field(write, cache: Path, kind, record, message: str) -> None:
    with pytest.raises(DataError) as error:
        kind(write("data.json", json.dumps([record])), cache).cases()
    assert message in str(error.value)
    assert "data.json: record 1" in str(error.value)


def test_without_a_file_it_is_said_where_there_is_one(cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs a file.*huggingface.co/datasets/WenDingY/QAEdit"):
        QAEditDataset(None, cache)


@pytest.mark.parametrize(
    ("kind", "name", "n_cases"),
    [
        (QAEditDataset, "qaedit/qaedit-700.json", 700),
        (WikiBigEditDataset, "wikibigedit/wikibigedit-2000.json", 2000),
    ],
)
def test_real_data(shared_data: Path, cache: Path, kind, name: str, n_cases: int) -> None:
    dataset = kind(shared_data / name, cache)
    cases = dataset.cases()
    assert len(cases) == n_cases
    assert dataset.left_out == ()
    kinds = {tuple(dict.fromkeys(probe.kind for probe in case.probes)) for case in cases}
    assert kinds == {("efficacy", "paraphrase", "neighborhood")}
