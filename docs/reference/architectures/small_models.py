"""A small random model of every kind of causal language model that transformers can make.

A configuration's own defaults, with whatever says how large something is made small: no kind needs
a line of its own unless its sizes depend on each other.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers as hf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

N_LAYERS, D_MODEL, N_TOKENS = 4, 32, 420

_SIZES: tuple[tuple[int, tuple[str, ...]], ...] = (
    (N_TOKENS, ("vocab_size", "vocab_size_per_layer_input")),
    (D_MODEL, (
        "hidden_size", "d_model", "n_embd", "emb_dim", "embedding_size", "attention_hidden_size",
        "word_embed_proj_dim", "lru_width", "input_embedding_size", "output_embedding_size",
        "embedding_dim",
    )),
    (N_LAYERS, (
        "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers",
        "decoder_layers", "num_encoder_layers", "num_decoder_layers", "num_blocks",
    )),
    (4, (
        "num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
        "decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads",
        "attention_heads", "swa_num_attention_heads", "num_experts", "num_local_experts",
        "n_routed_experts", "moe_num_experts", "mamba_n_heads", "n_mamba_heads", "mamba_num_heads",
        "linear_num_value_heads", "linear_num_heads", "index_n_heads", "rotary_dim", "chunk_size",
        "mamba_chunk_size", "mamba_d_state", "ssm_state_size", "state_size",
        "qk_rope_head_dim", "indexer_heads", "time_step_rank", "mamba_dt_rank",
    )),
    (2, (
        "num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "linear_num_key_heads",
        "num_query_groups", "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k",
        "expand", "mamba_expand",
    )),
    (1, (
        "n_group", "topk_group", "n_groups", "mamba_n_groups", "mamba_ngroups", "num_expert_group",
        "n_shared_experts", "num_shared_experts", "moe_num_shared_experts",
    )),
    (8, (
        "head_dim", "d_head", "dim_head", "v_head_dim", "qk_nope_head_dim", "q_lora_rank",
        "kv_lora_rank", "linear_key_head_dim", "linear_value_head_dim", "linear_head_dim",
        "index_head_dim", "swa_head_dim", "laurel_rank", "hidden_size_per_layer_input",
        "kv_channels", "attention_head_size", "index_topk", "global_head_dim",
    )),
    (16, ("mamba_d_head", "mamba_head_dim", "mamba_headdim")),
    (48, (
        "intermediate_size", "ffn_dim", "n_inner", "dff", "dim_ff", "encoder_ffn_dim",
        "decoder_ffn_dim", "moe_intermediate_size", "shared_expert_intermediate_size",
        "shared_intermediate_size", "ffn_hidden_size", "expert_ffn_hidden_size", "d_inner",
        "feed_forward_size", "intermediate_size_mlp", "dense_intermediate_size",
        "moe_shared_expert_intermediate_size", "shared_experts_intermediate_size",
    )),
    (128, ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length")),
)  # fmt: skip
_SMALL = {field: size for size, fields in _SIZES for field in fields}

# Heads of all kinds have one width where queries and keys are decoded from a shared latent state.
_LATENT = {"num_key_value_heads": 4, "head_dim": 4, "swa_num_key_value_heads": 4}

# Sizes that depend on others, and kinds of layers that four layers would not show.
_OWN: dict[str, Mapping[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4}},
    "bailing_hybrid": {"layer_group_size": 2},
    "falcon_h1": {"mamba_d_ssm": 64},
    "qwen4_exp_text": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8,
                       "indexer_budget": 8, "indexer_compress_ratio": 2},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "rwkv": {"rescale_every": 2},
    "xmod": {"default_language": "en_XX"},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 6},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {"zero_expert_num": 2, "num_layers": 2},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "attention_window_size": 64},
    "xlstm": {"num_heads": 2, "qk_dim_factor": 1.0},
    "zamba": {"attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4,
              "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"kv_channels": 8, "mamba_headdim": 16, "attention_hidden_size": 64,
               "attention_head_dim": 16, "num_key_value_heads": 4,
               "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip

# Kinds of which one field makes another architecture: name of the row, kind, fields.
VARIANTS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("bert, decoder", "bert", {"is_decoder": True}),
    ("bert-generation, decoder", "bert-generation", {"is_decoder": True}),
    ("granite, scaled logits", "granite", {"logits_scaling": 8.0}),
    ("granitemoehybrid, dense", "granitemoehybrid", {"num_local_experts": 0}),
    ("jamba, dense", "jamba", {"num_experts": 1}),
    ("mistral, sliding window", "mistral", {"sliding_window": 6}),
    ("megatron-bert, decoder", "megatron-bert", {"is_decoder": True}),
    (
        "opt, norm after the block",
        "opt",
        {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
    ),
)


def kinds() -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Name, model type and own fields of every row, in alphabetical order."""
    rows = [(name, name, {}) for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    yield from sorted([*rows, *VARIANTS], key=lambda row: row[0])


def small_config(kind: str, own: Mapping[str, Any]) -> hf.PreTrainedConfig:
    """The configuration of a small model; of a composite one all parts are small.

    Args:
        kind: The model type.
        own: Fields of this row alone.
    """
    cls = CONFIG_MAPPING[kind]
    fields = {**_OWN.get(kind, {}), **own}
    return _shrink(cls(), fields)


def _shrink(config: hf.PreTrainedConfig, fields: Mapping[str, Any]) -> hf.PreTrainedConfig:
    small: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, hf.PreTrainedConfig):
            small[name] = _shrink(value, _OWN.get(value.model_type, {}))
        elif name == "num_hidden_layers" and "vocab_size" not in vars(config):
            small[name] = 2  # of what sees or hears, so that text decoders are told apart
        elif name in _SMALL and (value is None or isinstance(value, int | list)):
            small[name] = _SMALL[name]
    if vars(config).get("kv_lora_rank") is not None:
        small |= {name: size for name, size in _LATENT.items() if name in small}
    if "vocab_size" in small:
        small |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return type(config)(**{**small, **fields})


def small_model(config: hf.PreTrainedConfig) -> hf.PreTrainedModel:
    """A model of random weights that are large enough for its predictions to differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(std=0.3)
    return model.eval()
