from collections.abc import Callable

import pytest
import torch
from transformers import GPTJConfig, GPTJForCausalLM

from editbench.edits.weight_edit import WeightEdit
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest
from editbench.testing import tiny_model, tiny_tokenizer
from memit_core import UpdateFactors

D_MODEL = 24
D_MLP = 4 * D_MODEL


@pytest.fixture(scope="session")
def gpt2() -> EditableModel:
    """Stores weights as [d_in, d_out]."""
    return tiny_model(n_layers=2, d_model=D_MODEL)


@pytest.fixture(scope="session")
def gptj() -> EditableModel:
    """Stores weights as [d_out, d_in]."""
    tokenizer = tiny_tokenizer()
    config = GPTJConfig(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=D_MODEL,
        n_layer=2,
        n_head=2,
        rotary_dim=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = GPTJForCausalLM(config)
    return EditableModel(model, tokenizer, name="tiny-gptj")


@pytest.fixture(params=["gpt2", "gptj"])
def model(request: pytest.FixtureRequest) -> EditableModel:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def random_factors() -> Callable[[int, int], UpdateFactors]:
    def make(rank: int, seed: int) -> UpdateFactors:
        generator = torch.Generator().manual_seed(seed)
        left, right = (
            torch.randn(size, rank, generator=generator, dtype=torch.float64)
            for size in (D_MODEL, D_MLP)
        )
        return UpdateFactors(left, right)

    return make


@pytest.fixture(scope="session")
def make_edit(random_factors: Callable[[int, int], UpdateFactors]) -> Callable[..., WeightEdit]:
    """Makes an edit of one layer's MLP projection, by a random update of some rank."""

    def make(model: EditableModel, *, rank: int = 2, seed: int = 0, layer: int = 0) -> WeightEdit:
        name = model.architecture.weight_name(model.architecture.mlp_projections[layer])
        return WeightEdit.build(
            model,
            editor="random",
            config={"rank": rank},
            requests=[EditRequest(str(seed), "Zoë Lund", "{} works as a", "poet")],
            updates={name: random_factors(rank, seed)},
            extra={"note": "für die Akten"},
        )

    return make
