"""Second moments on disk: one safetensors file for all layers of a model.

Tensor ``layers.<l>``, float32 or float64, is the second moment of layer l. The file's metadata may
hold, under ``editbench``, a JSON object with ``n_tokens`` (layer → count) and ``provenance`` (what
model and corpus the tokens came from).
"""

import json
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch

from memit_core.errors import MemitCoreError
from memit_core.second_moment import DTYPES, SecondMoment

_METADATA_KEY: Final = "editbench"
_TENSOR_NAME: Final = re.compile(r"layers\.(0|[1-9]\d*)")


@dataclass(frozen=True, eq=False)
class SecondMoments:
    """What a file of second moments holds.

    Attributes:
        moments: By layer, ascending.
        provenance: Where they come from, as given on saving; None if the file does not say. Check
            it against your model before you trust the moments.
    """

    moments: dict[int, SecondMoment]
    provenance: dict[str, Any] | None


def save_second_moments(
    path: str | os.PathLike[str],
    moments: Mapping[int, SecondMoment],
    provenance: Mapping[str, Any] | None,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write second moments to one file, whole or not at all.

    Args:
        path: File to create or replace; its folder must exist.
        moments: By layer.
        provenance: JSON object that says which model, corpus and settings they come from.
        dtype: float32 halves the file; None keeps each moment's own dtype, and so its bits.

    Raises:
        MemitCoreError: There is nothing to save, a layer has seen no token, `provenance` is not
            JSON, `dtype` is another one, the file cannot be written, or safetensors is missing.
    """
    operation = "save_second_moments"
    safetensors = _import_safetensors(operation)
    if not moments:
        raise MemitCoreError(f"{operation}: there is nothing to save, got no layer.")
    if dtype is not None and dtype not in DTYPES:
        raise MemitCoreError(
            f"{operation}: `dtype` is too narrow, got {dtype}; expected torch.float64 or "
            "torch.float32."
        )
    tensors = {}
    for layer, second_moment in sorted(moments.items()):
        if layer < 0 or second_moment.n_tokens == 0:
            raise MemitCoreError(
                f"{operation}: a layer must count from 0 and have seen tokens, got layer {layer} "
                f"with n_tokens={second_moment.n_tokens}."
            )
        tensors[f"layers.{layer}"] = second_moment.moment().to(device="cpu", dtype=dtype)
    counts = {str(layer): moments[layer].n_tokens for layer in sorted(moments)}
    card: dict[str, Any] = {"n_tokens": {k: n for k, n in counts.items() if n is not None}}
    if provenance is not None:
        card["provenance"] = dict(provenance)
    try:
        metadata = {_METADATA_KEY: json.dumps(card, sort_keys=True, allow_nan=False)}
    except (TypeError, ValueError) as error:
        raise MemitCoreError(
            f"{operation}: `provenance` is not JSON, got {provenance!r} ({error}). Use strings, "
            "numbers, lists and dictionaries only."
        ) from error
    target = Path(path)
    # In the target's own folder, so that the final rename cannot cross file systems.
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        safetensors.torch.save_file(tensors, partial, metadata=metadata)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    except (OSError, safetensors.SafetensorError) as error:
        raise MemitCoreError(
            f"{operation}: cannot write the file, got {path} ({error}). Check that its folder "
            "exists, may be written to, and has space."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def load_second_moments(path: str | os.PathLike[str]) -> SecondMoments:
    """Read a file of second moments.

    Args:
        path: File as `save_second_moments` writes it. Without metadata it loads, too: then the
            provenance and the token counts are None.

    Returns:
        The moments, each in the file's own dtype on the CPU, and their provenance.

    Raises:
        MemitCoreError: The file cannot be read or breaks the format; the message names it.
    """
    operation = f"load_second_moments: {path}"
    safetensors = _import_safetensors("load_second_moments")
    tensors: dict[int, torch.Tensor] = {}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            for name in file.keys():  # noqa: SIM118 (not a dictionary)
                match = _TENSOR_NAME.fullmatch(name)
                if match is None:
                    raise MemitCoreError(
                        f"{operation}: not a file of second moments, got tensor '{name}'; expected "
                        "'layers.<l>' only."
                    )
                tensors[int(match[1])] = file.get_tensor(name)
    except (OSError, safetensors.SafetensorError) as error:
        raise MemitCoreError(
            f"{operation}: cannot be read as safetensors, got {error}. Check the path, and "
            "whether the file is complete."
        ) from error
    if not tensors:
        raise MemitCoreError(f"{operation}: holds no second moment, got no tensor 'layers.<l>'.")
    n_tokens, provenance = _read_card(operation, metadata.get(_METADATA_KEY))
    moments = {}
    for layer, tensor in sorted(tensors.items()):
        if tensor.dtype not in DTYPES:
            raise MemitCoreError(
                f"{operation}: tensor 'layers.{layer}' has the wrong dtype, got {tensor.dtype}; "
                "expected torch.float64 or torch.float32."
            )
        try:
            count = n_tokens.get(str(layer))
            moments[layer] = SecondMoment.from_moment(tensor, n_tokens=count)
        except MemitCoreError as error:
            raise type(error)(f"{operation}: layer {layer}: {error}") from error
    return SecondMoments(moments, provenance)


def _read_card(operation: str, text: str | None) -> tuple[dict[str, int], dict[str, Any] | None]:
    """Take the file's metadata apart: token counts by layer, and provenance."""
    if text is None:
        return {}, None
    try:
        card = json.loads(text)
    except ValueError as error:
        raise MemitCoreError(
            f"{operation}: metadata '{_METADATA_KEY}' is not JSON, got {text[:80]!r} ({error})."
        ) from error
    if not isinstance(card, dict):
        raise MemitCoreError(
            f"{operation}: metadata '{_METADATA_KEY}' must be a JSON object, got {card!r}."
        )
    n_tokens, provenance = card.get("n_tokens"), card.get("provenance")
    for name, value in (("n_tokens", n_tokens), ("provenance", provenance)):
        if not isinstance(value, dict | None):
            raise MemitCoreError(
                f"{operation}: metadata '{name}' must be a JSON object, got {value!r}."
            )
    for layer, count in (n_tokens or {}).items():
        if type(count) is not int:
            raise MemitCoreError(
                f"{operation}: metadata 'n_tokens' must hold a count for each layer, got {count!r} "
                f"for layer {layer}."
            )
    return n_tokens or {}, provenance


def _import_safetensors(operation: str) -> ModuleType:
    """Import safetensors on demand: it is an extra, for those who keep moments in files."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise MemitCoreError(
            f"{operation}: needs the package safetensors, got {error}. "
            "Install it with: pip install 'memit-core[files]'"
        ) from error
    return safetensors
