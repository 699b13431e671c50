"""CounterFact in its original schema."""

import json
from pathlib import Path

import pytest

from editbench.datasets import CounterFact, CounterFactFull
from editbench.errors import DataError
from editbench.requests import EditCase, EditRequest, Probe


def make_record(case_id: object = 3, **rewrite: object) -> dict:
    return {
        "case_id": case_id,
        "pararel_idx": 1000,
        "requested_rewrite": {
            "prompt": "{} plays the",
            "relation_id": "P1303",
            "target_new": {"str": "viola", "id": "Q1"},
            "target_true": {"str": "drums", "id": "Q2"},
            "subject": "Ada Quill",
            **rewrite,
        },
        "paraphrase_prompts": ["It rained. Ada Quill performs on the"],
        "neighborhood_prompts": ["Ben Orr plays the", "Cy Lund plays the"],
        "attribute_prompts": ["Dee Roy plays the"],
        "generation_prompts": ["Ada Quill is known for"],
    }


def test_a_record_becomes_a_case(write, cache: Path) -> None:
    (case,) = CounterFact(write("cf.json", json.dumps([make_record()])), cache).cases()
    assert case == EditCase(
        request=EditRequest("3", "Ada Quill", "{} plays the", "viola", "P1303"),
        target_true="drums",
        probes=(
            Probe("efficacy", "Ada Quill plays the", "viola", "drums"),
            Probe("paraphrase", "It rained. Ada Quill performs on the", "viola", "drums"),
            Probe("neighborhood", "Ben Orr plays the", "drums", "viola"),
            Probe("neighborhood", "Cy Lund plays the", "drums", "viola"),
        ),
        generation_prompts=("Ada Quill is known for",),
    )


def test_optional_fields_may_be_absent(write, cache: Path) -> None:
    full = make_record()
    bare = make_record(target_new={"str": "viola"}, target_true={"str": "drums"})
    del bare["pararel_idx"], bare["attribute_prompts"]
    paths = [write(f"{n}.json", json.dumps([each])) for n, each in enumerate((full, bare))]
    assert CounterFact(paths[0], cache).cases() == CounterFact(paths[1], cache).cases()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (make_record(subject=None), "field 'requested_rewrite.subject' is missing"),
        (make_record(target_new="viola"), "'requested_rewrite.target_new' has the wrong type"),
        (make_record(target_new={"id": "Q1"}), "'requested_rewrite.target_new.str' is missing"),
        (make_record(target_true={"str": " "}), "'requested_rewrite.target_true.str' is empty"),
        (make_record(prompt="Ada plays the"), "request '3': field 'prompt' must contain '{}'"),
        (make_record(case_id=None), "field 'case_id' is missing"),
        (make_record(case_id=1), "field 'case_id' must be unique, got '1', which "),
        ({**make_record(), "requested_rewrite": []}, "'requested_rewrite' has the wrong type"),
        ({**make_record(), "paraphrase_prompts": None}, "'paraphrase_prompts' is missing"),
        (
            {**make_record(), "neighborhood_prompts": [{"prompt": "x", "target": "y"}]},
            "field 'neighborhood_prompts[0]' has the wrong type, got {",
        ),
    ],
)
def test_malformed_records_name_line_and_field(
    write, cache: Path, record: dict, message: str
) -> None:
    content = f"[{json.dumps(make_record(1))},\n{json.dumps(record)}]"
    path = write("cf.json", content)
    with pytest.raises(DataError) as caught:
        CounterFact(path, cache).cases()
    assert str(caught.value).startswith(f"{path}:2: ")
    assert message in str(caught.value)


def test_the_flat_schema_of_other_copies(shared_data: Path, cache: Path) -> None:
    path = shared_data / "counterfact" / "requests-21919.json"
    dataset = CounterFact(path, cache)
    cases = dataset.cases()
    assert len(cases) == 21_919
    assert cases[0].request == EditRequest(
        "0", "Danielle Darrieux", "The mother tongue of {} is", "English", "P103"
    )
    assert {case.target_true is None for case in cases} == {False}
    assert dataset.remarks == (f"{path}: 'target_new' as target, 'relation_id' as relation.",)


def test_real_records(shared_data: Path, cache: Path) -> None:
    path = shared_data / "counterfact" / "counterfact-700.json"
    cases = CounterFact(path, cache).cases()
    assert len(cases) == 700
    kinds = [[probe.kind for probe in case.probes] for case in cases]
    assert all(each == ["efficacy"] + ["paraphrase"] * 2 + ["neighborhood"] * 10 for each in kinds)
    assert all(len(case.generation_prompts) == 10 for case in cases)
    assert all(case.request.relation for case in cases)
    # Written the other way, the same records are the same cases in another file.
    records = json.loads(path.read_text(encoding="utf-8"))
    assert [case.request.case_id for case in cases] == [str(each["case_id"]) for each in records]


def test_golden_records_of_the_reference(shared_data: Path, cache: Path) -> None:
    folder = shared_data.parent / "reference" / "golden" / "gpt2"
    if not folder.exists():
        pytest.skip(f"needs {folder}")
    cases = CounterFact(folder / "requests.json", cache).cases()
    assert [case.request.case_id for case in cases] == [str(n) for n in range(20)]


