"""What is wrong with a model folder, found out before anything is loaded from it."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from editbench.errors import ModelError

_SAFE = "model.safetensors"
_PICKLED = "pytorch_model.bin"
_TOKENIZER_FILES = (
    "tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model", "vocab.txt",
    "sentencepiece.bpe.model", "tekken.json", "*.tiktoken",
)  # fmt: skip


def check_folder(folder: Path, *, name: str, allow_pickle: bool) -> None:
    """Refuse a folder that does not hold a complete model.

    The headers of safetensors files are read, so that a truncated download is found here.

    Args:
        folder: The folder.
        name: What the user called the model.
        allow_pickle: Whether weights in pickle format will do.

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
    _check_weights(folder, name, allow_pickle=allow_pickle)
    if not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
        raise ModelError(
            f"model '{name}': no tokenizer in '{folder}'; expected one of "
            f"{', '.join(_TOKENIZER_FILES)}. Save the tokenizer beside the model."
        )


def read_config(folder: Path, *, name: str) -> dict[str, Any]:
    """Read a folder's ``config.json``.

    Raises:
        ModelError: It is missing or is no JSON object.
    """
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
    return config


def _check_weights(folder: Path, name: str, *, allow_pickle: bool) -> None:
    if (folder / f"{_SAFE}.index.json").exists():
        for shard in _read_shard_names(folder / f"{_SAFE}.index.json", name):
            _check_safetensors(folder / shard, name)
    elif (folder / _SAFE).exists():
        _check_safetensors(folder / _SAFE, name)
    elif not any((folder / file).exists() for file in (_PICKLED, f"{_PICKLED}.index.json")):
        raise ModelError(
            f"model '{name}': no weights in '{folder}'; expected {_SAFE} or {_SAFE}.index.json."
        )
    elif not allow_pickle:
        raise ModelError(
            f"model '{name}': '{folder}' holds only pickled weights, which can run code when they "
            "are read. Allow them with --allow-pickle if you trust their source."
        )


def _read_shard_names(index: Path, name: str) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"model '{name}': '{index}' is damaged, got {type(error).__name__}: {error}; expected "
            "a JSON object with 'weight_map'. Fetch the file again."
        ) from error


def _check_safetensors(path: Path, name: str) -> None:
    try:
        with safe_open(path, framework="pt"):
            pass
    except FileNotFoundError as error:
        raise ModelError(
            f"model '{name}': the weights file '{path}' is missing. Fetch it again."
        ) from error
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"model '{name}': the weights file '{path}' is truncated or damaged, got {error}. "
            "Fetch it again."
        ) from error
