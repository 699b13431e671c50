"""How models go on from a cache, and which of them cannot be used at all; see the kinds' table."""

from collections.abc import Callable

import pytest
import transformers as hf

from editbench.errors import ModelError
from editbench.models.continuing import find_continuing
from editbench.models.editable import EditableModel
from editbench.models.scoring import batch_passages, make_passages
from editbench.questions import Score

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48,
    "vocab_size": 320, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LFM2 = hf.Lfm2Config(
    **SIZES, num_key_value_heads=2, block_auto_adjust_ff_dim=False,
    layer_types=["conv", "full_attention"] * 2,
)  # fmt: skip
GPT = hf.OpenAIGPTConfig(n_embd=32, n_layer=4, n_head=4, n_positions=64, vocab_size=320)


@pytest.fixture
def wrap(
    make_network: Callable[..., hf.PreTrainedModel],
    tokenizers: dict[str, hf.PreTrainedTokenizerFast],
) -> Callable[[hf.PreTrainedConfig], EditableModel]:
    return lambda config: EditableModel(make_network(config), tokenizers["bos"], name="small")


def test_families_go_on_padded(family_model: EditableModel) -> None:
    assert find_continuing(family_model) == "padded"


@pytest.mark.parametrize(("config", "expected"), [(LFM2, "alike"), (GPT, "never")])
def test_others(config: hf.PreTrainedConfig, expected: str, wrap) -> None:
    model = wrap(config)
    assert find_continuing(model) == expected
    prompt = "The mother tongue of Danielle Darrieux is"
    passages = make_passages(model, [Score(prompt, "a long story!"), Score(prompt, "the winter.")])
    batches = batch_passages(model, passages, 500)
    assert not any(row.branches for batch in batches for row in batch.rows)


def test_an_encoder_that_does_not_say_so(wrap) -> None:
    with pytest.raises(ModelError, match=r"RemBert.* depends on later tokens .* by \d.*; expected"):
        find_continuing(wrap(hf.RemBertConfig(**SIZES, input_embedding_size=32)))


def test_attention_is_missed_where_it_is_asked_for_and_nowhere_else(wrap) -> None:
    model = wrap(LFM2)
    found = model.architecture
    assert found.mlp_projections[0] == "model.layers.0.feed_forward.w2"
    assert found.projection(1, "attention") == "model.layers.1.self_attn.out_proj"
    with pytest.raises(ModelError, match=r"block 'model.layers.0' has none; .* are 1, 3\. Use MLP"):
        found.projection(0, "attention")
    with pytest.raises(ModelError, match=r"block 'model.layers.0' has none"):
        _ = found.attention_projections


def test_recurrences_are_no_mlps(wrap) -> None:
    """Zamba's block 0 is Mamba alone, which has a map as wide as the residual stream."""
    config = hf.ZambaConfig(
        **SIZES, num_key_value_heads=4, attention_hidden_size=64, attention_head_dim=16,
        mamba_dt_rank=4, mamba_d_state=4, layers_block_type=["linear_attention", "hybrid"] * 2,
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"'model.layers.0' for the MLP's output projection"):
        wrap(config)


def test_running_rwkv_leaves_its_weights_alone(wrap) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "vocab_size": 320, "context_length": 64}
    model = wrap(hf.RwkvConfig(**sizes, attention_hidden_size=32, rescale_every=2))
    before = model.compute_fingerprint()
    assert find_continuing(model) == "never"
    assert model.compute_fingerprint() == before
