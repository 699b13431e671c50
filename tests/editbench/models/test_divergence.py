"""KL divergence of next-token distributions against torch, however much of it is kept at once."""

import pytest
import torch
from torch.nn import functional

from editbench.edits.weight_edit import WeightEdit
from editbench.models import memory_budget
from editbench.models.answering import answer_questions
from editbench.models.divergence import divergence
from editbench.questions import Diverge
from editbench.requests import EditRequest
from editbench.testing import tiny_model

TEXTS = ("Ana is a poet. Bo is a pilot.", "Cy is a baker, and so on: one more text to read.")
QUESTIONS = (*(Diverge(text, everywhere=True) for text in TEXTS), Diverge("Ana is a"))


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def edit(model):
    from editbench.editors.base import EditorConfig

    name = "transformer.h.1.mlp.c_proj.weight"
    chance = torch.Generator().manual_seed(0)
    update = 0.3 * torch.randn(model.model.get_parameter(name).T.shape, generator=chance)
    requests = [EditRequest("0", "Ana", "{} is a", "poet")]
    return WeightEdit.build(
        model, editor="test", config=EditorConfig(), requests=requests, updates={name: update}
    )


@torch.no_grad()
def read(model, text: str) -> torch.Tensor:
    return model.model(torch.tensor([model.tokens.encode(text)])).logits[0]


def ask(model, *questions: Diverge):
    return answer_questions(model, questions, seed=0, token_budget=20)


def test_equals_torch_on_prompts_and_all_over_texts(model, edit):
    before = {each: read(model, each.text) for each in QUESTIONS}
    with edit.applied(model):
        after = {each: read(model, each.text) for each in QUESTIONS}
        found = ask(model, *QUESTIONS)
        assert model.edits_on
    for each in QUESTIONS:
        p, q = (logits.log_softmax(dim=1) for logits in (before[each], after[each]))
        every = functional.kl_div(q, p, reduction="none", log_target=True).sum(dim=1)
        expected = every[:-1] if each.everywhere else every[-1:]
        assert found[each].nats == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-6)
        assert min(found[each].nats) > 0


def test_what_is_kept_at_once_does_not_matter(model, edit, monkeypatch):
    with edit.applied(model):
        state = model.state
        whole = ask(model, *QUESTIONS)
        monkeypatch.setattr(memory_budget.MemoryBudget, "kept_bytes", 1)
        monkeypatch.setattr(memory_budget, "_LOGITS_IN_FLOAT32", 3 * model.n_logits)
        parts = ask(model, *QUESTIONS)
        assert model.state == state
    for each in QUESTIONS:
        assert parts[each].nats == pytest.approx(whole[each].nats, rel=1e-4, abs=1e-7)


def test_of_the_unedited_model_it_is_nought(model):
    answers = ask(model, *QUESTIONS)
    assert all(set(answer.nats) == {0.0} for answer in answers.values())


def test_worked_by_hand():
    halves, mostly = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25]]).log()
    # ½ ln(½ / ¾) + ½ ln(½ / ¼) = ½ ln(4/3)
    assert divergence(halves, mostly).item() == pytest.approx(
        0.5 * torch.tensor(4 / 3).log().item()
    )
    never = torch.tensor([[0.0, -torch.inf]])
    assert divergence(never, halves).item() == pytest.approx(torch.tensor(2.0).log().item())
