"""Facts before questions: which, how, and that everything else stays as it was."""

from pathlib import Path

import pytest
import torch

from editbench.editors.base import Resources
from editbench.editors.prompting import InContext, PromptingConfig, Retrieval, RetrievalConfig
from editbench.edits.prompt_edit import WORDINGS, PromptEdit, state_fact
from editbench.errors import ConfigError, EditError
from editbench.models.answering import answer_questions
from editbench.models.divergence import divergence
from editbench.models.editable import EditableModel
from editbench.questions import Diverge, Generate, Read, Score
from editbench.requests import EditRequest
from editbench.testing import check_editor, tiny_model, toy_cases

HALL = EditRequest("a", "Quarry Hall", "Who built {}?", "Max Roth")
TOWER = EditRequest("b", "Quarry Tower", "{} stands in", "Osk")
IDA = EditRequest("c", "Ida Moor", "{} is a", "poet.")
IDA_LIVES = EditRequest("d", "Ida Moor", "{} lives in", "Velm")


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny_model(n_layers=2)


def ask(model: EditableModel, *questions):
    return answer_questions(model, questions, seed=0, token_budget=4096)


def in_context(model: EditableModel, *requests: EditRequest) -> PromptEdit:
    edit = InContext(PromptingConfig()).edit(model, requests, Resources(seed=0))
    assert isinstance(edit, PromptEdit)
    return edit


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (HALL, "Who built Quarry Hall? Max Roth."),
        (IDA, "Ida Moor is a poet."),
        (EditRequest("e", "Nora", "{}: nora", "@quill", joiner=""), "Nora: nora@quill."),
    ],
)
def test_a_fact_as_a_sentence(request_: EditRequest, sentence: str):
    assert state_fact(request_) == sentence


def test_the_card_says_that_each_fact_is_written(model):
    facts = in_context(model, HALL, IDA).card.extra["facts"]
    assert [fact["case_id"] for fact in facts] == [HALL.case_id, IDA.case_id]
    assert {fact["status"] for fact in facts} == {"written"}


def test_every_question_is_asked_behind_the_facts(model):
    """The answers are those to the same questions with the facts written out before them."""
    first, second = (case.request for case in toy_cases(2))
    before = f"{state_fact(first)} {state_fact(second)} "
    score, text = Score(first.text, first.target), Generate(second.text, 12)
    n_more = len(model.tokens.encode(before + text.prompt)) - len(model.tokens.encode(text.prompt))
    written_out = (
        Score(before + first.text, first.target),
        Generate(before + second.text, 12 + n_more),
    )
    expected = ask(model, *written_out)
    unedited = ask(model, score)[score]
    with in_context(model, first, second).applied(model):
        found = ask(model, score, text)
    assert found[score] == expected[written_out[0]]
    assert found[score] != unedited
    assert before + found[text].text == expected[written_out[1]].text
    assert ask(model, score)[score] == unedited


def test_texts_that_are_read_and_weights_stay_as_they_are(model):
    request = toy_cases(1)[0].request
    read = Read(request.text)
    before, weights = ask(model, read), model.state
    edit = in_context(model, request)
    with edit.applied(model):
        assert ask(model, read) == before
        assert model.state != weights  # it is known that something is on the model
        with model.unedited("test"):
            assert model.as_asked("So?") == "So?"
        assert model.as_asked("So?") == f"{state_fact(request)} So?"
    assert model.state == weights
    assert edit.identity == in_context(model, request).identity
    assert edit.identity != in_context(model).identity
    assert not in_context(model).changes_something


def test_divergence_is_that_of_the_question_behind_the_facts(model):
    request = toy_cases(1)[0].request
    prompt = Diverge("Elif Lund works as a")
    text = Diverge("Elif Lund works as a pilot.", everywhere=True)
    edit = in_context(model, request)
    with edit.applied(model):
        found = ask(model, prompt, text)

    def logits(text: str) -> torch.Tensor:
        ids = torch.tensor([model.tokens.encode(text)])
        return model.model(input_ids=ids).logits[0, -1:]

    with torch.no_grad():
        expected = divergence(logits(prompt.text), logits(edit.preface("") + prompt.text))
    assert found[prompt].nats == pytest.approx(expected.tolist(), rel=1e-4)
    assert found[prompt].mean > 0
    assert found[text].mean == 0


