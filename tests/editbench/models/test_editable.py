import pytest
import torch
import transformers as hf
from accelerate import dispatch_model

from editbench.errors import ModelError, RequestError
from editbench.models.editable import EditableModel
from editbench.models.tokens import Tokens


@pytest.fixture
def make(tokenizers, make_network, families):
    def build(family: str = "gpt2", seed: int = 0) -> EditableModel:
        return EditableModel(
            make_network(families[family][0], seed), tokenizers["bos"], name=family
        )

    return build


class TestState:
    def test_is_in_evaluation_mode_without_gradients(self, make_network, families, tokenizers):
        network = make_network(families["gpt2"][0]).train()
        use_cache = network.config.use_cache
        model = EditableModel(network, Tokens(tokenizers["bos"]), name="tiny")
        assert model.model is network
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert network.config.use_cache == use_cache

    def test_width_of_the_logits_and_keys(self, make):
        model = make()
        assert (model.n_logits, model.d_key(0), model.max_positions) == (320, 128, 64)
        assert model.device == torch.device("cpu")
        with pytest.raises(ModelError, match="got 4; expected 0 to 3"):
            model.d_key(4)

    def test_model_without_a_limit_of_length(self, make):
        model = make("bloom")
        assert model.max_positions is None
        assert "position_ids" not in model.batch([[5, 6]])

    def test_errors_name_the_model(self, make_network, tokenizers):
        encoder = hf.BertLMHeadModel(
            hf.BertConfig(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
            )
        )
        with pytest.raises(ModelError, match="model 'bertha': unsupported model"):
            EditableModel(encoder, tokenizers["bos"], name="bertha")

    def test_refuses_a_tokenizer_of_another_model(self, make_network, families, gpt2_tokenizer):
        with pytest.raises(ModelError, match="up to 50256; expected ids from 0 to 319"):
            EditableModel(make_network(families["gpt2"][0]), gpt2_tokenizer, name="tiny")


class TestBatch:
    def test_makes_no_token_type_ids(self, make):
        arguments = make().batch([[5, 6, 7], [8]])
        assert set(arguments) == {"input_ids", "attention_mask", "position_ids"}
        assert arguments["input_ids"].shape == (2, 3)

    def test_refuses_what_is_too_long(self, make):
        model = make()
        assert model.batch([[5] * 64])["input_ids"].shape == (1, 64)
        with pytest.raises(RequestError, match=r"got 65 tokens .*; expected at most 64"):
            model.batch([[5] * 65])


class TestFingerprint:
    def test_is_the_same_for_the_same_bits(self, make, tmp_path, tokenizers):
        model = make()
        model.model.save_pretrained(tmp_path)
        again = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
        assert EditableModel(again, tokenizers["bos"], name="x").fingerprint == model.fingerprint
        assert make().fingerprint == model.fingerprint

    def test_differs_for_other_weights_types_and_configurations(self, make):
        fingerprints = {make().fingerprint, make(seed=1).fingerprint}
        half = make()
        half.model.to(torch.bfloat16)
        fingerprints.add(half.fingerprint)
        other = make()
        other.model.config.n_head = 2
        fingerprints.add(other.fingerprint)
        assert len(fingerprints) == 4

    def test_sees_one_bit_and_is_cached(self, make):
        model = make()
        before = model.fingerprint
        with torch.no_grad():
            weight = model.model.get_parameter("transformer.h.2.mlp.c_proj.weight")
            kept = weight[3, 4].clone()
            weight[3, 4] = torch.nextafter(kept, torch.tensor(9.0))
        assert model.fingerprint == before
        assert model.compute_fingerprint() != before
        with torch.no_grad():
            weight[3, 4] = kept
        assert model.compute_fingerprint() == before

    def test_does_not_depend_on_what_does_not_compute(self, make):
        model, other = make(), make()
        other.model.config.use_cache = False
        other.model.config.pad_token_id = 3
        other.model.config.architectures = ["Anything"]
        assert model.fingerprint == other.fingerprint

    def test_hashes_tied_weights_once_and_untied_ones_both(self, make):
        tied, untied = make(), make()
        head = untied.model.lm_head
        head.weight = torch.nn.Parameter(head.weight.clone(), requires_grad=False)
        assert untied.model.lm_head.weight is not untied.model.transformer.wte.weight
        assert tied.fingerprint != untied.fingerprint

    def test_survives_offloading(self, make, tmp_path):
        for family in ("gpt2", "llama"):
            plain, moved = make(family), make(family)
            inner = "transformer" if family == "gpt2" else "model"
            dispatch_model(
                moved.model,
                {inner: "disk", "lm_head": "disk"},
                main_device="cpu",
                offload_dir=tmp_path / family,
                force_hooks=True,
            )
            block = moved.model.get_submodule(moved.architecture.mlp_projections[0])
            assert block.weight.is_meta
            assert moved.compute_fingerprint() == plain.fingerprint
            assert moved.device == torch.device("cpu")
            assert moved.d_key(0) == plain.d_key(0)
