"""From a name to a model that can be edited."""

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import __version__ as transformers_version

from editbench.errors import ConfigError, EditbenchError, ModelError
from editbench.models.adapters import find_adapter, put_adapter_on
from editbench.models.device_memory import is_present
from editbench.models.editable import EditableModel
from editbench.models.folder import check_folder, read_config
from editbench.models.gguf import (
    read_gguf_config,
    read_gguf_model,
    read_gguf_tokenizer,
    stored_dtype,
)
from editbench.models.gguf_file import GgufFile, is_gguf
from editbench.models.gguf_places import made_once
from editbench.models.hub import fetch_repository, one_line, suggest
from editbench.models.loading_report import check_report, warn_of_unused
from editbench.models.quiet import quiet_transformers
from editbench.models.spec import ModelSpec

DTypeName = Literal["float32", "bfloat16", "float16", "auto"]
_DTYPES: Mapping[str, torch.dtype | str] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "auto": "auto",
}


def load_model(
    name_or_path: str,
    *,
    specs: Mapping[str, ModelSpec],
    dtype: DTypeName = "float32",
    device: str | None = None,
    device_map: str | Mapping[str, int | str] | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    revision: str | None = None,
) -> EditableModel:
    """Load a causal language model by short name, folder, GGUF file or hub id, tried in this order.

    Args:
        name_or_path: The name. Write ``./name`` for a folder that is called like a short name.
            ``BASE+ADAPTER`` is a base with an adapter merged into it, a PEFT folder or llama.cpp's
            LoRA file; a PEFT folder alone says what its base is.
        specs: The short names.
        dtype: Of the weights; ``auto`` takes the one they are stored in, and float32 for those of a
            GGUF file that are quantized.
        device: Where to put the model; by default a CUDA device if there is one, else the CPU.
        device_map: How to spread the model over devices, as accelerate takes it: a word such as
            ``auto``, or places by module, also as JSON; ``cpu`` and ``disk`` are where weights wait
            until they are used. Excludes `device`.
        trust_remote_code: Whether code that comes with the model may be run.
        allow_pickle: Whether pickled weights may be read where there are no safetensors.
        revision: Branch, tag or commit of a hub repository.

    Raises:
        ModelError: There is no such model, or it is incomplete, damaged, untrusted or unsupported.
        ConfigError: An option is invalid.
    """
    placement = _check_placement(dtype, device, device_map)
    if (parts := find_adapter(name_or_path)) is not None:
        base = load_model(
            parts[0],
            specs=specs,
            dtype=dtype,
            device=device,
            device_map=device_map,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            revision=revision,
        )
        return put_adapter_on(base, parts[1], name_or_path)
    spec = specs.get(name_or_path)
    place, file, report = None, None, None
    try:
        if spec is not None and spec.load is not None:
            model, tokenizer = _call_spec(spec, dtype, placement)
        else:
            place = _find_weights(
                name_or_path,
                spec,
                revision=revision,
                trust_remote_code=trust_remote_code,
                allow_pickle=allow_pickle,
                specs=specs,
            )
            file = GgufFile.read(place, name=name_or_path) if place.is_file() else None
            if file is None:
                check_folder(place, name=name_or_path, allow_pickle=allow_pickle)
            with quiet_transformers(), _read_once(file):
                config, tokenizer = _read_outline(place, file, name_or_path, trust_remote_code)
                with _one_clear_error(name_or_path, "the weights cannot be loaded"):
                    model, report = _read_weights(
                        file or place,
                        name_or_path,
                        config,
                        dtype,
                        placement,
                        trust_remote_code=trust_remote_code,
                        allow_pickle=allow_pickle,
                    )
                check_report(name_or_path, report)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"model '{name_or_path}': it does not fit into the device's memory. Load it with "
            "--dtype bfloat16, spread it with --device-map auto, or use --device cpu."
        ) from error
    if report is not None:
        warn_of_unused(name_or_path, report)
    editable = EditableModel(model, tokenizer, name=name_or_path, spec=spec)
    editable.source = None if file is not None else place
    editable.gguf = file
    return editable


