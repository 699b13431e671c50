"""A user's facts: the format of the file-format reference, to the letter."""

import csv
import json
from pathlib import Path

import pytest

from editbench.datasets import Facts, read_facts
from editbench.errors import ConfigError, DataError
from editbench.portability import PortabilityProbe, Query
from editbench.requests import EditCase, EditRequest, Probe

FULL = {
    "subject": "Zoë Brandt",
    "prompt": "{} was born in",
    "target": " Lyon ",
    "target_true": "Nice",
    "relation": "born in",
    "case_id": 12,
    "paraphrases": ["The birthplace of {} is", "Zoë was born in"],
    "neighbors": [{"prompt": "Max Roth was born in", "target": "Nice"}],
    "generation_prompts": ["{} grew up in", "As a child, Zoë"],
    "portability": [
        {
            "kind": "multi_hop",
            "prompt": "{} was born in the country of",
            "answers": ["France", " the French Republic"],
            "conditions": [{"prompt": "Lyon lies in", "answers": ["France"]}],
        }
    ],
}


def lines(*records: dict) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def test_every_field_of_json_lines(write, cache: Path) -> None:
    path = write("facts.jsonl", lines(FULL))
    (case,) = Facts(path, cache).cases()
    assert case == EditCase(
        request=EditRequest("12", "Zoë Brandt", "{} was born in", "Lyon", "born in"),
        target_true="Nice",
        probes=(
            Probe("efficacy", "Zoë Brandt was born in", "Lyon", "Nice"),
            Probe("paraphrase", "The birthplace of Zoë Brandt is", "Lyon", "Nice"),
            Probe("paraphrase", "Zoë was born in", "Lyon", "Nice"),
            Probe("neighborhood", "Max Roth was born in", "Nice", "Lyon"),
        ),
        generation_prompts=("Zoë Brandt grew up in", "As a child, Zoë"),
        portability=(
            PortabilityProbe(
                "multi_hop",
                (
                    Query(
                        "Zoë Brandt was born in the country of", ("France", "the French Republic")
                    ),
                ),
                conditions=(Query("Lyon lies in", ("France",)),),
            ),
        ),
    )
    assert read_facts(path) == [case]


def test_required_fields_alone(write) -> None:
    bare = {name: FULL[name] for name in ("subject", "prompt", "target")}
    path = write("facts.jsonl", "\n" + lines(bare, {**bare, "target_true": None}))
    first, second = read_facts(path)
    assert first.probes == (Probe("efficacy", "Zoë Brandt was born in", "Lyon", None),)
    assert first.target_true is None
    assert first.request.relation is None
    assert [first.request.case_id, second.request.case_id] == ["2", "3"]


def test_csv_has_the_first_six_fields(write, tmp_path: Path) -> None:
    columns = list(FULL)[:6]
    path = tmp_path / "Facts.CSV"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerow({name: FULL[name] for name in columns})
        writer.writerow({"subject": "Max", "prompt": "{}, so they say, is", "target": "old"})
    full = {name: FULL[name] for name in columns}
    bare = {"subject": "Max", "prompt": "{}, so they say, is", "target": "old"}
    same = write("facts.jsonl", lines(full, {**bare, "case_id": "3"}))
    assert read_facts(path) == read_facts(same)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv_has_lines_of_any_kind(tmp_path: Path, end: str) -> None:
    path = tmp_path / "facts.csv"
    path.write_bytes(end.join(["subject;prompt;target", "Max;{} is;old", ""]).encode())
    (case,) = read_facts(path)
    assert case.request.target == "old"


def test_an_open_quote_in_the_header_is_said(tmp_path: Path) -> None:
    path = tmp_path / "facts.csv"
    path.write_text('"subject,prompt,target\nMax,{} is,old\n')
    with pytest.raises(DataError, match="is not valid CSV"):
        read_facts(path)


