"""How alike keys are, as an update sees them."""

import pytest
import torch

from editbench.editors.keys.reading import read_at_subjects
from editbench.editors.leaks import compare_keys
from editbench.editors.subject_tokens import PromptRow, key_row
from editbench.questions import Score
from editbench.requests import EditRequest
from editbench.testing import tiny_model

LAYER = 1
LENA = EditRequest("1", "Lena Ort", "{} works as a", "baker")
IVO = EditRequest("2", "Ivo Brandt", "{} works as a", "pilot")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def moment(model):
    chance = torch.Generator().manual_seed(0)
    rows = torch.randn(400, model.d_key(LAYER), generator=chance, dtype=torch.float64)
    return rows.T @ rows / 400


def test_a_prompt_about_the_same_subject_gets_all_of_it(model, moment):
    prompts = [Score("Lena Ort lives in", "Genoa"), Score("The river is", "long")]
    likeness = compare_keys(model, [LENA, IVO], prompts, LAYER, moment)
    assert likeness.shape == (2, 2)
    assert likeness[0, 0] == pytest.approx(1, abs=1e-5)
    assert (likeness[1] < 0.999).all()
    assert ((likeness >= 0) & (likeness <= 1 + 1e-9)).all()


def test_it_is_the_largest_cosine_over_the_prompts_tokens(model, moment):
    question = Score("Nora Rau works as a", "poet")
    ids = model.tokens.encode_question(question)[0]
    rows = [key_row(model.tokens, IVO, "")]
    rows += [PromptRow(tuple(ids[: last + 1]), last) for last in range(len(ids))]
    path = model.architecture.projection(LAYER, "mlp")
    keys = read_at_subjects(model, rows, len(moment), "test", input_of=path).double()
    price = torch.linalg.inv(moment + 1e-6 * moment.diagonal().mean() * torch.eye(len(moment)))
    own, others = keys[0], keys[1:]
    cosines = [
        abs(own @ price @ other) / ((own @ price @ own) * (other @ price @ other)).sqrt()
        for other in others
    ]
    found = compare_keys(model, [IVO], [question], LAYER, moment)
    assert float(found) == pytest.approx(float(max(cosines)), rel=1e-6)