def load_outline(
    name_or_path: str,
    *,
    specs: Mapping[str, ModelSpec],
    dtype: DTypeName = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> EditableModel:
    """Make a model without weights, to plan work on it: configuration and tokenizer are enough.

    A short name of a model that is made in memory gives that model, weights and all. The device
    that work is planned for goes into `EditableModel.planned_device`, unless such a model is there.
    Other arguments are those of `load_model`; `device` need not exist here, and of a hub repository
    no weights are downloaded.

    Raises:
        ModelError: As for `load_model`.
        ConfigError: An option is invalid.
    """
    default = "cuda" if torch.cuda.is_available() else "cpu"
    with _one_clear_error(name_or_path, "the device is unknown"):
        planned_device = torch.device(device or default)
    if (parts := find_adapter(name_or_path)) is not None:
        name_or_path = parts[0]  # merged into its base, an adapter takes nothing
    spec = specs.get(name_or_path)
    if spec is not None and spec.load is not None:
        if is_present(planned_device):
            return load_model(name_or_path, specs=specs, dtype=dtype, device=str(planned_device))
        outline = load_model(name_or_path, specs=specs, dtype=dtype, device="cpu")
        outline.planned_device = planned_device
        return outline
    place = _find_weights(
        name_or_path,
        spec,
        revision=revision,
        trust_remote_code=trust_remote_code,
        allow_pickle=False,
        specs=specs,
        with_weights=False,
    )
    file = GgufFile.read(place, name=name_or_path) if place.is_file() else None
    with quiet_transformers(), _read_once(file):
        config, tokenizer = _read_outline(place, file, name_or_path, trust_remote_code)
        stored = stored_dtype(file) if file is not None else config.dtype or torch.float32
        with (
            _one_clear_error(name_or_path, "the configuration cannot be used"),
            torch.device("meta"),
        ):
            network: Any = AutoModelForCausalLM.from_config(
                config,
                dtype=stored if dtype == "auto" else _DTYPES[dtype],
                trust_remote_code=trust_remote_code,
            )
    outline = EditableModel(network, tokenizer, name=name_or_path, spec=spec)
    outline.gguf = file
    outline.planned_device = planned_device
    return outline


def _check_placement(
    dtype: str, device: str | None, device_map: str | Mapping[str, int | str] | None
) -> str | dict[str, int | str]:
    """Turn the options into a device map; a single device is one as well."""
    if dtype not in _DTYPES:
        raise ConfigError(f"option 'dtype': got {dtype!r}; expected one of {', '.join(_DTYPES)}.")
    if device_map is not None:
        if device is not None:
            raise ConfigError(
                f"options 'device' and 'device_map' exclude each other, got {device!r} and "
                f"{device_map!r}. Give one of them."
            )
        return _parse_device_map(device_map) if isinstance(device_map, str) else dict(device_map)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"option 'device': not usable on this machine, got {device!r} ({one_line(error)}). "
            "Use another device, such as 'cpu'."
        ) from error
    return {"": device}