def test_the_dataset_needs_a_path(cache: Path) -> None:
    assert Facts.needs_path
    with pytest.raises(ConfigError, match=r"dataset 'facts': needs a file, .*--dataset facts=PATH"):
        Facts(None, cache)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subject": None}, "field 'subject' is missing"),
        ({"prompt": 3}, "field 'prompt' has the wrong type, got 3; expected a string."),
        ({"prompt": "Where was she born?"}, "'{}' 0 times and 'Zoë Brandt' 0 times. Put '{}'"),
        ({"prompt": "Zoë Brandt is Zoë Brandt"}, "'{}' 0 times and 'Zoë Brandt' twice. Put"),
        ({"prompt": "{} and {}"}, "field 'prompt' must contain '{}' exactly once, or else"),
        ({"target": ""}, "field 'target' is empty"),
        ({"target": 1998}, "field 'target' has the wrong type, got 1998; expected a string."),
        ({"target_tru": "Nice"}, "unknown field 'target_tru'. Did you mean 'target_true'?"),
        ({"paraphrases": "one"}, "field 'paraphrases' has the wrong type, got 'one'"),
        ({"paraphrases": [["one"]]}, "field 'paraphrases[0]' has the wrong type, got ['one']"),
        ({"neighbors": ["one"]}, "field 'neighbors[0]' has the wrong type, got 'one'"),
        ({"neighbors": [{"prompt": "x"}]}, "field 'neighbors[0].target' is missing"),
        (
            {"neighbors": [{"prompt": "x", "target": "y", "targets": 1}]},
            "unknown field 'neighbors[0].targets'. Did you mean 'neighbors[0].target'?",
        ),
        (
            {"neighbors": [{"prompt": "{} x", "target": "y"}]},
            "field 'neighbors[0].prompt' must be complete text, got '{} x'.",
        ),
        (
            {"portability": [{"kind": "rumor", "prompt": "x", "answers": ["y"]}]},
            "field 'portability[0].kind' is unknown, got 'rumor'; expected reasoning, aliasing,",
        ),
        (
            {"portability": [{"kind": "reversal", "prompt": "x", "answers": []}]},
            "field 'portability[0].answers' must hold at least one answer",
        ),
        (
            {"portability": [{"kind": "reversal", "prompt": "x", "answers": ["y"], "hops": []}]},
            "unknown field 'portability[0].hops'",
        ),
        ({"case_id": [1]}, "field 'case_id' has the wrong type, got [1]; expected a string or"),
        ({"case_id": "1"}, "field 'case_id' must be unique, got '1', which "),
    ],
)
def test_malformed_records_name_line_and_field(write, change: dict, message: str) -> None:
    path = write("facts.jsonl", lines({**FULL, "case_id": "1"}, {**FULL, **change}))
    with pytest.raises(DataError) as caught:
        read_facts(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert message in str(caught.value)


def test_csv_knows_no_lists(write) -> None:
    path = write("facts.csv", "subject,prompt,target,paraphrases\na,{} is,b,c\n")
    with pytest.raises(DataError, match=r"facts\.csv:1: unknown column 'paraphrases'"):
        read_facts(path)


def test_csv_names_the_line_of_an_empty_cell(write) -> None:
    path = write("facts.csv", 'subject,prompt,target\n"a\nb",{} is,b\nc,{} is,\n')
    with pytest.raises(DataError, match=r"facts\.csv:4: field 'target' is missing"):
        read_facts(path)


def test_a_csv_of_nothing_but_a_header_is_empty(write) -> None:
    path = write("facts.csv", "subject,prompt,target\n")
    with pytest.raises(DataError, match=r"facts\.csv: holds no records"):
        read_facts(path)


def test_joiner_and_chat_are_of_all_prompts_of_a_fact(write) -> None:
    path = write("facts.jsonl", lines({**FULL, "joiner": "", "chat": True}, {**FULL, "case_id": 2}))
    with_both, plain = read_facts(path)
    assert (with_both.request.joiner, with_both.request.chat) == ("", True)
    assert {(probe.joiner, probe.chat) for probe in with_both.probes} == {("", True)}
    assert (plain.request.joiner, plain.request.chat) == (None, False)
    assert {(probe.joiner, probe.chat) for probe in plain.probes} == {(None, False)}


def test_csv_spells_out_chat(write) -> None:
    text = "subject,prompt,target,chat\nZoë,{} is,x,True\nZoë,{} was,x,false\nZoë,{} has,x,\n"
    cases = read_facts(write("facts.csv", text))
    assert [case.request.chat for case in cases] == [True, False, False]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("joiner", 1, "field 'joiner' has the wrong type, got 1; expected a string"),
        ("chat", "yes", "field 'chat' has the wrong type, got 'yes'; expected true or false"),
        ("chat", [], "field 'chat' has the wrong type"),
        ("chat", 1, "field 'chat' has the wrong type"),
    ],
)
def test_malformed_joiner_or_chat(write, field: str, value: object, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_facts(write("facts.jsonl", lines({**FULL, field: value})))
