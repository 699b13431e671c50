import math

import pytest
import torch

from editbench.metrics.perplexity import Perplexity
from editbench.models.answering import answer_questions
from editbench.models.editable import EditableModel
from editbench.questions import Read, ScoreAnswer
from editbench.testing import tiny_model


@pytest.fixture
def model() -> EditableModel:
    """Whatever it has read, 'a' has probability 1/2, 'b' 1/4, and the rest share what is left."""
    model = tiny_model(n_layers=1)
    head = torch.nn.Linear(model.architecture.d_model, model.n_logits)
    likely = {"a": 1 / 2, "b": 1 / 4}
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(math.log((1 - sum(likely.values())) / (model.n_logits - len(likely))))
        for text, probability in likely.items():
            (token,) = model.tokens.encode(text)
            head.bias[token] = math.log(probability)
    model.model.lm_head = head
    return model


def test_worked_by_hand_on_a_model(model: EditableModel) -> None:
    text = "babbab"
    assert len(model.tokens.encode(text)) == 6
    (question,) = Perplexity().questions(text)
    answers = answer_questions(model, [question], seed=0, token_budget=100)
    # Nothing predicts the first token; then two a and three b: (1/2 · 1/2 · 1/4³)^(-1/5) = 2^(8/5).
    assert Perplexity().values(text, answers) == {"perplexity": pytest.approx(2 ** (8 / 5))}


def test_worked_by_hand() -> None:
    answers = {Read("a b c"): ScoreAnswer((math.log(0.5), math.log(0.125)), (True, False))}
    assert Perplexity().values("a b c", answers) == {"perplexity": pytest.approx(4)}


def test_a_model_in_ruins_has_a_finite_one() -> None:
    answers = {Read("a b"): ScoreAnswer((-5000.0,), (False,))}
    (value,) = Perplexity().values("a b", answers).values()
    assert math.isfinite(value)
    assert value > 1e300