def _parse_device_map(text: str) -> str | dict[str, int | str]:
    """Read the places of modules where they are given as JSON; a single word stays one."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"option 'device_map': malformed JSON, got {text!r}: {error}.") from error
    if not all(isinstance(place, int | str) for place in found.values()):
        raise ConfigError(
            f"option 'device_map': a place is neither a number nor a name, got {text!r}; expected "
            'devices by module, such as {"model": 0, "lm_head": "cpu"}.'
        )
    return dict(found)


def _find_weights(
    name: str,
    spec: ModelSpec | None,
    *,
    revision: str | None,
    trust_remote_code: bool,
    allow_pickle: bool,
    specs: Mapping[str, ModelSpec],
    with_weights: bool = True,
) -> Path:
    """Find the folder or the GGUF file that a name stands for."""
    if spec is not None and spec.find_file is not None:
        path = spec.find_file()
    else:
        name = spec.repository if spec is not None and spec.repository else name
        path = Path(name).expanduser()
    if path.is_dir() or is_gguf(path):
        if revision is not None:
            raise ConfigError(
                f"option 'revision': model '{name}' is a folder or a file and has no revisions, "
                f"got {revision!r}. Leave it out."
            )
        return path
    if path.exists():
        raise ModelError(
            f"model '{name}': this is a file, and no GGUF file; expected one, or the folder that "
            "holds config.json."
        )
    if path.suffix == ".gguf":
        raise ModelError(f"model '{name}': no such file. Check the path.")
    if path.is_absolute() or name.startswith((".", "~")):
        raise ModelError(f"model '{name}': no such folder.{suggest(name, specs)}")
    return fetch_repository(
        name,
        revision=revision,
        with_code=trust_remote_code,
        allow_pickle=allow_pickle,
        short_names=specs,
        with_weights=with_weights,
    )


def _call_spec(
    spec: ModelSpec, dtype: str, placement: str | dict[str, int | str]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    assert spec.load is not None
    if not isinstance(placement, dict) or set(placement) != {""}:
        raise ConfigError(
            f"option 'device_map': model '{spec.name}' is made in memory and cannot be spread. "
            "Use 'device'."
        )
    model, tokenizer = spec.load()
    module: nn.Module = model
    if isinstance(wanted := _DTYPES[dtype], torch.dtype):
        module.to(wanted)
    module.to(placement[""])
    return model, tokenizer


def _read_weights(
    source: Path | GgufFile,
    name: str,
    config: PreTrainedConfig,
    dtype: str,
    placement: str | dict[str, int | str],
    *,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    """Load what a folder or file holds; also what transformers reports about it."""
    if isinstance(source, GgufFile):
        given = _DTYPES[dtype]
        wanted = given if isinstance(given, torch.dtype) else stored_dtype(source)
        return read_gguf_model(source, config, wanted, placement, name=name)
    waits_on_disk = isinstance(placement, dict) and "disk" in placement.values()
    if waits_on_disk and not any(source.glob("*.safetensors")):
        raise ConfigError(
            f"option 'device_map': weights can wait on disk only as safetensors, got '{name}' with "
            "pickled ones. Save the model again with `save_pretrained`, or use 'cpu' for 'disk'."
        )
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source,
        config=config,
        dtype=_DTYPES[dtype],
        device_map=placement,
        use_safetensors=None if allow_pickle else True,
        ignore_mismatched_sizes=True,  # reported, with the names
        output_loading_info=True,
        trust_remote_code=trust_remote_code,
        local_files_only=True,
    )
    model, report = loaded
    return model, report


def _read_once(file: GgufFile | None) -> AbstractContextManager[None]:
    """Let all that is read of a GGUF file parse it once."""
    return nullcontext() if file is None else made_once("GGUFReader")


def _read_outline(
    place: Path, file: GgufFile | None, name: str, trust_remote_code: bool
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Read configuration and tokenizer of a model that can be edited, from a folder or a file."""
    tokenizer: PreTrainedTokenizerBase
    if file is not None:
        problem = f"transformers cannot read the architecture '{file.architecture}' from GGUF"
        with _one_clear_error(name, problem):
            config = read_gguf_config(file, name=name)
        _refuse_other_kinds(config, name)
        with _one_clear_error(name, "the tokenizer cannot be rebuilt from the GGUF file"):
            tokenizer = read_gguf_tokenizer(file)
        return config, tokenizer
    _check_kind_is_known(read_config(place, name=name), name, trust_remote_code)
    options: Any = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    with _one_clear_error(name, "the configuration cannot be used"):
        config = AutoConfig.from_pretrained(place, **options)
    _refuse_other_kinds(config, name)
    with _one_clear_error(name, "the tokenizer cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(place, use_fast=True, **options)
    return config, tokenizer


def _refuse_other_kinds(config: PreTrainedConfig, name: str) -> None:
    """Refuse what is no decoder-only causal language model."""
    own_classes = getattr(config, "auto_map", None) or {}
    is_causal_lm = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or (
        "AutoModelForCausalLM" in own_classes
    )
    if config.is_encoder_decoder or not is_causal_lm:
        raise ModelError(
            f"model '{name}': its kind cannot be edited, got model_type '{config.model_type}'; "
            "expected a decoder-only causal language model."
        )


def _check_kind_is_known(written: Mapping[str, Any], name: str, trust_remote_code: bool) -> None:
    kind = written.get("model_type")
    if kind in CONFIG_MAPPING or (trust_remote_code and "auto_map" in written):
        return
    if "auto_map" in written:
        raise ModelError(
            f"model '{name}': it needs code from its own repository. Read that code, and allow it "
            "with --trust-remote-code if you trust it."
        )
    raise ModelError(
        f"model '{name}': transformers {transformers_version} does not know its kind, got "
        f"model_type {kind!r}. Install a newer transformers."
    )


@contextmanager
def _one_clear_error(name: str, problem: str) -> Iterator[None]:
    """Turn whatever transformers raises into one line; its kinds vary with what is damaged."""
    try:
        yield
    except (EditbenchError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelError(f"model '{name}': {problem}, got {one_line(error)}.") from error
