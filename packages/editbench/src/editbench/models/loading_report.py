"""What transformers says about a checkpoint after loading it: what was lacking, what was left."""

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from editbench.errors import ModelError

# Buffers that old checkpoints hold and that follow from the configuration: masks, places, angles.
_HARMLESS = re.compile(
    r"(rotary_emb\.inv_freq|attn\.(masked_)?bias|attention\.(masked_)?bias|position_ids)$"
)
# What quantized weights are read with; without it they are numbers of no meaning.
_SCALES = re.compile(
    r"(\b(weight|input|output|activation|[qkv])_scale(_inv|_2)?|_proj_(blocks|scales)|\.scales"
    r"|\.qweight|\.qzeros|\.g_idx|weight_(packed|zero_point)|\.(nested_)?absmax|\.quant_map"
    r"|\.quant_state\.\w+|\.SCB)$"
)
_N_NAMED = 3


def check_report(name: str, report: Mapping[str, Any]) -> None:
    """Refuse weights that do not make up the model.

    Told by what `from_pretrained` gives for ``output_loading_info``.

    Raises:
        ModelError: Some have another shape than the configuration says, or are missing, so that
            transformers has made them up; or scales of quantized weights were not used.
    """
    if scales := sorted(filter(_SCALES.search, report["unexpected_keys"])):
        raise ModelError(
            f"model '{name}': the checkpoint holds quantized weights that config.json does not "
            f"speak of, got {_list_names(scales)}, which nothing uses. Give the checkpoint in "
            "bfloat16, float16 or float32 that it was made from, or dequantize it."
        )
    if mismatched := sorted(report["mismatched_keys"]):
        parameter, stored, wanted = mismatched[0]
        raise ModelError(
            f"model '{name}': {len(mismatched)} weight(s) do not have the shape that config.json "
            f"asks for, first '{parameter}', got {list(stored)}; expected {list(wanted)}."
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"model '{name}': {len(missing)} weight(s) are missing from the checkpoint, first "
            f"'{missing[0]}'. It is incomplete or not a causal language model."
        )


def warn_of_unused(name: str, report: Mapping[str, Any]) -> None:
    """Say which tensors of the checkpoint the model has no place for.

    Not those that follow from the configuration, nor those that the model's class knows to leave
    to others, such as the vision tower beside a text model.
    """
    unused = sorted(key for key in report["unexpected_keys"] if not _HARMLESS.search(key))
    if unused:
        warnings.warn(
            f"model '{name}': {len(unused)} tensor(s) of the checkpoint are not used, "
            f"{_list_names(unused)}. The model is computed without them.",
            stacklevel=2,
        )


def _list_names(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_N_NAMED])
    return shown + (f" and {len(names) - _N_NAMED} more" if len(names) > _N_NAMED else "")
