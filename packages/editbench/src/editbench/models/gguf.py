"""Models in GGUF files: configuration, tokenizer and dequantized weights, as a plain model.

Transformers reads families, tokenizer and weights. What it passes over although the model computes
with it is put right here: head widths, scaled rotary angles, Gemma's attention scale and caps.
"""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from editbench.errors import ConfigError, ModelError
from editbench.models.gguf_file import GgufFile
from editbench.models.gguf_places import made_once, map_names
from editbench.models.gguf_tensors import read_tensor

# Fields of configurations that say where weights came from, and are none of the model's.
_TRACES = ("quantization_config", "_model_name_or_path")
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Of Gemma's, those with as many blocks scale attention by the width of all heads, not of one.
_SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}
_LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def read_gguf_config(file: GgufFile, *, name: str) -> PreTrainedConfig:
    """Make the configuration of the model in a file.

    Raises:
        ModelError: The file holds no model but an adapter, a vision tower or the like; or its
            rotary angles are scaled in a way that transformers does not know.
        Exception: Transformers does not know the architecture, or lacks a field.
    """
    if (kind := file.metadata.get("general.type", "model")) != "model":
        raise ModelError(
            f"model '{name}': the GGUF file holds no model by itself, got general.type {kind!r}; "
            "expected 'model'. Give the file of the model."
        )
    with _in_silence():
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            file.path.parent, gguf_file=file.path.name, local_files_only=True
        )
    _complete(config, file)
    _scale_angles(config, file, name)
    for trace in _TRACES:
        if hasattr(config, trace):
            delattr(config, trace)
    return config


def read_gguf_tokenizer(file: GgufFile) -> PreTrainedTokenizerBase:
    """Rebuild the tokenizer of the model in a file, with its chat template.

    Raises:
        Exception: It cannot be rebuilt.
    """
    with _in_silence():
        # The general class: of the families' own ones nothing is left but its name.
        return PreTrainedTokenizerFast.from_pretrained(
            file.path.parent, gguf_file=file.path.name, local_files_only=True
        )


def read_gguf_model(
    file: GgufFile,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    placement: str | dict[str, int | str],
    *,
    name: str,
) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    """Load the model in a file, dequantized; it is one like any other afterwards.

    Args:
        file: The file.
        config: What `read_gguf_config` gives for it.
        dtype: Of the weights.
        placement: On which device or devices.
        name: What the user called the model.

    Returns:
        The model, and what `from_pretrained` gives for ``output_loading_info``.

    Raises:
        ConfigError: Weights are to wait on disk.
        Exception: Whatever transformers raises.
    """
    if isinstance(placement, dict) and "disk" in placement.values():
        raise ConfigError(
            f"option 'device_map': weights can wait on disk only as safetensors, got '{name}'. Use "
            "'cpu' for 'disk', or save the model as a folder first."
        )
    with _in_silence(), made_once("get_tensor_name_map"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.path.parent,
            gguf_file=file.path.name,
            config=config,
            dtype=dtype,
            device_map=placement,
            ignore_mismatched_sizes=True,  # the caller reports them
            output_loading_info=True,
            local_files_only=True,
        )
    model, report = loaded
    del model.config.quantization_config
    model.hf_quantizer = None
    unused = _find_unused(file, model)
    return model, {**report, "unexpected_keys": {*report["unexpected_keys"], *unused}}


def stored_dtype(file: GgufFile) -> torch.dtype:
    """The precision that a file's numbers are in: float32 where any are quantized."""
    kinds = set(file.kinds)
    if not kinds <= set(_FLOATS):
        return torch.float32
    # Norms are float32 in every file.
    return next(_FLOATS[kind] for kind in ("BF16", "F16", "F32") if kind in kinds)