def test_there_is_nothing_to_save(model, tmp_path: Path):
    edit = in_context(model, IDA)
    with pytest.raises(EditError, match=r"'in-context' puts facts before prompts.*no update"):
        edit.save(tmp_path / "edit.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_two_edits_of_prompts_stand_in_their_order(model):
    first, second = in_context(model, IDA), in_context(model, HALL)
    with first.applied(model), second.applied(model):
        assert model.as_asked("So?") == "Ida Moor is a poet. Who built Quarry Hall? Max Roth. So?"


@pytest.mark.parametrize(
    ("n_facts", "question", "preamble"),
    [
        (1, "By whom was Quarry Hall built?", "Who built Quarry Hall? Max Roth. "),
        (1, "Where does QUARRY TOWER stand?", "Quarry Tower stands in Osk. "),
        (2, "Who built Quarry Tower, and who Quarry Hall?",
         "Quarry Tower stands in Osk. Who built Quarry Hall? Max Roth. "),
        (1, "Ida Moor lives with", "Ida Moor lives in Velm. "),
        (2, "Ida Moor lives with", "Ida Moor is a poet. Ida Moor lives in Velm. "),
        (1, "Who built Quarry Bridge?", ""),
        (1, "Who built Osk?", ""),
        (1, "", ""),
    ],
)  # fmt: skip
def test_the_facts_that_fit_are_found(model, n_facts: int, question: str, preamble: str):
    pytest.importorskip("bm25s", reason="needs the extra editbench[retrieval]")
    editor = Retrieval(RetrievalConfig(n_facts=n_facts, wording="sentence"))
    edit = editor.edit(model, [HALL, TOWER, IDA, IDA_LIVES], Resources(seed=0))
    assert isinstance(edit, PromptEdit)
    assert edit.preface(question) == preamble


def test_facts_are_worded(model):
    facts = "New Fact: Ida Moor is a poet.\nNew Fact: Who built Quarry Hall? Max Roth.\nPrompt: "
    told = {
        "sentence": "Ida Moor is a poet. Who built Quarry Hall? Max Roth. ",
        "new-fact": facts,
        "instruction": f"Answer by these facts, which are new:\n{facts}",
    }
    identities = set()
    for wording in WORDINGS:
        editor = InContext(PromptingConfig(wording=wording))
        edit = editor.edit(model, [IDA, HALL], Resources(seed=0))
        identities.add(edit.identity)
        with edit.applied(model):
            assert model.as_asked("So?") == f"{told[wording]}So?"
        assert editor.preface([])("So?") == ""
    assert len(identities) == len(WORDINGS) == len(told)


def test_a_wording_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"field 'wording'.*'new-fact'.*got 'yoda'"):
        PromptingConfig.parse({"wording": "yoda"}, "test")


def test_facts_of_a_stream_stand_together(model):
    """A fact in the place of another replaces it, and a stream goes on from what it carries."""
    moved = EditRequest("e", "Quarry Tower", "{} stands in", "Velm")
    editor = InContext(PromptingConfig(wording="new-fact"))
    stream = editor.open_stream(model, Resources(seed=0))
    stream.write([TOWER, IDA])
    again = editor.open_stream(model, Resources(seed=0), stream.carried)
    edit, same = stream.write([moved]), again.write([moved])
    assert edit.identity == same.identity
    assert edit.card == same.card
    assert edit.card.n_edits == 3
    with edit.applied(model):
        told = "New Fact: Ida Moor is a poet.\nNew Fact: Quarry Tower stands in Velm.\nPrompt: "
        assert model.as_asked("So?") == f"{told}So?"


def test_questions_about_nothing_edited_come_through_untouched(model):
    pytest.importorskip("bm25s", reason="needs the extra editbench[retrieval]")
    case, *_ = toy_cases(1)
    edit = Retrieval(RetrievalConfig()).edit(model, [case.request], Resources(seed=0))
    own, _, neighbor = (probe.question(probe.expected) for probe in case.probes)
    before = ask(model, own, neighbor)
    with edit.applied(model):
        after = ask(model, own, neighbor)
    assert after[neighbor] == before[neighbor]
    assert after[own] != before[own]
    nothing = Retrieval(RetrievalConfig()).edit(model, [], Resources(seed=0))
    assert not nothing.changes_something
    assert torch.is_grad_enabled()


def test_it_keeps_the_contract_of_an_editor():
    assert [each.failure for each in check_editor(InContext)] == [None] * 8
