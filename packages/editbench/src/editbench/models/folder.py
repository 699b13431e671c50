"""What is wrong with a model folder, found out before anything is loaded from it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open

from editbench.errors import ModelError

ADAPTER_CONFIG: Final = "adapter_config.json"
"""What a PEFT folder has in place of a model's configuration."""

_SAFE = "model.safetensors"
_PICKLED = "pytorch_model.bin"
_TOKENIZER_FILES = (
    "tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model", "vocab.txt",
    "sentencepiece.bpe.model", "tekken.json", "*.tiktoken",
)  # fmt: skip
# What says that weights are quantized: in config.json, and beside it.
_QUANTIZATION_FIELDS = ("quantization_config", "compression_config", "quantization")
_QUANTIZATION_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
_PLAIN_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
_UNQUANTIZED = (
    "Give the checkpoint in bfloat16, float16 or float32 that it was made from, or dequantize it."
)


def check_folder(folder: Path, *, name: str, allow_pickle: bool) -> None:
    """Refuse a folder that does not hold a complete model.

    The headers of safetensors files are read, so that a truncated download is found here.

    Raises:
        ModelError: Configuration, weights or tokenizer are missing or damaged, or the weights are
            pickled.
    """
    config = read_config(folder, name=name)
    if "model_type" not in config and "auto_map" not in config:
        raise ModelError(
            f"model '{name}': '{folder / 'config.json'}' has no field 'model_type', got "
            f"{sorted(config)[:8]}. Give the folder of a transformers model."
        )
    for path in find_weight_files(folder, name=name, allow_pickle=allow_pickle):
        if path.suffix == ".safetensors":
            _check_safetensors(path, name)
    if not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
        raise ModelError(
            f"model '{name}': no tokenizer in '{folder}'; expected one of "
            f"{', '.join(_TOKENIZER_FILES)}. Save the tokenizer beside the model."
        )


def read_config(folder: Path, *, name: str) -> dict[str, Any]:
    """Read the ``config.json`` of a folder that holds plain weights.

    Raises:
        ModelError: It is missing or is no JSON object; or the folder holds an adapter, or quantized
            weights.
    """
    _refuse_adapter(folder, name)
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        held = sorted(entry.name for entry in folder.iterdir())
        raise ModelError(
            f"model '{name}': no config.json in '{folder}', got "
            f"{', '.join(held[:8]) or 'an empty folder'}. Give the folder of a transformers model."
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"model '{name}': '{path}' cannot be read, got {error}.") from error
    if not isinstance(config, dict):
        raise ModelError(
            f"model '{name}': '{path}' must hold a JSON object, got {type(config).__name__}."
        )
    _refuse_quantized(folder, config, name)
    return config


def find_weight_files(folder: Path, *, name: str, allow_pickle: bool) -> list[Path]:
    """The files that transformers takes the weights from.

    Raises:
        ModelError: There are none, the index of shards is damaged, or they are pickled.
    """
    for single in (_SAFE, _PICKLED):
        index = folder / f"{single}.index.json"
        is_sharded = not (folder / single).exists()
        if is_sharded and not index.exists():
            continue
        if single == _PICKLED and not allow_pickle:
            raise ModelError(
                f"model '{name}': '{folder}' holds only pickled weights, which can run code when "
                "they are read. Allow them with --allow-pickle if you trust their source."
            )
        return [
            folder / file for file in (_read_shard_names(index, name) if is_sharded else [single])
        ]
    raise ModelError(
        f"model '{name}': no weights in '{folder}'; expected {_SAFE} or {_SAFE}.index.json."
    )


def _refuse_adapter(folder: Path, name: str) -> None:
    """Refuse an adapter beside its base, or one that does not lie on this machine."""
    if not (folder / ADAPTER_CONFIG).exists():
        return
    raise ModelError(
        f"model '{name}': '{folder}' holds an adapter, got {ADAPTER_CONFIG} where a base is "
        "expected. Name both: BASE+ADAPTER, the adapter in a folder of its own."
    )


def _refuse_quantized(folder: Path, config: Mapping[str, Any], name: str) -> None:
    """Refuse weights that stand for others: nothing can be added to them."""
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for part in parts:
        for field in _QUANTIZATION_FIELDS:
            if stated := part.get(field):
                method = stated.get("quant_method") if isinstance(stated, dict) else None
                raise ModelError(
                    f"model '{name}': its weights are quantized, got '{field}' in config.json"
                    f"{f' with quant_method {method!r}' if method else ''}. {_UNQUANTIZED}"
                )
    for file in _QUANTIZATION_FILES:
        if (folder / file).exists():
            raise ModelError(
                f"model '{name}': its weights are quantized, got {file} beside config.json. "
                f"{_UNQUANTIZED}"
            )


def _read_shard_names(index: Path, name: str) -> list[str]:
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if outside := [shard for shard in shards if Path(shard).is_absolute() or ".." in shard]:
            raise ValueError(f"shards outside of the folder: {outside[0]}")
        return sorted(shards)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"model '{name}': '{index}' is damaged, got {type(error).__name__}: {error}; expected "
            "a JSON object with 'weight_map'. Fetch the file again."
        ) from error


def _check_safetensors(path: Path, name: str) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            dtypes = {tensor: file.get_slice(tensor).get_dtype() for tensor in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise ModelError(
            f"model '{name}': the weights file '{path}' is missing. Fetch it again."
        ) from error
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"model '{name}': the weights file '{path}' is truncated or damaged, got {error}. "
            "Fetch it again."
        ) from error
    for tensor, dtype in dtypes.items():
        if dtype.startswith("F") and dtype not in _PLAIN_DTYPES:
            raise ModelError(
                f"model '{name}': its weights are quantized, got '{tensor}' in {dtype} in "
                f"'{path}'. {_UNQUANTIZED}"
            )