def _complete(config: PreTrainedConfig, file: GgufFile) -> None:
    """Fill in what the file states and transformers leaves at its default."""
    family, head_dim = file.architecture, file.get("attention.key_length")
    if head_dim is not None and getattr(config, "head_dim", head_dim) != head_dim:
        config.head_dim = head_dim
    if getattr(config, "pad_token_id", None) is not None:
        # Phi-3's own default lies behind smaller vocabularies.
        config.pad_token_id = file.metadata.get("tokenizer.ggml.padding_token_id")
    if family == "gpt2":
        config.n_positions = file.get("context_length")
    window = file.get("attention.sliding_window")
    if window and family == "phi3":
        config.sliding_window = window
    if "blk.0.attn_q.bias" in file.tensors and hasattr(config, "attention_bias"):
        config.attention_bias = True
    if family in ("gemma2", "gemma3"):
        is_wide = config.num_hidden_layers == _SCALED_BY_WIDTH[family]
        per_head = config.hidden_size // config.num_attention_heads
        config.query_pre_attn_scalar = per_head if is_wide else config.head_dim
        for field in ("attn_logit_softcapping", "final_logit_softcapping"):
            if stated := file.get(field):
                setattr(config, field, stated)


def _scale_angles(config: PreTrainedConfig, file: GgufFile, name: str) -> None:
    """Scale rotary angles as the file says, by a field or by a tensor of factors."""
    angles: Any = getattr(config, "rope_parameters", None)
    if not isinstance(angles, dict):
        return
    # Gemma 3 has two kinds of attention, of which it scales the full one's.
    angles = angles.get("full_attention", angles)
    turned, head_dim = file.get("rope.dimension_count"), getattr(config, "head_dim", None)
    if "partial_rotary_factor" in angles and turned and file.architecture == "phi3":
        width = head_dim or config.hidden_size // config.num_attention_heads
        angles["partial_rotary_factor"] = turned / width
    kind, factor = file.get("rope.scaling.type"), file.get("rope.scaling.factor")
    original = file.get("rope.scaling.original_context_length")
    if "rope_freqs.weight" in file.tensors:
        factors = read_tensor(file, "rope_freqs.weight")
        angles.update(_LLAMA3, factor=float(factors.max()))
        if not _are_scaled_by(config, angles, factors):
            raise ModelError(
                f"model '{name}': its rotary angles are scaled by factors that are not Llama 3's, "
                "which transformers has no form for. Give the model as a folder."
            )
    elif "rope_factors_long.weight" in file.tensors:
        angles.update(
            rope_type="longrope",
            long_factor=read_tensor(file, "rope_factors_long.weight").tolist(),
            short_factor=read_tensor(file, "rope_factors_short.weight").tolist(),
            original_max_position_embeddings=original,
        )
        if attention := file.get("rope.scaling.attn_factor"):
            angles["attention_factor"] = attention
    elif kind in ("linear", "yarn") and factor and factor != 1:
        angles.update(rope_type=kind, factor=factor)
        if original:
            angles["original_max_position_embeddings"] = original
    elif kind not in (None, "none", "linear", "yarn", "longrope"):
        raise ModelError(
            f"model '{name}': rotary angles are scaled in an unknown way, got {kind!r}. Give the "
            "model as a folder."
        )


def _are_scaled_by(config: PreTrainedConfig, angles: Mapping[str, Any], factors: Tensor) -> bool:
    """Whether `angles` divide frequencies by `factors`."""
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    n = len(scaled)
    plain = angles["rope_theta"] ** (-torch.arange(n, dtype=torch.float64) / n)
    return len(factors) == n and torch.allclose(
        plain / scaled.double(), factors.double(), rtol=1e-3
    )


def _find_unused(file: GgufFile, model: PreTrainedModel) -> set[str]:
    """The tensors of a file that no parameter was made of."""
    # Those that are read in a newer way are reported by who reads them.
    used = map_names(model, file.architecture)
    return set(file.tensors) - set(used) - set(_ROPE_TENSORS) if used else set()


@contextmanager
def _in_silence() -> Iterator[None]:
    """Hold back progress bars, which are none of transformers' own and go to stderr."""
    with redirect_stderr(io.StringIO()):
        yield
