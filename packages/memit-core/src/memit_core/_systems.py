"""The linear systems behind an update: X = (λC + KᵀK)⁻¹ KᵀT, with the memory of a few matrices.

T is the residuals, and then X is Δᵀ; or it is left out, and then X is the update's right factor.
Keys are widened to float64 a few at a time where T allows it, so that memory does not grow with
their number.
"""

from collections.abc import Iterator
from typing import Final, Literal

import torch
from torch import Tensor

from memit_core._gram import add_gram
from memit_core._well_posed import (
    Breakdown,
    cholesky_in_place,
    copy_symmetric,
    require_no_negative_eigenvalue,
    solve_cholesky,
)
from memit_core.errors import IllPosedError
from memit_core.factorize import FactorizedSecondMoment

_ENTRIES_PER_CHUNK: Final = 2**25  # 256 MiB in float64


def prefer_form(n_edits: int, d_key: int) -> Literal["primal", "dual"]:
    """Take the form that costs fewer floating-point operations with C factorized."""
    n, d = float(n_edits), float(d_key)
    dual = 2 * n * d**2 + 3 * d * n**2 + n**3 / 3
    primal = d**3 / 3 + 5 * n * d**2
    return "dual" if dual <= primal else "primal"


def whiten(second_moment: FactorizedSecondMoment, columns: Tensor) -> Tensor:
    """Return L⁻¹ Kᵀ, [d_key, n_edits]: keys in coordinates where C is the identity."""
    return torch.linalg.solve_triangular(second_moment.factor, columns, upper=False)


def unwhiten(second_moment: FactorizedSecondMoment, columns: Tensor) -> Tensor:
    """Return L⁻ᵀ X, [d_key, n_edits]."""
    return torch.linalg.solve_triangular(second_moment.factor.mT, columns, upper=True)


def solve_primal(
    operation: str,
    keys: Tensor,
    wanted: Tensor | None,
    second_moment: Tensor,
    weight: float,
    device: torch.device,
) -> Tensor:
    """Return (λC + KᵀK)⁻¹ KᵀT. One d_key × d_key matrix beside the caller's C."""
    system = copy_symmetric(operation, "second_moment", second_moment, device)
    rounding = torch.finfo(second_moment.dtype).eps * weight * system.diagonal()
    right = None
    for rows, targets in _widen(keys, wanted, device):
        add_gram(system, rows, beta=weight if right is None else 1.0)
        right = _add_right(right, rows, targets)
    assert right is not None
    factor, breakdown = cholesky_in_place(system, rounding)
    if breakdown is not None:
        require_no_negative_eigenvalue(operation, "second_moment", second_moment.to(device))
        d_key = len(system)
        raise IllPosedError(
            f"{operation}: λC + KᵀK is singular, got {breakdown}; expected a positive "
            f"definite matrix. Collect `second_moment` from more tokens (more than d_key={d_key} "
            "at the very least, and as varied as can be)."
        )
    return solve_cholesky(factor, right)


def solve_whitened_primal(
    operation: str,
    keys: Tensor,
    wanted: Tensor | None,
    second_moment: FactorizedSecondMoment,
    weight: float,
) -> Tensor:
    """Return L⁻ᵀ (λI + W Wᵀ)⁻¹ WT with W = L⁻¹ Kᵀ: the primal, without multiplying out C."""
    factor = second_moment.factor
    system = factor.new_zeros(factor.shape)
    right = None
    for rows, targets in _widen(keys, wanted, second_moment.device):
        whitened = whiten(second_moment, rows.mT).mT
        add_gram(system, whitened)
        right = _add_right(right, whitened, targets)
    assert right is not None
    system.diagonal().add_(weight)
    inner, breakdown = cholesky_in_place(system)
    _require_weight_felt(operation, breakdown, weight)
    return unwhiten(second_moment, solve_cholesky(inner, right))


def solve_dual(
    operation: str,
    keys: Tensor,
    wanted: Tensor | None,
    second_moment: FactorizedSecondMoment,
    weight: float,
) -> Tensor:
    """Return C⁻¹ Kᵀ (λI + K C⁻¹ Kᵀ)⁻¹ T = L⁻ᵀ W (λI + Wᵀ W)⁻¹ T with W = L⁻¹ Kᵀ."""
    whitened = whiten(second_moment, to_float64(keys, second_moment.device).mT)
    system = gram_of(whitened)
    system.diagonal().add_(weight)
    inner, breakdown = cholesky_in_place(system)
    _require_weight_felt(operation, breakdown, weight)
    if wanted is None:
        return unwhiten(second_moment, solve_cholesky(inner, whitened.mT).mT)
    targets = to_float64(wanted, second_moment.device)
    return unwhiten(second_moment, whitened @ solve_cholesky(inner, targets))


def gram_of(rows: Tensor) -> Tensor:
    """Return RᵀR, of which only the upper triangle is filled."""
    system = rows.new_zeros(rows.shape[1], rows.shape[1])
    add_gram(system, rows)
    return system


def to_float64(rows: Tensor, device: torch.device) -> Tensor:
    """Copy to float64, so that no result shares memory with an argument."""
    return rows.to(device=device, dtype=torch.float64, copy=True)


def _widen(
    keys: Tensor, wanted: Tensor | None, device: torch.device
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield keys and what is wanted of them in float64, a few rows at a time where T is given."""
    if wanted is None:
        yield to_float64(keys, device), None
        return
    n_rows = max(1, _ENTRIES_PER_CHUNK // keys.shape[1])
    for some, targets in zip(keys.split(n_rows), wanted.split(n_rows), strict=True):
        yield to_float64(some, device), to_float64(targets, device)


def _add_right(right: Tensor | None, rows: Tensor, targets: Tensor | None) -> Tensor:
    """Add to KᵀT what some rows contribute; without T it is Kᵀ itself."""
    if targets is None:
        return rows.mT
    return rows.mT @ targets if right is None else right.addmm_(rows.mT, targets)


def _require_weight_felt(operation: str, breakdown: Breakdown | None, weight: float) -> None:
    """Refuse a λ that rounding swallows next to K C⁻¹ Kᵀ, where only λ keeps it regular."""
    if breakdown is not None:
        raise IllPosedError(
            f"{operation}: `preservation_weight` vanishes next to K C⁻¹ Kᵀ in float64, got "
            f"{weight} with {breakdown}. Raise it, or drop edits whose keys depend linearly on "
            "each other."
        )
