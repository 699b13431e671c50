"""The closed-form update of one layer (MEMIT, Eqn 14), and its kin.

Of all updates Δ to a weight that maps keys to values, find the one that adds each edit's residual
to the value of its key, yet moves the values of ordinary keys as little as can be:

    minimize over Δ   tr(Δ M Δᵀ)  +  (1/α) Σ_i ‖Δ k_i - r_i‖²,        Δ acts only inside span(B)

where M and B say what moving ordinary values costs (`Preservation`). Rows are edits, K
[n_edits, d_key] and R [n_edits, d_value], and the solution is, with M̃⁻¹ = B M⁻¹ Bᵀ,

    Δ = Rᵀ K B (αM + BᵀKᵀK B)⁻¹ Bᵀ  =  Rᵀ (K M̃⁻¹ Kᵀ + αI)⁻¹ K M̃⁻¹.

With M = λC, C = E[k kᵀ] over ordinary keys, and α = 1 this is MEMIT's Rᵀ K (λC + KᵀK)⁻¹. (The paper
stacks columns, writes R K₁ᵀ (C₀ + K₁ K₁ᵀ)⁻¹ and keeps λ inside of C₀.) As α → 0 the residuals are
met exactly, which for one edit is ROME's update.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from memit_core._float64 import find_float64_device, hand_back
from memit_core._shapes import shape_checked
from memit_core._systems import System, to_float64
from memit_core._well_posed import require_finite
from memit_core.errors import IllPosedError, MemitCoreError, ShapeError
from memit_core.factorize import FactorizedSecondMoment
from memit_core.preservation import Preservation
from memit_core.update_factors import UpdateFactors


@shape_checked
def solve_update(
    keys: Float[Tensor, "n_edits d_key"],
    residuals: Float[Tensor, "n_edits d_value"],
    second_moment: Float[Tensor, "d_key d_key"] | FactorizedSecondMoment,
    *,
    preservation_weight: float,
) -> Float[Tensor, "d_value d_key"]:
    """Solve for the update of one layer, Δ = Rᵀ K (λC + KᵀK)⁻¹ (MEMIT, Eqn 14).

    `solve_edits` with M = λC and α = 1, multiplied out.

    Args:
        keys: K, the input of the edited weight for each edit.
        residuals: R, what is to be added to the weight's output for each edit.
        second_moment: C = E[k kᵀ] over ordinary keys, plain or factorized.
        preservation_weight: λ > 0, how much ordinary keys weigh against the edits.

    Returns:
        Δ in float64 (float32 on devices without float64), on the device of `keys`; zero if there
        are no edits.

    Raises:
        ShapeError: Shapes disagree, or a tensor is not floating-point.
        IllPosedError: Something is not finite, `second_moment` is not symmetric, or the system is
            singular in float64.
        MemitCoreError: `preservation_weight` is not a positive finite number.
    """
    if not (math.isfinite(preservation_weight) and preservation_weight > 0):
        raise MemitCoreError(
            "solve_update: `preservation_weight` must be positive and finite, got "
            f"{preservation_weight}. Use `solve_edits` with a slack of zero for that limit."
        )
    preservation = Preservation(second_moment, weight=preservation_weight)
    update = _solve("solve_update", keys, residuals, preservation, 1.0, None)
    return hand_back(update if isinstance(update, Tensor) else update.dense(), keys.device)


@shape_checked
def solve_edits(
    keys: Float[Tensor, "n_edits d_key"],
    residuals: Float[Tensor, "n_edits d_value"],
    preservation: Preservation,
    *,
    slack: float = 1.0,
    error: Float[Tensor, "d_value d_key"] | None = None,
) -> UpdateFactors | Tensor:
    """Solve for the update of one layer: Δ (M + KᵀK/α) = RᵀK/α - E, inside span(B).

    By a system with one row for each edit, or with one for each dimension of a key, whichever costs
    less; the first needs factors of the second moment, and so does a slack of zero.

    Args:
        keys: K, the input of the edited weight for each edit.
        residuals: R, what is to be added to the weight's output for each edit.
        preservation: M and B.
        slack: α ≥ 0, how far residuals may be missed: 1 is MEMIT, and 0 meets them exactly, if keys
            are linearly independent.
        error: E, what an earlier update lost of the solution it came from (error feedback), see
            `Preservation.times`.

    Returns:
        Δ = left rightᵀ with left = Rᵀ where n_edits is less than either side of Δ, and there is no
        E; else Δ itself. In float64 (float32 on devices without float64), on the device of `keys`.

    Raises:
        ShapeError: Shapes disagree, or a tensor is not floating-point.
        IllPosedError: Something is not finite, the second moment is not symmetric, or the system is
            singular in float64; with a slack of zero: a key is zero within span(B) or depends
            linearly on others, so that edits may contradict each other.
        MemitCoreError: `slack` is negative or not finite, or there is an error with a slack of 0.
    """
    operation = "solve_edits"
    if not (math.isfinite(slack) and slack >= 0):
        raise MemitCoreError(f"{operation}: `slack` must not be negative, got {slack}.")
    if slack == 0 and error is not None:
        raise MemitCoreError(f"{operation}: error feedback needs a slack above 0, got 0.")
    update = _solve(operation, keys, residuals, preservation, slack, error)
    if isinstance(update, UpdateFactors):
        if update.rank >= min(update.d_value, update.d_key):
            return hand_back(update.dense(), keys.device)
        parts = (part.contiguous() for part in (update.left, update.right))
        return UpdateFactors(*(hand_back(part, keys.device) for part in parts))
    return hand_back(update, keys.device)


def _solve(
    operation: str,
    keys: Tensor,
    residuals: Tensor,
    preservation: Preservation,
    slack: float,
    error: Tensor | None,
) -> UpdateFactors | Tensor:
    """Δ in float64, where it was solved for: dense with more edits than d_value, or with E."""
    d_key = keys.shape[1]
    if preservation.d_key not in (None, d_key):
        raise ShapeError(
            f"{operation}: `second_moment` does not fit, got d_key={preservation.d_key}; expected "
            f"d_key={d_key}, the columns of `keys` {list(keys.shape)}. Check that it belongs to "
            "this layer, and that `keys` holds one edit per row."
        )
    for name, rows in (("keys", keys), ("residuals", residuals), ("error", error)):
        if rows is not None:
            require_finite(operation, name, rows)
    rank = preservation.rank(d_key)
    if slack == 0 and len(keys) > rank:
        raise IllPosedError(
            f"{operation}: more keys than dimensions cannot be linearly independent, got "
            f"n_edits={len(keys)}; expected at most {rank}. Give a slack above 0."
        )
    with torch.no_grad():
        if slack == 0:
            preservation = preservation.factorized(keys.device)
        device = preservation.device or find_float64_device(keys.device)
        # X = (αM + KᵀK)⁻¹ KᵀR has d_value columns, the right factor n_edits: solve for the fewer.
        is_dense = error is not None or len(keys) > residuals.shape[1]
        wanted = residuals if is_dense else None
        if len(keys) == 0 and error is None:
            solved = to_float64(keys, device).mT
        else:
            solved = System(operation, keys, wanted, preservation, slack, error, device).solve()
        if is_dense:
            return solved.mT.contiguous()
        return UpdateFactors(to_float64(residuals, device).mT, solved)
