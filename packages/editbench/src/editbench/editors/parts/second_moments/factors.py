"""Solving with second moments that were factorized once, and kept in the cache.

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
    UpdateFactors,
    load_factor,
    save_factor,
    solve_edits,
)

_ORIGIN = ("model_fingerprint", "corpus_fingerprint", "n_tokens")


def solve_layer(
    keys: Tensor,
    residuals: Tensor,
    moments: LayerMoments,
    layer: int,
    preservation_weight: float,
    cache: Path | None,
) -> UpdateFactors | Tensor:
    """Solve Eqn 14 for one layer, by whichever way is cheaper, on the device of `keys`.

    Where that has too little memory for matrices of d_key × d_key, it is done on the CPU.

    Dimensions that neither ordinary text nor an edit ever uses are left out. ReLU models have
    neurons that never fire. They make C singular, yet nothing can depend on what the update says
    about them: of all solutions, this is the one that says nothing.

    Args:
        keys: K, `[n_edits, d_key]`.
        residuals: R, `[n_edits, d_value]`.
        moments: Second moments, of which that of `layer` is read.
        layer: The layer.
        preservation_weight: λ.
        cache: Where factors are kept; None keeps and uses none.

    Returns:
        Δ: as factors of rank n_edits if that is less than either of its sides, else dense; on the
        device where it was solved for.

    Raises:
        MemitCoreError: The system is singular, or something is not finite.
        SecondMomentError: A factor cannot be written.
    """

    def solve(device: torch.device) -> UpdateFactors | Tensor:
        rows = (keys.to(device), residuals.to(device))
        return _solve(*rows, moments, layer, preservation_weight, cache)

    return else_on_cpu(f"solving for the update of layer {layer}", keys.device, solve)


def _solve(
    keys: Tensor,
    residuals: Tensor,
    moments: LayerMoments,
    layer: int,
    preservation_weight: float,
    cache: Path | None,
) -> UpdateFactors | Tensor:
    # Up to here the dual with C factorized takes fewer operations than the primal without.
    is_small = len(keys) <= keys.shape[1] // 2
    factor = obtain_factor(moments, layer, cache, keys.device) if is_small else None
    if factor is not None and _lie_in(factor.basis, keys):
        made = Preservation(factor.second_moment, weight=preservation_weight, basis=factor.basis)
    else:
        plain = moments[layer]
        live = (plain.diagonal() > 0).to(keys.device) | keys.ne(0).any(dim=0)
        made = Preservation(plain, weight=preservation_weight, basis=live)
    return solve_edits(keys, residuals, made)


def _lie_in(axes: Tensor | None, keys: Tensor) -> bool:
    return axes is None or not bool(keys[:, ~axes].any())


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
