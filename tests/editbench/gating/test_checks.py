"""Checks out of a file, and out of facts."""

import json

import pytest

from editbench.errors import DataError
from editbench.gating.checks import Check, checks_of_facts, read_checks
from editbench.questions import Score


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_record_is_a_check_for_each_thing_it_asks_for(tmp_path):
    path = write(
        tmp_path / "c.jsonl",
        [
            {"prompt": "A", "says": "x", "never_says": ["y", " z "]},
            {"prompt": "B", "unchanged": True, "chat": True, "max_tokens": 5},
            {"prompt": "C", "survives": "w", "joiner": "\n"},
        ],
    )
    assert read_checks(path) == [
        Check(f"{path}:1", "says", "A", ("x",)),
        Check(f"{path}:1", "never_says", "A", ("y", "z")),
        Check(f"{path}:2", "unchanged", "B", chat=True, n_tokens=5),
        Check(f"{path}:3", "survives", "C", ("w",), joiner="\n"),
    ]
    assert read_checks(path)[3].question == Score("C", "w", "\n")


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"says": "x"}, "field 'prompt' is missing"),
        ({"prompt": "A"}, "field 'says' is missing, and so are never_says, survives, unchanged"),
        ({"prompt": "A", "unchanged": False}, "field 'says' is missing"),
        ({"prompt": "A", "says": []}, "field 'says' is empty"),
        ({"prompt": "A", "says": 3}, "field 'says' has the wrong type"),
        ({"prompt": "A", "say": "x"}, "'say'"),
        ({"prompt": "A", "says": "x", "max_tokens": 0}, "field 'max_tokens' must be"),
        ({"prompt": "A", "says": "x", "max_tokens": True}, "field 'max_tokens' must be"),
    ],
)
def test_a_malformed_record_is_named_with_its_line(tmp_path, record, says):
    path = write(tmp_path / "c.jsonl", [{"prompt": "A", "says": "x"}, record])
    with pytest.raises(DataError, match=f"c.jsonl:2: .*{says}"):
        read_checks(path)


def test_a_fact_that_a_later_one_supersedes_is_no_check(tmp_path):
    facts = [
        {"subject": "Lena Ort", "prompt": "{} was born in", "target": target}
        for target in ("Genoa", "Oslo")
    ]
    checks = checks_of_facts(write(tmp_path / "f.jsonl", facts))
    assert [check.texts for check in checks] == [("Oslo",)]


def test_facts_make_checks(tmp_path):
    fact = {
        "case_id": "ort", "subject": "Lena Ort", "prompt": "{} was born in", "target": "Genoa",
        "paraphrases": ["{} comes from"],
        "neighbors": [{"prompt": "Ivo is from", "target": "Bari"}],
    }  # fmt: skip
    path = write(tmp_path / "f.jsonl", [fact])
    place = f"{path}: fact ort"
    assert checks_of_facts(path) == [
        Check(place, "says", "Lena Ort was born in", ("Genoa",)),
        Check(place, "says", "Lena Ort comes from", ("Genoa",)),
        Check(place, "survives", "Ivo is from", ("Bari",)),
    ]
