import pytest
import torch
import transformers as hf

from editbench.errors import ModelError
from editbench.models.editable import EditableModel
from editbench.models.head import select_head_positions

ROWS = torch.tensor([0, 1, 1, 2, 0])
POSITIONS = torch.tensor([3, 0, 1, 2, 3])


@pytest.fixture
def arguments(family_model: EditableModel) -> dict[str, torch.Tensor]:
    return family_model.batch([[5, 9, 200, 7], [8, 300], [11, 12, 13]])


@torch.no_grad()
def test_equals_the_full_logits_on_every_family(
    family_model: EditableModel, arguments: dict[str, torch.Tensor]
) -> None:
    full = family_model.model(**arguments).logits
    with select_head_positions(family_model, ROWS, POSITIONS):
        chosen = family_model.model(**arguments).logits
    assert chosen.shape == (1, 5, full.shape[2])
    torch.testing.assert_close(chosen[0], full[ROWS, POSITIONS], rtol=1e-5, atol=1e-5)
    assert torch.equal(family_model.model(**arguments).logits, full)


@torch.no_grad()
def test_soft_capping_is_kept(tokenizers) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320}
    config = hf.Gemma2Config(**sizes, **heads, final_logit_softcapping=0.5)
    network = hf.Gemma2ForCausalLM(config)
    torch.nn.init.normal_(network.lm_head.weight)
    model = EditableModel(network, tokenizers["bos"], name="capped")
    with select_head_positions(model, torch.tensor([0]), torch.tensor([-1])):
        logits = model.model(**model.batch([[5, 6]])).logits
    assert 0.1 < logits.abs().max() <= 0.5


def test_leaves_no_hook_behind_when_the_body_raises(family_model: EditableModel) -> None:
    head = family_model.model.get_submodule(family_model.architecture.head)

    def fail() -> None:
        assert head._forward_pre_hooks
        raise RuntimeError("on purpose")

    with (
        pytest.raises(RuntimeError, match="on purpose"),
        select_head_positions(family_model, ROWS, POSITIONS),
    ):
        fail()
    assert not head._forward_pre_hooks


def test_says_so_if_the_head_never_ran(family_model: EditableModel) -> None:
    head = family_model.model.get_submodule(family_model.architecture.head)
    with (
        pytest.raises(ModelError, match="never ran"),
        select_head_positions(family_model, ROWS, POSITIONS),
    ):
        pass
    assert not head._forward_pre_hooks
