"""GGUF files of tiny random models, written as llama.cpp's converter writes them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers as hf
from transformers import PreTrainedTokenizerFast

_SHARED = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def make_config(family: str, **changes: Any) -> hf.PreTrainedConfig:
    """The configuration of a tiny model; vocabulary as the tokenizer needs it."""
    grouped = {**_SHARED, **changes}
    if family == "gpt2":
        return hf.GPT2Config(
            n_embd=64, n_layer=2, n_head=4, n_positions=128, vocab_size=grouped["vocab_size"],
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
    if family == "gemma3":
        return hf.Gemma3TextConfig(
            **grouped, head_dim=16, query_pre_attn_scalar=16, sliding_window=8
        )
    kinds = {
        "llama": hf.LlamaConfig,
        "qwen2": hf.Qwen2Config,
        "qwen3": hf.Qwen3Config,
        "phi3": hf.Phi3Config,
    }
    own = {"head_dim": 32} if family == "qwen3" else {}
    return kinds[family](**grouped, **own)


def write_gguf(
    path: Path,
    config: hf.PreTrainedConfig,
    tokenizer: PreTrainedTokenizerFast,
    kind: str = "F16",
    *,
    family: str | None = None,
    extra: Callable[[gguf.GGUFWriter], None] | None = None,
    seed: int = 0,
) -> hf.PreTrainedModel:
    """Write a random model, and return the one that the file holds when it is dequantized.

    Args:
        path: Where to.
        config: The model's configuration.
        tokenizer: A byte-level BPE tokenizer.
        kind: How matrices are stored.
        family: What llama.cpp calls the family; by default what transformers calls it.
        extra: Adds fields and tensors.
        seed: Of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = hf.AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():  # norms and biases are no ones and zeros
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    arch = family or config.model_type.removesuffix("_text")
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, arch)
    _write_fields(writer, config, arch)
    _write_tokenizer(writer, tokenizer)
    random = np.random.default_rng(seed)
    state = model.state_dict()
    for name, tensor in state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, suffix = name.rpartition(".")
        there, back = _transform(arch, name, config)
        ours = there(tensor.numpy())
        stored = gguf.GGMLQuantizationType[kind if ours.ndim > 1 else "F32"]
        data = _quantize(ours, stored, random)
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", data, raw_dtype=stored)
        read = gguf.dequantize(data, stored).astype(np.float32).reshape(ours.shape)
        tensor.copy_(torch.from_numpy(np.ascontiguousarray(back(read))))
    if extra is not None:
        extra(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _write_fields(writer: gguf.GGUFWriter, config: hf.PreTrainedConfig, arch: str) -> None:
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if arch == "gpt2":
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    angles = config.rope_parameters
    writer.add_rope_freq_base(angles.get("full_attention", angles)["rope_theta"])
    writer.add_rope_dimension_count(head_dim)
    if arch in ("qwen3", "gemma3"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if arch == "gemma3":
        writer.add_sliding_window(config.sliding_window)


def _write_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if index in special else 1 for _, index in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)


Map = Callable[[np.ndarray], np.ndarray]


def _transform(arch: str, name: str, config: hf.PreTrainedConfig) -> tuple[Map, Map]:
    """What llama.cpp's converter does to a tensor, and what undoes it."""
    if arch == "llama" and ".q_proj." in name:
        return _rotary_pairs(config.num_attention_heads)
    if arch == "llama" and ".k_proj." in name:
        return _rotary_pairs(config.num_key_value_heads)
    if arch == "gemma3" and name.endswith("norm.weight"):
        return (lambda weight: weight + 1), (lambda weight: weight - 1)
    if (
        arch == "gpt2"
        and ".h." in name
        and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
    ):
        return (lambda weight: weight.T), (lambda weight: weight.T)
    return (lambda weight: weight), (lambda weight: weight)


def _rotary_pairs(n_heads: int) -> tuple[Map, Map]:
    """Halves of a head beside each other, and back."""

    def there(weight: np.ndarray) -> np.ndarray:
        halves = weight.reshape(n_heads, 2, weight.shape[0] // n_heads // 2, *weight.shape[1:])
        return halves.swapaxes(1, 2).reshape(weight.shape)

    def back(weight: np.ndarray) -> np.ndarray:
        pairs = weight.reshape(n_heads, weight.shape[0] // n_heads // 2, 2, *weight.shape[1:])
        return pairs.swapaxes(1, 2).reshape(weight.shape)

    return there, back


def _quantize(
    weight: np.ndarray, kind: gguf.GGMLQuantizationType, random: np.random.Generator
) -> np.ndarray:
    """A tensor as it is stored; where gguf cannot write the kind, random blocks of small scale."""
    weight = np.ascontiguousarray(weight, dtype=np.float32)
    scales = {"Q4_K": (0, 2), "Q6_K": (208,)}
    if kind.name not in scales:
        return gguf.quantize(weight, kind)
    per_block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    shape = (*weight.shape[:-1], weight.shape[-1] // per_block, n_bytes)
    blocks = random.integers(0, 256, shape, dtype=np.uint8)
    for place in scales[kind.name]:
        small = random.uniform(1e-4, 3e-4, shape[:-1]).astype(np.float16)
        blocks[..., place : place + 2] = small[..., None].view(np.uint8)
    return blocks.reshape(*weight.shape[:-1], -1)
