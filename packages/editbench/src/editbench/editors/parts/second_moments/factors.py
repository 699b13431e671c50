"""Second moments that were factorized once, and kept in the cache.

C is fixed, and its factorization is by far the dearest part of a small edit. A file of 8 d_key²
bytes for each layer spares it.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editbench.editors.parts.second_moments.collection_files import alone
from editbench.editors.parts.second_moments.obtaining import LayerMoments
from editbench.errors import SecondMomentError
from editbench.models.out_of_memory import else_on_cpu
from memit_core import (
    FactorizedSecondMoment,
    IllPosedError,
    MemitCoreError,
    Preservation,
    load_factor,
    save_factor,
)

_ORIGIN = ("model_fingerprint", "corpus_fingerprint", "n_tokens")


def require_factor(
    moments: LayerMoments, layer: int, cache: Path | None, device: torch.device
) -> Preservation:
    """`obtain_factor`, for solves that cannot do without; made for once where there is no cache.

    On the CPU, if the device has too little memory for it.

    Raises:
        SecondMomentError: It cannot be written, or the second moment is singular even so.
    """

    def make(device: torch.device) -> Preservation:
        factor = obtain_factor(moments, layer, cache, device)
        return _factorize(moments[layer], device) if factor is None else factor

    try:
        return else_on_cpu(f"factorizing second moments of layer {layer}", device, make)
    except MemitCoreError as error:
        raise SecondMomentError(f"second moments of layer {layer}: {error}") from error


def obtain_factor(
    moments: LayerMoments, layer: int, cache: Path | None, device: torch.device
) -> Preservation | None:
    """Read a second moment's factors from the cache, or factorize it and keep them there.

    They are found by what the second moment is from and by the bits of its diagonal; where nobody
    knows what it is from, by all of its bits. Whoever wants the same at the same time waits.

    Args:
        moments: Second moments, of which that of `layer` is read.
        layer: The layer.
        cache: The cache folder.
        device: Where solves are to be done.

    Returns:
        C, factorized without the dimensions that ordinary text never uses: those are no axes of
        its basis. None where there is no cache, or where the second moment is singular.

    Raises:
        SecondMomentError: They cannot be written.
    """
    if cache is None:
        return None
    moment = moments[layer]
    path = cache / "factors" / f"{_name(moment, layer, moments.provenance)}.safetensors"
    is_singular = path.with_suffix(".singular")  # an empty file, so as not to try again
    live = moment.diagonal() > 0
    if (found := _read(path, live, device)) is not None or is_singular.exists():
        return found
    try:
        with alone(path):
            if (found := _read(path, live, device)) is not None or is_singular.exists():
                return found
            try:
                made = _factorize(moment, device)
            except IllPosedError:
                is_singular.touch()
                return None
            assert isinstance(made.second_moment, FactorizedSecondMoment)
            save_factor(path, made.second_moment, {"layer": layer, **(moments.provenance or {})})
    except (OSError, MemitCoreError, SecondMomentError) as error:
        reason = str(error).rstrip(".")
        raise SecondMomentError(
            f"second moments of layer {layer}: cannot keep factors: {reason}. Free space, choose "
            "another folder with --cache, or go without by --no-cache."
        ) from error
    return made


def _factorize(moment: Tensor, device: torch.device) -> Preservation:
    live = moment.diagonal() > 0
    return Preservation(moment, basis=live.to(device)).factorized(device)


def _name(moment: Tensor, layer: int, origin: Mapping[str, Any] | None) -> str:
    is_known = origin is not None and all(name in origin for name in _ORIGIN)
    digest = hashlib.sha256(json.dumps([layer, origin], sort_keys=True).encode())
    bits = moment.diagonal().contiguous() if is_known else moment.contiguous()
    digest.update(bits.numpy().data)
    return digest.hexdigest()[:32]


def _read(path: Path, live: Tensor, device: torch.device) -> Preservation | None:
    """What a file holds; None if it is not there, or damaged, and then it is removed."""
    if not path.exists():
        return None
    try:
        return Preservation(load_factor(path, device=device).factorized, basis=live.to(device))
    except MemitCoreError:
        path.unlink(missing_ok=True)
        return None
