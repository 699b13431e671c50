"""Known facts: read, located, and chosen by what the model says."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from editbench.errors import DataError, TraceError
from editbench.models.editable import EditableModel
from editbench.requests import EditCase, EditRequest
from editbench.tracing.facts import KnownFact, facts_of_cases, read_known_facts
from editbench.tracing.prompts import choose_known, prompt_of

RECORD = {"subject": "Ana Lund", "attribute": "pilot", "prompt": "Ana Lund works as a"}


def write(path: Path, *records: object) -> Path:
    path.write_text(json.dumps(records))
    return path


def test_known_facts_are_read(tmp_path: Path) -> None:
    other = {**RECORD, "known_id": 7, "prompt": "A friend of Ana Lund is a", "template": "x {}"}
    path = write(tmp_path / "known.json", RECORD, other)
    assert read_known_facts(path) == [
        KnownFact("0", "Ana Lund", "Ana Lund works as a", 0, "pilot"),
        KnownFact("7", "Ana Lund", "A friend of Ana Lund is a", 12, "pilot"),
    ]


def test_the_published_file_is_read(shared: Path) -> None:
    facts = read_known_facts(shared / "data" / "known_facts" / "known_1000.json")
    assert len(facts) == 1209
    first = facts[0]
    assert (first.subject, first.object) == ("Vinson Massif", "Antarctica")
    assert first.prompt == "Vinson Massif is located in the continent of"
    assert all(fact.prompt[fact.subject_start : fact.subject_end] == fact.subject for fact in facts)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"subject": "Ana"}, "field 'prompt' is missing"),
        ({**RECORD, "subject": "Boris"}, "field 'subject' does not occur in the prompt"),
        ({**RECORD, "attribute": " "}, "field 'attribute' is empty"),
        ([1], "the record must be an object"),
    ],
)
def test_malformed_facts(tmp_path: Path, record: object, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_known_facts(write(tmp_path / "known.json", record))


def test_a_file_without_facts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no records"):
        read_known_facts(write(tmp_path / "known.json"))


def test_cases_give_their_true_objects() -> None:
    request = EditRequest("a", "Ana Lund", "Everybody knows {} as a", "judge")
    cases = [EditCase(request, target_true=" pilot"), EditCase(request), EditCase(request, " ")]
    (fact,) = facts_of_cases(cases)
    assert fact == KnownFact("a", "Ana Lund", "Everybody knows Ana Lund as a", 16, "pilot")


def test_facts_that_the_model_does_not_predict_are_skipped(
    tiny: EditableModel, tiny_facts: list[KnownFact]
) -> None:
    known = choose_known(tiny, tiny_facts)
    assert [prompt.fact for prompt in known.prompts] == tiny_facts[::2]
    assert (known.n_asked, known.n_skipped) == (8, 4)
    for prompt in known.prompts:
        assert prompt.answer_text.strip() == prompt.fact.object


def test_no_more_facts_are_asked_for_than_needed(
    tiny: EditableModel, tiny_facts: list[KnownFact]
) -> None:
    seen: list[tuple[int, int]] = []
    known = choose_known(
        tiny, tiny_facts, limit=2, on_progress=lambda done, total: seen.append((done, total))
    )
    assert [prompt.fact for prompt in known.prompts] == [tiny_facts[0], tiny_facts[2]]
    assert (known.n_asked, known.n_skipped) == (3, 1)
    assert seen[-1] == (2, 2)


def test_no_fact_is_known(tiny: EditableModel, tiny_facts: list[KnownFact]) -> None:
    with pytest.raises(TraceError, match="predicts none of the facts, got 4"):
        choose_known(tiny, tiny_facts[1::2])


def test_a_character_may_be_spread_over_several_tokens(
    tiny: EditableModel, make_fact: Callable[..., KnownFact]
) -> None:
    prompt = prompt_of(tiny, make_fact("北京", "We know {} as"))
    before, after = (tiny.tokens.encode(text) for text in ("We know", " as"))
    assert prompt.subject == range(len(before) + 1, len(prompt.token_ids) - len(after))
    assert len(prompt.subject) == 6  # a byte each
    assert {prompt.texts[position] for position in prompt.subject} == {"·"}
    assert (
        tiny.tokens.decode(prompt.token_ids[prompt.subject.start : prompt.subject.stop]) == "北京"
    )
