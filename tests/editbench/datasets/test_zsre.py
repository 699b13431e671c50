"""zsRE in its original schema, as the reference treats it."""

import json
from pathlib import Path

import pytest

from editbench.datasets import ZsRE
from editbench.errors import DataError
from editbench.requests import EditCase, EditRequest, Probe

RECORD = {
    "subject": "Quarry Hall",
    "src": "Who built Quarry Hall?",
    "pred": "Nobody",
    "rephrase": "By whom was Quarry Hall built?",
    "alt": " Max Roth",
    "answers": [" Ada Quill", "Quill"],
    "loc": "nq question: who sang the first song",
    "loc_ans": "Ben Orr",
    "cond": "Nobody >> Max Roth || Who built Quarry Hall?",
}


def test_a_record_becomes_a_case(write, cache: Path) -> None:
    (case,) = ZsRE(write("zsre.json", json.dumps([RECORD])), cache).cases()
    assert case == EditCase(
        request=EditRequest("0", "Quarry Hall", "Who built {}?", "Ada Quill", None),
        probes=(
            Probe("efficacy", "Who built Quarry Hall?", "Ada Quill"),
            Probe("paraphrase", "By whom was Quarry Hall built?", "Ada Quill"),
            Probe("neighborhood", "nq question: who sang the first song?", "Ben Orr"),
        ),
    )


@pytest.mark.parametrize(
    ("subject", "question", "prompt"),
    [
        ("Oslo", "Oslo lies where?", "{} lies where?"),
        ("Oslo", "Is Oslo in Oslo county?", "Is Oslo in {} county?"),
        ("Ann", "Did Ann join the Annals?", "Did {} join the Annals?"),
        ("Ann", "Who edits the Annals, or the Annual?", "Who edits the Annals, or the {}ual?"),
        ("C++ (x)", "Who made C++ (x)?", "Who made {}?"),
        (" Oslo ", "Where is Oslo?", "Where is {}?"),
    ],
)
def test_one_occurrence_of_the_subject_is_taken_out(
    write, cache: Path, subject: str, question: str, prompt: str
) -> None:
    path = write("zsre.json", json.dumps([{**RECORD, "subject": subject, "src": question}]))
    (case,) = ZsRE(path, cache).cases()
    assert case.request.prompt == prompt
    assert case.request.text == question


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"src": "Who wrote Hamlet?"},
            "field 'subject' does not occur in the prompt: 'Who wrote Hamlet?'",
        ),
        ({"src": None}, "field 'src' is missing"),
        ({"subject": ""}, "field 'subject' is empty"),
        ({"answers": []}, "field 'answers' must hold at least one answer"),
        ({"answers": "Ada"}, "field 'answers' has the wrong type, got 'Ada'"),
        ({"answers": [["Ada"]]}, "field 'answers[0]' has the wrong type, got ['Ada']"),
        ({"rephrase": 1}, "field 'rephrase' has the wrong type, got 1"),
        ({"loc": None}, "field 'loc' is missing"),
        ({"loc_ans": []}, "field 'loc_ans' has the wrong type, got []"),
        ({"src": "{} or Quarry Hall?"}, "field 'src' must be complete text, got '{} or"),
    ],
)
def test_malformed_records_name_place_and_field(
    write, cache: Path, change: dict, message: str
) -> None:
    records = [RECORD] * 4 + [{**RECORD, **change}]
    content = json.dumps(records)
    one_a_line = content.replace('}, {"subject', '},\n{"subject')
    for text, place in ((content, ": record 5: "), (one_a_line, ":5: ")):
        path = write("zsre.json", text)
        with pytest.raises(DataError) as caught:
            ZsRE(path, cache).cases()
        assert str(caught.value).startswith(f"{path}{place}")
        assert message in str(caught.value)


def test_fields_of_the_other_task_do_not_matter(write, cache: Path) -> None:
    bare = {name: RECORD[name] for name in RECORD if name not in {"pred", "alt", "cond"}}
    path = write("zsre.json", json.dumps([RECORD, {**RECORD, "alt": "", "pred": None}, bare]))
    assert len({case.probes for case in ZsRE(path, cache).cases()}) == 1


def test_real_records(shared_data: Path, cache: Path) -> None:
    path = shared_data / "zsre" / "zsre-1000.json"
    records = json.loads(path.read_text(encoding="utf-8"))
    cases = ZsRE(path, cache).cases()
    assert len(cases) == 1_000
    for record, case in zip(records, cases, strict=True):
        assert case.request.text == record["src"]
        # The reference's template; none of these records repeats its subject.
        assert case.request.prompt == record["src"].replace(record["subject"], "{}")
        assert case.request.target == record["answers"][0]
        assert [probe.kind for probe in case.probes] == ["efficacy", "paraphrase", "neighborhood"]
    assert {case.target_true for case in cases} == {None}


def test_the_reference_makes_the_same_of_its_golden_records(shared_data: Path, cache: Path) -> None:
    folder = shared_data.parent / "reference" / "golden" / "gpt2"
    if not folder.exists():
        pytest.skip(f"needs {folder}")
    golden = json.loads((folder / "eval.json").read_text(encoding="utf-8"))["zsre_records"]
    cases = ZsRE(folder / "zsre_mend_eval.json", cache).cases()
    assert len(cases) == len(golden)
    for case, expected in zip(cases, golden, strict=True):
        rewrite = expected["requested_rewrite"]
        assert case.request.case_id == str(expected["case_id"])
        assert case.request.prompt == rewrite["prompt"]
        assert case.request.subject == rewrite["subject"]
        assert case.request.target == rewrite["target_new"]["str"]
        _, paraphrase, neighborhood = case.probes
        assert [paraphrase.prompt] == expected["paraphrase_prompts"]
        # The reference asks for the answer token by token, each time with a longer prompt.
        pieces = expected["neighborhood_prompts"]
        assert neighborhood.prompt == pieces[0]["prompt"]
        assert neighborhood.expected == "".join(piece["target"] for piece in pieces).strip()


def test_accuracy_is_all_that_zsre_defines() -> None:
    assert ZsRE.name == "zsre"
    assert ZsRE.default_metrics == ("token-accuracy",)
