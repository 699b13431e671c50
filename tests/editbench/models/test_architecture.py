import pytest
import torch
import transformers as hf
from torch import nn
from transformers.pytorch_utils import Conv1D

from editbench.errors import ModelError
from editbench.models.architecture import find_architecture, input_width, weight_is_transposed
from editbench.models.editable import EditableModel

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def build(config: hf.PreTrainedConfig) -> hf.PreTrainedModel:
    return hf.AutoModelForCausalLM.from_config(config)


class TestFamilies:
    def test_finds_every_part(self, family: str, family_model: EditableModel, families) -> None:
        _, blocks, mlp, attention, final_norm, _ = families[family]
        found = family_model.architecture
        assert found.blocks == blocks
        assert (found.n_layers, found.d_model) == (4, 32)
        assert found.mlp_projections == tuple(f"{blocks}.{layer}.{mlp}" for layer in range(4))
        assert found.attention_projections == tuple(
            f"{blocks}.{layer}.{attention}" for layer in range(4)
        )
        assert found.final_norm == final_norm
        network = family_model.model
        assert network.get_submodule(found.embedding) is network.get_input_embeddings()
        assert network.get_submodule(found.head) is network.get_output_embeddings()
        assert network.get_submodule(found.block(2)) is network.get_submodule(blocks)[2]

    def test_weights_are_named_as_the_model_names_them(self, family_model: EditableModel) -> None:
        found = family_model.architecture
        named = dict(family_model.model.named_parameters())
        for path in (*found.mlp_projections, *found.attention_projections):
            assert found.weight_name(path) in named

    def test_orientation_and_width_of_the_key(
        self, family: str, family_model: EditableModel, families
    ) -> None:
        path = family_model.architecture.mlp_projections[1]
        module = family_model.model.get_submodule(path)
        transposed = families[family][-1]
        assert weight_is_transposed(module) == transposed
        d_in, d_out = module.weight.shape if transposed else module.weight.shape[::-1]
        assert (family_model.d_key(1), 32) == (d_in, d_out)

    def test_the_projections_write_into_the_residual_stream(
        self, family_model: EditableModel
    ) -> None:
        """Silencing both of them leaves a block that passes its input on."""
        found, network = family_model.architecture, family_model.model
        seen = []

        def silence(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(output)

        def see(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            into = args[0] if args else kwargs["hidden_states"]
            seen.append((into, output[0] if isinstance(output, tuple) else output))

        handles = [
            network.get_submodule(path).register_forward_hook(silence)
            for path in (found.mlp_projections[1], found.attention_projections[1])
        ]
        handles.append(
            network.get_submodule(found.block(1)).register_forward_hook(see, with_kwargs=True)
        )
        with torch.no_grad():
            network(**family_model.batch([[5, 6, 7]]))
        for handle in handles:
            handle.remove()
        [(into, out)] = seen
        if found.final_norm is None:  # post-norm: the stream itself is normalized, twice
            block = network.get_submodule(found.block(1))
            into = block.final_layer_norm(block.self_attn_layer_norm(into))
        assert torch.equal(into, out)


def test_stories_model(stories: EditableModel) -> None:
    found = stories.architecture
    assert found.n_layers == 5
    assert found.mlp_projections[4] == "model.layers.4.mlp.down_proj"
    assert stories.d_key(0) == 172
    network = stories.model
    assert network.get_submodule(found.head).weight is network.get_submodule(found.embedding).weight


def test_composite_model_is_looked_at_where_its_text_decoder_is() -> None:
    text = hf.Gemma3TextConfig(**SMALL, num_key_value_heads=2, head_dim=8)
    vision = hf.SiglipVisionConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48,
        image_size=28, patch_size=14,
    )  # fmt: skip
    config = hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    found = find_architecture(hf.Gemma3ForConditionalGeneration(config))
    assert found.blocks == "model.language_model.layers"
    assert found.final_norm == "model.language_model.norm"
    assert found.head == "lm_head"


def test_orientation_of_a_module_that_is_no_linear_map() -> None:
    assert weight_is_transposed(Conv1D(3, 5))
    assert input_width(Conv1D(3, 5)) == 5
    with pytest.raises(ModelError, match="got LayerNorm; expected Linear or Conv1D"):
        weight_is_transposed(nn.LayerNorm(3))


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_layer_that_does_not_exist(layer: int) -> None:
    found = find_architecture(build(hf.LlamaConfig(**SMALL)))
    with pytest.raises(ModelError, match=f"got {layer}; expected 0 to 3"):
        found.block(layer)


class TestUnsupported:
    def test_mixture_of_experts(self) -> None:
        model = build(hf.MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=2))
        with pytest.raises(ModelError, match=r"'model.layers.0.mlp' .* mixture of experts"):
            find_architecture(model)

    def test_encoder(self) -> None:
        # Loading reports nothing and computes something: only causality tells it apart.
        with pytest.raises(ModelError, match="not causal"):
            find_architecture(hf.BertLMHeadModel(hf.BertConfig(**SMALL)))

    def test_encoder_decoder(self) -> None:
        sizes = {"d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 2, "d_kv": 16}
        model = hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=64, **sizes))
        with pytest.raises(ModelError, match="T5ForConditionalGeneration is an encoder-decoder"):
            find_architecture(model)

    def test_no_attention(self) -> None:
        model = build(hf.MambaConfig(hidden_size=32, num_hidden_layers=4, vocab_size=64))
        with pytest.raises(ModelError, match=r"list of 4 decoder .* 'backbone.layers' \(4\)"):
            find_architecture(model)

    def test_quantized(self) -> None:
        model = build(hf.LlamaConfig(**SMALL))
        model.config.quantization_config = {"quant_method": "gptq"}
        with pytest.raises(ModelError, match="LlamaForCausalLM is quantized"):
            find_architecture(model)

    def test_no_head(self) -> None:
        with pytest.raises(ModelError, match="LlamaModel names no language-model head"):
            find_architecture(hf.LlamaModel(hf.LlamaConfig(**SMALL)))

    def test_no_projection_of_the_right_width(self) -> None:
        model = build(hf.LlamaConfig(**SMALL))
        model.model.layers[2].mlp.down_proj = nn.Linear(48, 31)
        with pytest.raises(ModelError, match=r"'model.layers.2' .* 'mlp.down_proj' \(Linear, 31"):
            find_architecture(model)
        model.model.layers[2].self_attn = nn.Identity()
        with pytest.raises(ModelError, match="projection"):
            find_architecture(model)

    def test_no_blocks_and_two_lists_of_blocks(self) -> None:
        model = build(hf.LlamaConfig(**SMALL))
        model.model.more_layers = nn.ModuleList(model.model.layers[:4])
        with pytest.raises(ModelError, match="found 2"):
            find_architecture(model)
        model.config.num_hidden_layers = 7
        with pytest.raises(ModelError, match="found 0"):
            find_architecture(model)

    def test_configuration_without_sizes(self) -> None:
        model = build(hf.LlamaConfig(**SMALL))
        model.config = hf.PreTrainedConfig()
        with pytest.raises(ModelError, match="has no 'hidden_size', got None"):
            find_architecture(model)

    def test_adapter(self) -> None:
        class Adapter(nn.Linear):
            pass

        Adapter.__module__ = "peft.tuners.lora.layer"
        model = build(hf.LlamaConfig(**SMALL))
        model.model.layers[1].mlp.down_proj = Adapter(48, 32)
        with pytest.raises(ModelError, match="Merge it first"):
            find_architecture(model)
