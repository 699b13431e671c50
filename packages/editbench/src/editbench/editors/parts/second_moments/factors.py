"""Solving with second moments that were factorized once, and kept in the cache.

C is fixed, and its factorization is by far the dearest part of a small edit. A file of 8 d_key²
bytes for each layer spares it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editbench.cache_entries import JsonEntry, read_kept
from editbench.editors.parts.second_moments.collection_files import alone
from editbench.editors.parts.second_moments.obtaining import LayerMoments
from editbench.errors import SecondMomentError
from editbench.models.out_of_memory import else_on_cpu
from memit_core import (
    DamagedError,
    FactorizedSecondMoment,
    IllPosedError,
    IndefiniteError,
    MemitCoreError,
    UpdateFactors,
    load_factor,
    save_factor,
    solve_equality_factors,
    solve_update,
    solve_update_factors,
)

_ORIGIN = ("model_fingerprint", "corpus_fingerprint", "n_tokens")


@dataclass(frozen=True)
class LiveFactor:
    """A second moment, factorized without the dimensions that ordinary text never uses.

    Attributes:
        factorized: Factors of the rest.
        live: Which dimensions these are, bool `[d_key]`.
    """

    factorized: FactorizedSecondMoment
    live: Tensor


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

    try:
        return else_on_cpu(f"solving for the update of layer {layer}", keys.device, solve)
    except IllPosedError as error:
        if not moments.source:
            raise
        message = f"{error} The second moments are those of {moments.source}."
        raise IllPosedError(message) from error


def _solve(
    keys: Tensor,
    residuals: Tensor,
    moments: LayerMoments,
    layer: int,
    preservation_weight: float,
    cache: Path | None,
) -> UpdateFactors | Tensor:
    n_edits, d_key = keys.shape
    second_moment: Tensor | FactorizedSecondMoment
    # Up to here the dual with C factorized takes fewer operations than the primal without.
    factor = obtain_factor(moments, layer, cache, keys.device) if n_edits <= d_key // 2 else None
    if factor is not None and not bool(keys[:, ~factor.live].any()):
        live, second_moment = factor.live, factor.factorized
    else:
        plain = moments[layer]
        live = _find_live(plain, layer).to(keys.device) | keys.ne(0).any(dim=0)
        second_moment = _restrict(plain, live)
    all_live = bool(live.all())
    if not all_live:
        keys = keys[:, live]
    if n_edits >= min(d_key, residuals.shape[1]):
        update = solve_update(
            keys, residuals, second_moment, preservation_weight=preservation_weight
        )
        return update if all_live else _spread_out(update.T, live).T
    factors = solve_update_factors(
        keys, residuals, second_moment, preservation_weight=preservation_weight
    )
    return _spread_factors(factors, live)


def solve_equality_layer(
    keys: Tensor, residuals: Tensor, second_moment: LiveFactor
) -> UpdateFactors:
    """Solve for the update that maps keys to residuals exactly, and moves ordinary values least.

    It says nothing about dimensions that ordinary text never uses, whatever the keys have there: C
    knows no price of writing to them, and the rest suffices for exactness.

    Args:
        keys: K, `[n_edits, d_key]`.
        residuals: R, `[n_edits, d_value]`.
        second_moment: C, of the layer.

    Returns:
        Δ, as factors of rank n_edits.

    Raises:
        MemitCoreError: Something is not finite, or a key has nothing but such dimensions.
    """
    live = second_moment.live.to(keys.device)
    if not bool(live.all()):
        keys = keys[:, live]
    factors = solve_equality_factors(keys, residuals, second_moment.factorized)
    return _spread_factors(factors, live)


def require_factor(
    moments: LayerMoments, layer: int, cache: Path | None, device: torch.device
) -> LiveFactor:
    """`obtain_factor`, for solves that cannot do without; made for once where there is no cache.

    On the CPU, if the device has too little memory for it.

    Raises:
        SecondMomentError: It cannot be written, or the second moment is singular even so.
    """

    def make(device: torch.device) -> LiveFactor:
        factor = obtain_factor(moments, layer, cache, device)
        return _factorize(moments[layer], device) if factor is None else factor

    try:
        return else_on_cpu(f"factorizing second moments of layer {layer}", device, make)
    except MemitCoreError as error:
        where = f" of {moments.source}" if moments.source else ""
        raise SecondMomentError(f"second moments{where}, layer {layer}: {error}") from error


def obtain_factor(
    moments: LayerMoments, layer: int, cache: Path | None, device: torch.device
) -> LiveFactor | None:
    """Read a second moment's factors from the cache, or factorize it and keep them there.

    They are found by what the second moment is from and by the bits of its diagonal; where nobody
    knows what it is from, by all of its bits. Whoever wants the same at the same time waits.

    Args:
        moments: Second moments, of which that of `layer` is read.
        layer: The layer.
        cache: The cache folder.
        device: Where solves are to be done.

    Returns:
        None where there is no cache, or where the second moment is singular.

    Raises:
        SecondMomentError: They cannot be written.
    """
    if cache is None:
        return None
    moment = moments[layer]
    path = cache / "factors" / f"{_name(moment, layer, moments.provenance)}.safetensors"
    singular = JsonEntry(path.with_suffix(".singular"), "a note on factors")  # do not try again
    live = _find_live(moment, layer)
    if (found := _read(path, live, device)) is not None or singular.read(bool):
        return found
    if path.exists():  # damaged, and cannot be put aside
        return _factorize(moment, device)
    try:
        with alone(path):
            if (found := _read(path, live, device)) is not None or singular.read(bool):
                return found
            try:
                made = _factorize(moment, device)
            except IndefiniteError:
                raise
            except IllPosedError:
                singular.write(content=True)
                return None
            origin = {**(moments.provenance or {}), "layer": layer, "name": path.name}
            save_factor(path, made.factorized, origin)
    except IndefiniteError:
        raise
    except (OSError, MemitCoreError, SecondMomentError) as error:
        reason = str(error).rstrip(".")
        raise SecondMomentError(
            f"second moments of layer {layer}: cannot keep factors: {reason}. Free space, choose "
            "another folder with --cache, or go without by --no-cache."
        ) from error
    return made


def _factorize(moment: Tensor, device: torch.device) -> LiveFactor:
    live = moment.diagonal() > 0
    try:
        factorized = FactorizedSecondMoment(_restrict(moment, live).to(device))
    except IndefiniteError as error:
        raise error.at(int(live.nonzero()[error.row])) from error
    return LiveFactor(factorized, live.to(device))


def _name(moment: Tensor, layer: int, origin: Mapping[str, Any] | None) -> str:
    is_known = origin is not None and all(name in origin for name in _ORIGIN)
    digest = hashlib.sha256(json.dumps([layer, origin], sort_keys=True).encode())
    bits = moment.diagonal().contiguous() if is_known else moment.contiguous()
    digest.update(bits.numpy().data)
    return digest.hexdigest()[:32]


def _read(path: Path, live: Tensor, device: torch.device) -> LiveFactor | None:
    """What a file holds; None if it is not there, or damaged, and then it is put aside."""

    def read() -> LiveFactor:
        stored = load_factor(path, device=device)
        if (stored.provenance or {}).get("name") != path.name:
            raise DamagedError("it is of another second moment than its name says")
        return LiveFactor(stored.factorized, live.to(device))

    return read_kept(path, "factors of second moments", read)


def _find_live(moment: Tensor, layer: int) -> Tensor:
    """Which dimensions ordinary text uses, bool `[d_key]`.

    Raises:
        SecondMomentError: None of them.
    """
    live = moment.diagonal() > 0
    if not bool(live.any()):
        raise SecondMomentError(
            f"second moments of layer {layer}: no dimension is ever used, got a diagonal of "
            f"{len(live)} zeros. Collect them from other text, or edit another layer."
        )
    return live


def _restrict(moment: Tensor, live: Tensor) -> Tensor:
    if bool(live.all()):
        return moment
    place = live.nonzero()[:, 0].to(moment.device)
    return moment[place[:, None], place]


def _spread_factors(factors: UpdateFactors, live: Tensor) -> UpdateFactors:
    """An update of the live dimensions as one of all."""
    if bool(live.all()):
        return factors
    return UpdateFactors(factors.left, _spread_out(factors.right, live))


def _spread_out(rows: Tensor, live: Tensor) -> Tensor:
    """Put rows where the live dimensions are, and zeros elsewhere."""
    spread = rows.new_zeros(len(live), rows.shape[1])
    spread[live.to(rows.device)] = rows
    return spread
