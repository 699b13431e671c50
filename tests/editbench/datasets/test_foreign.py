"""Files as other tools write them: what is made of them, what is said, and what is refused."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from editbench.datasets import CounterFact, Facts, ZsRE, read_facts
from editbench.datasets.facts import FIELDS, find_subject
from editbench.datasets.foreign import as_fact
from editbench.datasets.records import Record, Understanding
from editbench.errors import DataError
from editbench.requests import EditCase, Probe

PLAIN = {"subject": "Zoë Brandt", "prompt": "{} lives in", "target": "Lyon", "case_id": "z"}
EASYEDIT = {
    "case_id": 7,
    "subject": "Zoë Brandt",
    "prompt": "Zoë Brandt lives in",
    "target_new": "Lyon",
    "ground_truth": "Nice",
    "rephrase_prompt": "The home of Zoë Brandt is",
    "locality_prompt": "Max Roth lives in",
    "locality_ground_truth": "Graz",
}
KNOWEDIT = {
    **{name: EASYEDIT[name] for name in ("case_id", "subject", "prompt", "target_new")},
    "ground_truth": [["", "Nice", "Nizza"]],
    "rephrase_prompt": "The home of Zoë Brandt is",
    "locality": {
        "Relation_Specificity": [{"prompt": "Max Roth lives in", "ground_truth": [["Graz"]]}],
        "Forgetfulness": [],
    },
    "portability": {"Reasoning": [{"prompt": "Zoë pays in", "ground_truth": [["euros"]]}]},
}
NESTED = {
    "case_id": 7,
    "pararel_idx": 12,
    "requested_rewrite": {
        "prompt": "{} lives in",
        "relation_id": "P551",
        "target_new": {"str": " Lyon", "id": "Q1"},
        "target_true": {"str": "Nice", "id": "Q2"},
        "subject": "Zoë Brandt",
    },
    "paraphrase_prompts": ["The home of Zoë Brandt is"],
    "neighborhood_prompts": ["Max Roth lives in"],
    "attribute_prompts": ["Ann Lee lives in"],
}


def probes(survivor: str) -> tuple[Probe, ...]:
    return (
        Probe("efficacy", "Zoë Brandt lives in", "Lyon", "Nice"),
        Probe("paraphrase", "The home of Zoë Brandt is", "Lyon", "Nice"),
        Probe("neighborhood", "Max Roth lives in", survivor, "Lyon"),
    )


def read(write, content: object, name: str = "facts.json") -> tuple[EditCase, tuple[str, ...]]:
    path = write(name, content if isinstance(content, str) else json.dumps([content]))
    dataset = Facts(path, path.parent)
    (case,) = dataset.cases()
    return case, tuple(remark.removeprefix(f"{path}: ") for remark in dataset.remarks)


@pytest.mark.parametrize(
    ("record", "survivor", "said"),
    [
        (
            EASYEDIT,
            "Graz",
            (
                "read as a JSON array; 'target_new' as target, 'ground_truth' as target_true, "
                "'rephrase_prompt' as a paraphrase, 'locality_prompt' as a neighbor, "
                "the subject in 'prompt' as {}."
            ),
        ),
        (
            KNOWEDIT,
            "Graz",
            (
                "read as a JSON array; 'target_new' as target, 'ground_truth' as target_true, "
                "'rephrase_prompt' as a paraphrase, 'locality' as neighbors, 'portability' as "
                "portability, the subject in 'prompt' as {}."
            ),
        ),
        (
            NESTED,
            "Nice",
            (
                "read as a JSON array; 'requested_rewrite.target_true' as target_true, "
                "'requested_rewrite.target_new' as target, 'requested_rewrite.relation_id' as "
                "relation, 'paraphrase_prompts' as paraphrases, 'neighborhood_prompts' as "
                "neighbors; ignored: 'pararel_idx' (bookkeeping), 'attribute_prompts' (no metric "
                "asks about it)."
            ),
        ),
    ],
)
def test_whole_records(write, record: dict, survivor: str, said: str) -> None:
    case, remarks = read(write, record)
    assert case.request.case_id == "7"
    assert case.request.prompt == "{} lives in"
    assert case.request.target == "Lyon"
    assert case.request.relation == ("P551" if record is NESTED else None)
    assert case.target_true == "Nice"
    assert case.probes == probes(survivor)
    assert remarks == (said,)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"target": None, "target_new": "Nice"}, {"target": "Nice"}),
        ({"target": None, "target_new": {"str": " Nice", "id": "Q"}}, {"target": "Nice"}),
        ({"target": None, "ans": "Nice"}, {"target": "Nice"}),
        ({"target": {"str": "Nice"}}, {"target": "Nice"}),
        ({"target_new": " Lyon"}, {"target": "Lyon"}),
        ({"ground_truth": "Nice"}, {"target_true": "Nice"}),
        ({"ground_truth": ["Nice", "Nizza"]}, {"target_true": "Nice"}),
        ({"ground_truth": "<|endoftext|>"}, {}),
        ({"ground_truth": []}, {}),
        ({"ground_truth": None}, {}),
        ({"rephrase_prompt": "a"}, {"paraphrases": ["a"]}),
        ({"rephrase_prompts": ["a", "b"], "rephrase": "b"}, {"paraphrases": ["a", "b"]}),
        ({"paraphrases": ["a"], "queries": ["a", "c"]}, {"paraphrases": ["a", "c"]}),
        ({"queries": []}, {}),
        ({"rephrase_prompt": ""}, {}),
        ({"loc": "Is it?", "loc_ans": "Yes"}, {"neighbors": [("Is it?", "Yes")]}),
        (
            {"locality": {"near": {"prompt": "p", "ground_truth": "a"}}},
            {"neighbors": [("p", "a")]},
        ),
        (
            {"locality": {"near": {"prompt": ["p", "q"], "ground_truth": ["a", ["b"]]}}},
            {"neighbors": [("p", "a"), ("q", "b")]},
        ),
        (
            {"locality": [{"loc": "p", "loc_ans": "a"}, {"prompt": "q", "target": "b"}]},
            {"neighbors": [("p", "a"), ("q", "b")]},
        ),
        ({"locality": {"near": []}}, {}),
        ({"relation_id": "P1"}, {"relation": "P1"}),
    ],
)
def test_single_fields(fields: dict, expected: dict) -> None:
    if "neighbors" in expected:
        pairs = expected["neighbors"]
        expected = {"neighbors": [{"prompt": prompt, "target": said} for prompt, said in pairs]}
    record = Record("f:1", 1, {**PLAIN, **fields})
    found = as_fact(record, FIELDS, Understanding())
    assert found.fields == {**PLAIN, **expected}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_new": "Nice"}, "field 'target_new' contradicts 'target', got 'Nice' and 'Lyon'."),
        ({"target": None, "target_new": " "}, "field 'target_new' is empty, got ' '."),
        ({"target": None, "target_new": {"id": "Q"}}, "field 'target_new.str' is missing"),
        ({"target": None, "target_new": 3}, "field 'target_new' has the wrong type, got 3"),
        ({"target_true": "x", "ground_truth": "y"}, "'ground_truth' contradicts 'target_true'"),
        ({"ground_truth": [3]}, "field 'ground_truth' holds no text, got 3."),
        ({"rephrase_prompts": [3]}, "field 'rephrase_prompts[0]' has the wrong type, got 3"),
        ({"target_new": "Lyon", "subjct": "x"}, "unknown field 'subjct'. Did you mean 'subject'?"),
        ({"rephrase_promt": "x", "ans": "Lyon"}, "Did you mean 'rephrase_prompt'?"),
        ({"colour": "x"}, "unknown field 'colour'. Available: author,"),
        ({"neighborhood_prompts": ["p"]}, "'neighborhood_prompts' have the fact's true object for"),
        ({"locality": "p"}, "field 'locality' has the wrong type, got 'p'; expected prompts with"),
        ({"locality": {"near": [{"prompt": "p"}]}}, "'locality.near[0].ground_truth' is missing:"),
        (
            {"locality": {"n": {"prompt": ["p", "q"], "ground_truth": ["a"]}}},
            "field 'locality.n.ground_truth' must be a list of 2, one for each prompt.",
        ),
        ({"requested_rewrite": {"target": "Nice"}}, "'requested_rewrite.target' contradicts"),
        ({"requested_rewrite": [{}]}, "field 'requested_rewrite' has the wrong type"),
        ({"src": "Who?", "answers": ["a"]}, "field 'src' is a question of zsRE"),
        ({"prompt": "Zoë Brandt is {}"}, None),
        ({"prompt": "Zoë lives in"}, "got 'Zoë lives in' with '{}' 0 times and 'Zoë Brandt' 0 ti"),
        ({"prompt": "{}: {}"}, "got '{}: {}' with '{}' twice"),
    ],
)
def test_refusals_name_place_and_field(write, change: dict, message: str | None) -> None:
    path = write("facts.json", json.dumps([{**PLAIN, "case_id": 1}, {**PLAIN, **change}]))
    if message is None:
        assert len(read_facts(path)) == 2
        return
    with pytest.raises(DataError) as caught:
        read_facts(path)
    assert str(caught.value).startswith(f"{path}: record 2: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fields_that_resemble_nothing_are_ignored_where_another_tool_wrote_the_record(
    write,
) -> None:
    _, (said,) = read(write, {**EASYEDIT, "wikidata_url": "x", "id": 3})
    assert said.endswith("; ignored: 'wikidata_url' (not known), 'id' (bookkeeping).")


def test_entries_of_locality_without_an_answer_are_said(write) -> None:
    locality = {
        "a": [{"prompt": "p", "ground_truth": [[""]]}, {"prompt": "q", "ground_truth": "b"}]
    }
    case, (said,) = read(write, {**PLAIN, "locality": locality})
    assert [probe.prompt for probe in case.probes[1:]] == ["q"]
    assert "'locality' without an answer" in said


def test_our_own_form_needs_no_remark(write) -> None:
    assert read(write, json.dumps(PLAIN), "facts.jsonl")[1] == ()
    assert read(write, PLAIN)[1] == ("read as a JSON array.",)


def test_records_of_an_array_are_numbered(write) -> None:
    bare = {name: value for name, value in PLAIN.items() if name != "case_id"}
    one_line, lines = json.dumps([bare, bare]), json.dumps([bare, bare], indent=1)
    for text in (one_line, lines):
        cases = read_facts(write("facts.json", text))
        assert [case.request.case_id for case in cases] == ["1", "2"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_csv_of_spreadsheets(write, delimiter: str, mark: str) -> None:
    header = ("subject", "prompt", "target_new", "ground_truth", "rephrase_prompt")
    row = ("Zoë Brandt", '"Zoë Brandt, a ""painter""; lives in"', "Lyon", "Nice", "Zoë lives in")
    text = f"{delimiter.join(header)}\r\n{delimiter.join(row)}\r\n"
    for name in ("facts.csv", "facts.tsv"):
        case, (said,) = read(write, mark + text, name)
        assert case.request.prompt == '{}, a "painter"; lives in'
        assert [probe.expected for probe in case.probes] == ["Lyon", "Lyon"]
        assert case.target_true == "Nice"
        form = {";": "CSV with semicolons; ", "\t": "CSV with tabs; "}.get(delimiter)
        assert said.startswith(f"read as {form}'target_new'" if form else "'target_new'")


def test_columns_of_csv(write) -> None:
    path = write("f.csv", "subject;prompt;target_new;wikidata_url\na;{} is;b;x\n")
    dataset = Facts(path, path.parent)
    assert len(dataset.cases()) == 1
    assert "'wikidata_url' (not known)" in dataset.remarks[0]
    with pytest.raises(DataError, match=r"f\.csv:1: unknown column 'subjct'\. Did you mean 's"):
        read_facts(write("f.csv", "subjct;prompt;target_new\na;{} is;b\n"))


@given(st.text("ab ", max_size=8), st.text("ab ", max_size=8), st.text("ab", min_size=1))
def test_a_found_subject_is_there(before: str, after: str, subject: str) -> None:
    prompt = f"{before}{subject}{after}"
    found = find_subject(prompt, subject)
    assert found
    assert all(prompt[start:].startswith(subject) for start in found)


def test_a_subject_inside_a_longer_word_counts_only_where_there_is_no_other() -> None:
    assert find_subject("Did Ann join the Annals?", "Ann") == [4]
    assert find_subject("the Annals", "Ann") == [4]
    assert find_subject("李小明出生在", "李小明") == [0]


class TestCounterFact:
    def test_json_lines_without_generation_prompts(self, write, cache: Path) -> None:
        dataset = CounterFact(write("cf.jsonl", json.dumps(NESTED) + "\n"), cache)
        (case,) = dataset.cases()
        assert case.probes == probes("Nice")
        assert case.generation_prompts == ()
        assert dataset.remarks == (f"{dataset.path}: read as JSON Lines.",)

    def test_easyedit_calls_a_generation_prompt_a_rephrasing(self, write, cache: Path) -> None:
        dataset = CounterFact(write("cf.json", json.dumps([EASYEDIT])), cache)
        (case,) = dataset.cases()
        assert [probe.kind for probe in case.probes] == ["efficacy", "neighborhood"]
        assert case.generation_prompts == (EASYEDIT["rephrase_prompt"],)
        assert "'rephrase_prompt' as an opening of generated text" in dataset.remarks[0]
        assert case.target_true == "Nice"

    def test_snippets_of_records_that_are_left_out(self, write, cache: Path) -> None:
        snippet = {"relation_id": "P551", "target_id": "Q1", "samples": [{"text": "In Lyon."}]}
        write("attribute_snippets.json", json.dumps([snippet]))
        dataset = CounterFact(write("cf.json", json.dumps([{"case_id": 1}, NESTED])), cache)
        dataset.skip_invalid = True
        (case,) = dataset.cases()
        assert case.reference_texts == ("In Lyon.",)


class TestZsRE:
    ORIGINAL: ClassVar[dict[str, Any]] = {
        "subject": "Quarry Hall",
        "src": "Who built Quarry Hall?",
        "pred": "Nobody",
        "rephrase": "By whom was Quarry Hall built?",
        "alt": "Max Roth",
        "answers": ["Ada Quill"],
        "loc": "nq question: who sang the first song",
        "loc_ans": "Ben Orr",
        "cond": "Nobody >> Max Roth || Who built Quarry Hall?",
    }

    def read(self, write, cache: Path, record: dict) -> EditCase:
        (case,) = ZsRE(write("zsre.json", json.dumps([record])), cache).cases()
        return case

    def test_easyedit_writes_the_false_answer(self, write, cache: Path) -> None:
        renamed = {
            "subject": "Quarry Hall",
            "prompt": self.ORIGINAL["src"],
            "target_new": "Max Roth",
            "ground_truth": ["Ada Quill"],
            "rephrase_prompt": self.ORIGINAL["rephrase"],
            "locality": {"Relation_Specificity": [], "Forgetfulness": []},
            "locality_prompt": self.ORIGINAL["loc"],
            "locality_ground_truth": "Ben Orr",
            "cond": self.ORIGINAL["cond"],
        }
        mixed = {**self.ORIGINAL, "target_new": "Max Roth"}
        only_false = {n: v for n, v in self.ORIGINAL.items() if n != "answers"}
        original = self.read(write, cache, self.ORIGINAL)
        assert original.request.target == "Ada Quill"
        for record in (renamed, mixed, only_false):
            case = self.read(write, cache, record)
            assert case.request.case_id == "0"
            assert case.request.prompt == "Who built {}?"
            assert case.request.target == "Max Roth"
            assert case.target_true == (None if record is only_false else "Ada Quill")
            assert {probe.alternative for probe in case.probes} == {None}
            assert [probe.prompt for probe in case.probes] == [
                probe.prompt for probe in original.probes
            ]
            assert [probe.expected for probe in case.probes] == ["Max Roth", "Max Roth", "Ben Orr"]

    def test_the_last_of_several_subjects_is_taken(self, write, cache: Path) -> None:
        record = {"subject": "Oslo", "prompt": "Is Oslo in Oslo county?", "target_new": "no"}
        assert self.read(write, cache, record).request.prompt == "Is Oslo in {} county?"


class TestSkipInvalid:
    LINES = (
        json.dumps({**PLAIN, "case_id": "a"}),
        '{"subject": "Zo',
        "3",
        json.dumps({**PLAIN, "target": ""}),
        json.dumps({**PLAIN, "prompt": "Who?"}),
        json.dumps({**PLAIN, "case_id": "a"}),
        json.dumps({**PLAIN, "unheard": "of"}),
        json.dumps({**PLAIN, "case_id": "b"}),
    )

    def test_lists_what_is_left_out(self, write, cache: Path) -> None:
        path = write("facts.jsonl", "\n".join(self.LINES))
        with pytest.raises(DataError, match=r"facts\.jsonl:2: ends in the middle"):
            Facts(path, cache).cases()
        dataset = Facts(path, cache)
        dataset.skip_invalid = True
        assert [case.request.case_id for case in dataset.cases()] == ["a", "b"]
        places = [reason.removeprefix(f"{path}:")[0] for reason in dataset.left_out]
        assert places == ["2", "3", "4", "5", "6", "7"]
        assert dataset.remarks[0] == f"{path}: left out 6 of 8 records:"
        assert dataset.remarks[3] == f"  {dataset.left_out[2]}"
        assert dataset.remarks[-1] == "  and 1 more"

    def test_the_fingerprint_tells(self, write, cache: Path) -> None:
        lines = (self.LINES[0], self.LINES[-1])
        whole = write("whole.jsonl", "\n".join(lines))
        damaged = write("damaged.jsonl", "\n".join(self.LINES))
        fingerprints = []
        for path, skip in ((whole, False), (whole, True), (damaged, True)):
            dataset = Facts(path, cache)
            dataset.skip_invalid = skip
            fingerprints.append(dataset.fingerprint)
        assert fingerprints[0] == fingerprints[1] != fingerprints[2]

    def test_rows_of_csv(self, write, cache: Path) -> None:
        path = write("f.csv", "subject,prompt,target\na,{} is,b,c\nd,{} is,e\n,{} is,f\n")
        dataset = Facts(path, cache)
        dataset.skip_invalid = True
        assert [case.request.subject for case in dataset.cases()] == ["d"]
        assert len(dataset.left_out) == 2

    def test_indices_count_what_is_left_out(self, write, cache: Path) -> None:
        records = [TestZsRE.ORIGINAL, 3, {}, TestZsRE.ORIGINAL]
        dataset = ZsRE(write("zsre.json", json.dumps(records)), cache)
        dataset.skip_invalid = True
        assert [case.request.case_id for case in dataset.cases()] == ["0", "3"]

    def test_nothing_left_is_an_error(self, write, cache: Path) -> None:
        dataset = Facts(write("f.jsonl", "{}\n{}\n"), cache)
        dataset.skip_invalid = True
        with pytest.raises(DataError, match=r"no record can be used, got 2\. The first: .*f\.jso"):
            dataset.cases()


class TestRealFiles:
    @pytest.mark.parametrize(
        ("dataset", "file", "n_cases", "n_left_out"),
        [
            (Facts, "qaedit/qaedit-700.json", 698, 2),
            (Facts, "wikibigedit/wikibigedit-2000.json", 2_000, 0),
            (Facts, "counterfact/counterfact-700.json", 700, 0),
            (ZsRE, "wikibigedit/wikibigedit-2000.json", 2_000, 0),
        ],
    )
    def test_are_read(
        self, shared_data: Path, cache: Path, dataset, file: str, n_cases: int, n_left_out: int
    ) -> None:
        opened = dataset(shared_data / file, cache)
        opened.skip_invalid = True
        assert (len(opened.cases()), len(opened.left_out)) == (n_cases, n_left_out)

    def test_facts_and_dataset_make_the_same_of_counterfact(
        self, shared_data: Path, cache: Path
    ) -> None:
        path = shared_data / "counterfact" / "counterfact-700.json"
        assert tuple(read_facts(path)) == CounterFact(path, cache).cases()
