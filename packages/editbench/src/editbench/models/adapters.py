"""Adapters on their base: PEFT folders and llama.cpp's LoRA files, as served models have them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from editbench.errors import ModelError
from editbench.files.seals import checksum_file
from editbench.models.architecture import weight_is_transposed
from editbench.models.editable import EditableModel
from editbench.models.folder import ADAPTER_CONFIG
from editbench.models.gguf_file import GgufFile, is_gguf
from editbench.models.gguf_places import family_of, find_places, map_names, split_order
from editbench.models.gguf_tensors import read_tensor
from editbench.models.hub import one_line
from editbench.models.quiet import quiet_transformers
from memit_core import UpdateFactors
from memit_core.weights import add_update

ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
BASE_FINGERPRINT: Final = "editbench.base_fingerprint"
"""In an adapter's metadata: the fingerprint of the model that it was made for."""


def find_adapter(name: str) -> tuple[str, Path] | None:
    """Take a model's name apart into those of a base and an adapter, if it names both.

    ``BASE+ADAPTER`` does, and a PEFT folder by itself, which says what its base is.

    Raises:
        ModelError: The adapter is not there, or does not say what its base is.
    """
    path = Path(name).expanduser()
    if (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").exists():
        try:
            base = json.loads((path / ADAPTER_CONFIG).read_text(encoding="utf-8"))[
                "base_model_name_or_path"
            ]
        except (OSError, ValueError, LookupError, TypeError):
            base = None
        if not isinstance(base, str) or not base:
            raise ModelError(
                f"model '{name}': '{path / ADAPTER_CONFIG}' does not say what the adapter's base "
                "is. Give both: BASE+ADAPTER."
            )
        return base, path
    base, plus, adapter = name.rpartition("+")
    if not plus or not base or path.exists():
        return None
    path = Path(adapter).expanduser()
    if not (path / ADAPTER_CONFIG).is_file() and not is_gguf(path):
        raise ModelError(
            f"model '{name}': no adapter after '+', got '{adapter}'; expected a folder with "
            f"{ADAPTER_CONFIG}, or llama.cpp's LoRA file."
        )
    return base, path


def put_adapter_on(model: EditableModel, adapter: Path, name: str) -> EditableModel:
    """Merge an adapter into its base, which becomes a model like any other.

    Args:
        model: The base, just loaded; it must not be used afterwards.
        adapter: A PEFT folder, or llama.cpp's LoRA file.
        name: What the user called the two.

    Raises:
        ModelError: The adapter cannot be read, or is for another base.
    """
    if adapter.is_file():
        file = GgufFile.read(adapter, name=name)
        updates = read_gguf_adapter(file, model.model, name)
        for parameter, update in updates.items():
            weight = model.model.get_parameter(parameter)
            module = model.model.get_submodule(parameter.rpartition(".")[0])
            is_turned = weight_is_transposed(module)
            turned = UpdateFactors(update.right, update.left) if is_turned else update
            weight.data.copy_(add_update(weight.data, turned))
        network = model.model
    else:
        _refuse_other_base(model, adapter, name)
        network = load_peft(model.model, adapter, name).merge_and_unload(safe_merge=True)
    served = EditableModel(network, model.tokens, name=name, spec=model.spec)
    served.source, served.gguf = model.source, model.gguf
    served.adapters = (*model.adapters, adapter)
    return served


def describe_adapters(model: EditableModel) -> list[dict[str, str]]:
    """Which adapters are on a model, as plain JSON values: for provenance."""
    files = {path: path if path.is_file() else path / ADAPTER_WEIGHTS for path in model.adapters}
    return [
        {"file": path.name, **({"sha256": checksum_file(file)} if file.is_file() else {})}
        for path, file in files.items()
    ]


def load_peft(network: PreTrainedModel, folder: Path, name: str) -> Any:
    """Let peft put an adapter on a network, beside its weights: a ``PeftModel``.

    Raises:
        ModelError: peft is not installed; or the adapter is damaged, or for another base.
    """
    require_peft(f"model '{name}'")
    from peft import PeftModel

    with quiet_transformers():
        try:
            return PeftModel.from_pretrained(network, str(folder), is_trainable=False)
        except Exception as error:  # its kinds vary with what does not fit
            raise ModelError(
                f"model '{name}': peft cannot put the adapter '{folder}' on this base, got "
                f"{one_line(error)}. Give the base that the adapter was made for."
            ) from error


def require_peft(operation: str) -> None:
    """Refuse to go on without peft.

    Raises:
        ModelError: It is not installed.
    """
    from transformers.utils.import_utils import is_peft_available

    if not is_peft_available():
        raise ModelError(
            f"{operation}: adapters are read with the package peft, which is not installed. "
            "Install it: pip install 'editbench[adapter]'"
        )


def read_gguf_adapter(
    file: GgufFile, model: PreTrainedModel, name: str
) -> dict[str, UpdateFactors]:
    """Read llama.cpp's LoRA file.

    Args:
        file: The file.
        model: The base, for the order of weights.
        name: What the user called the two.

    Returns:
        By parameter of the base: its update, left `[d_out, r]` and right `[d_in, r]`.

    Raises:
        ModelError: The file is no LoRA adapter, or one of another model.
    """
    kind = file.metadata.get("general.type"), file.metadata.get("adapter.type")
    if kind != ("adapter", "lora"):
        raise ModelError(
            f"model '{name}': '{file.path}' is no LoRA adapter, got general.type {kind[0]!r} and "
            f"adapter.type {kind[1]!r}; expected 'adapter' and 'lora'."
        )
    if file.architecture != (family := family_of(model)):
        raise _another_base(file.path, name, f"of the family '{file.architecture}'", f"'{family}'")
    parameters = map_names(model, family)
    alpha = file.metadata.get("adapter.lora.alpha", 0.0)
    factors = {}
    for tensor in sorted({each.rpartition(".")[0] for each in file.tensors}):
        if tensor not in parameters:
            raise _another_base(file.path, name, f"'{tensor}'", "its tensors")
        parameter = parameters[tensor]
        place = find_places(model, [parameter])[parameter]
        inner = read_tensor(file, f"{tensor}.lora_a").T
        outer = read_tensor(file, f"{tensor}.lora_b")
        if (len(outer), len(inner)) != place.shape:
            found = f"{[len(outer), len(inner)]} for '{tensor}'"
            raise _another_base(file.path, name, found, list(place.shape))
        rows, columns = split_order(place, model, parameter)
        left, right = torch.empty_like(outer), torch.empty_like(inner)
        left[rows] = outer * (alpha / outer.shape[1] if alpha else 1.0)
        right[columns] = inner
        factors[parameter] = UpdateFactors(left, right)
    return factors


def _refuse_other_base(model: EditableModel, folder: Path, name: str) -> None:
    """Refuse an adapter that says that it was made for other weights of the same shapes."""
    try:
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
            said: Mapping[str, str] = file.metadata() or {}
    except (OSError, SafetensorError):
        return  # peft says what is wrong, or reads another form
    expected = said.get(BASE_FINGERPRINT)
    # In another precision, or quantized, the same model has another one.
    dtype = str(model.model.dtype).removeprefix("torch.")
    is_comparable = model.gguf is None and said.get(f"{BASE_FINGERPRINT}.dtype") == dtype
    if expected is not None and is_comparable and expected != model.fingerprint:
        raise _another_base(folder, name, f"a base with fingerprint {model.fingerprint}", expected)


def _another_base(adapter: Path, name: str, got: object, expected: object) -> ModelError:
    return ModelError(
        f"model '{name}': the adapter '{adapter}' is for another base, got {got}; expected "
        f"{expected}. Give the base that it was made for."
    )