def test_both_editions_have_names_of_their_own() -> None:
    assert (CounterFact.name, CounterFactFull.name) == ("counterfact", "counterfact-full")
    assert CounterFact.remote is not None
    assert CounterFactFull.remote is not None
    assert CounterFact.remote.name == "multi_counterfact.json"
    assert CounterFactFull.remote.name == "counterfact.json"
    assert CounterFact.describe() != CounterFactFull.describe()
    assert CounterFact.default_metrics == CounterFactFull.default_metrics
    assert {"success", "accuracy"} < set(CounterFact.default_metrics)


SNIPPETS = [
    {
        "relation_id": "P1303",
        "target_id": "Q1",
        "samples": [{"name": "Eva", "text": "Eva plays the viola."}, {"name": "F", "text": ""}],
    },
    {"relation_id": "P1303", "target_id": "Q9", "samples": [{"text": "Not asked for."}]},
    {"relation_id": "P1303", "target_id": "Q1", "samples": [{"text": "Zoë too."}]},
]


class TestSnippets:
    def test_reference_texts_are_those_of_relation_and_new_target(self, write, cache) -> None:
        data = write("cf.json", json.dumps([make_record()]))
        snippets = write("snippets.json", json.dumps(SNIPPETS))
        with_texts = CounterFact(data, cache, snippets=snippets)
        (case,) = with_texts.cases()
        assert case.reference_texts == ("Eva plays the viola.", "Zoë too.")
        assert CounterFact(data, cache).cases()[0].reference_texts == ()

    def test_the_original_file_is_found_beside_the_data(self, write, cache) -> None:
        data = write("cf.json", json.dumps([make_record()]))
        before = CounterFact(data, cache).fingerprint
        snippets = write("attribute_snippets.json", json.dumps(SNIPPETS))
        found = CounterFact(data, cache)
        (case,) = found.cases()
        assert case.reference_texts == ("Eva plays the viola.", "Zoë too.")
        assert found.fingerprint == CounterFact(data, cache, snippets=snippets).fingerprint
        assert found.fingerprint != before
        other = write("other.json", json.dumps([{**SNIPPETS[0], "samples": []}]))
        assert CounterFact(data, cache, snippets=other).cases()[0].reference_texts == ()

    def test_they_are_part_of_the_fingerprint(self, write, cache) -> None:
        data = write("cf.json", json.dumps([make_record()]))
        fingerprints = {CounterFact(data, cache).fingerprint}
        for n_snippets in (2, 3):
            snippets = write(f"{n_snippets}.json", json.dumps(SNIPPETS[:n_snippets]))
            fingerprints.add(CounterFact(data, cache, snippets=snippets).fingerprint)
        assert len(fingerprints) == 3

    def test_a_target_without_texts_has_none(self, write, cache) -> None:
        data = write("cf.json", json.dumps([make_record(target_new={"str": "x", "id": "Q77"})]))
        snippets = write("snippets.json", json.dumps(SNIPPETS))
        assert CounterFact(data, cache, snippets=snippets).cases()[0].reference_texts == ()

    def test_a_target_without_id_cannot_be_looked_up(self, write, cache) -> None:
        data = write("cf.json", json.dumps([make_record(target_new={"str": "viola"})]))
        snippets = write("snippets.json", json.dumps(SNIPPETS))
        with pytest.raises(DataError, match=r"'requested_rewrite\.target_new\.id' is missing"):
            CounterFact(data, cache, snippets=snippets).cases()

    @pytest.mark.parametrize("n_read", [1, 7, 64, 1 << 20])
    @pytest.mark.parametrize("indent", [None, 3])
    def test_streaming_does_not_depend_on_where_reads_end(
        self, write, cache, monkeypatch: pytest.MonkeyPatch, n_read: int, indent: int | None
    ) -> None:
        monkeypatch.setattr("editbench.datasets.counterfact._N_CHARACTERS_READ", n_read)
        data = write("cf.json", json.dumps([make_record()]))
        snippets = write("s.json", json.dumps(SNIPPETS, indent=indent, ensure_ascii=False) + "\n")
        (case,) = CounterFact(data, cache, snippets=snippets).cases()
        assert case.reference_texts == ("Eva plays the viola.", "Zoë too.")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"{}", "record 1: must stand in a JSON array, got '{}'"),
            (b"", "record 1: ends in the middle of the record"),
            (json.dumps(SNIPPETS)[:-1].encode(), "record 4: ends in the middle of the record"),
            (json.dumps(SNIPPETS)[:-9].encode(), "record 3: ends in the middle of the record"),
            (b"[{} {}]", "record 1: field 'relation_id' is missing"),
            (
                json.dumps(SNIPPETS).replace("]}, {", "]} {").encode(),
                "record 2: must stand in a JSON",
            ),
            (b'[{"relation_id": "P1303", "target_id": "Q1"}]', "field 'samples' is missing"),
            (b'[{"relation_id": "\xe9"}]', "is not UTF-8"),
        ],
    )
    def test_malformed(self, write, cache, content: bytes, message: str) -> None:
        data = write("cf.json", json.dumps([make_record()]))
        snippets = write("snippets.json", content)
        with pytest.raises(DataError) as caught:
            CounterFact(data, cache, snippets=snippets).cases()
        assert str(caught.value).startswith(f"{snippets}: ")
        assert message in str(caught.value)

    def test_missing_file(self, write, cache, tmp_path: Path) -> None:
        data = write("cf.json", json.dumps([make_record()]))
        with pytest.raises(DataError, match=r"absent\.json: cannot be read: No such file"):
            CounterFact(data, cache, snippets=tmp_path / "absent.json").cases()
