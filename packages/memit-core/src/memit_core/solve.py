"""The closed-form update of one layer (MEMIT, Eqn 14).

Of all updates Δ to a weight that maps keys to values, find the one that adds each edit's residual
to the value of its key, yet moves the values of ordinary keys as little as can be:

    minimize over Δ   λ E‖Δ k‖²  +  Σ_i ‖Δ k_i - r_i‖²

with the expectation over ordinary keys, whose second moment is C = E[k kᵀ]. The solution is

    Δ = Rᵀ K (λ C + Kᵀ K)⁻¹

where rows are edits: K [n_edits, d_key], R [n_edits, d_value]. (The paper stacks columns, writes
the update as R K₁ᵀ (C₀ + K₁ K₁ᵀ)⁻¹ and keeps λ inside of C₀.) As λ → 0 the residuals are met
exactly: the equality-constrained form, which is ROME's for one edit.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from memit_core._float64 import find_float64_device, hand_back
from memit_core._shapes import shape_checked
from memit_core._systems import (
    gram_of,
    prefer_form,
    solve_dual,
    solve_primal,
    solve_whitened_primal,
    to_float64,
    unwhiten,
    whiten,
)
from memit_core._well_posed import cholesky_in_place, require_finite, solve_cholesky
from memit_core.errors import IllPosedError, MemitCoreError, ShapeError
from memit_core.factorize import FactorizedSecondMoment
from memit_core.update_factors import UpdateFactors

Form = Literal["auto", "primal", "dual"]


@shape_checked
def solve_update(
    keys: Float[Tensor, "n_edits d_key"],
    residuals: Float[Tensor, "n_edits d_value"],
    second_moment: Float[Tensor, "d_key d_key"] | FactorizedSecondMoment,
    *,
    preservation_weight: float,
) -> Float[Tensor, "d_value d_key"]:
    """Solve for the update of one layer, Δ = Rᵀ K (λC + KᵀK)⁻¹ (MEMIT, Eqn 14).

    With more edits than d_value this is cheaper than the factored form, and takes memory that does
    not grow with their number.

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
    operation = "solve_update"
    _check(operation, keys, residuals, second_moment)
    weight = _check_weight(operation, preservation_weight)
    with torch.no_grad():
        # X = (λC + KᵀK)⁻¹ KᵀR has d_value columns, the right factor n_edits: solve for the fewer.
        wanted = residuals if len(residuals) > residuals.shape[1] else None
        solved = _solve_least_squares(operation, keys, wanted, second_moment, weight, "auto")
        if wanted is None:
            update = to_float64(residuals, solved.device).mT @ solved.mT
        else:
            update = solved.mT.contiguous()
        return hand_back(update, keys.device)


@shape_checked
def solve_update_factors(
    keys: Float[Tensor, "n_edits d_key"],
    residuals: Float[Tensor, "n_edits d_value"],
    second_moment: Float[Tensor, "d_key d_key"] | FactorizedSecondMoment,
    *,
    preservation_weight: float,
    form: Form = "auto",
) -> UpdateFactors:
    """Solve for the update of one layer as `solve_update` does, and leave it factored.

    Two forms give the same update. The primal factorizes a d_key × d_key matrix; the dual, by
    Rᵀ (λI + K C⁻¹ Kᵀ)⁻¹ K C⁻¹, an n_edits × n_edits one, but needs the factors of C. In
    floating-point operations, with n = n_edits and d = d_key:

        plain C, primal         d³/3 + 3nd²
        plain C, dual           d³/3 + 2nd² + 3dn² + n³/3
        factorized C, primal    d³/3 + 5nd²
        factorized C, dual             2nd² + 3dn² + n³/3

    ``auto`` takes the cheaper form of a factorized C, which is the dual up to n = d. For a plain C
    it always takes the primal: the dual saves little there, and the primal also works where C is
    singular but the keys fill the gap.

    Args:
        keys: K, the input of the edited weight for each edit.
        residuals: R, what is to be added to the weight's output for each edit.
        second_moment: C = E[k kᵀ] over ordinary keys, plain or factorized.
        preservation_weight: λ > 0, how much ordinary keys weigh against the edits.
        form: Which form to use.

    Returns:
        Factors with left = Rᵀ and right = (λC + KᵀK)⁻¹ Kᵀ, so that the rank is n_edits (0 without
        edits); dtype and device as for `solve_update`.

    Raises:
        ShapeError: Shapes disagree, or a tensor is not floating-point.
        IllPosedError: Something is not finite, `second_moment` is not symmetric, or the system is
            singular in float64.
        MemitCoreError: `preservation_weight` is not a positive finite number.
    """
    operation = "solve_update_factors"
    _check(operation, keys, residuals, second_moment)
    weight = _check_weight(operation, preservation_weight)
    with torch.no_grad():
        right = _solve_least_squares(operation, keys, None, second_moment, weight, form)
        return _finish(residuals, right, keys.device)


@shape_checked
def solve_equality_factors(
    keys: Float[Tensor, "n_edits d_key"],
    residuals: Float[Tensor, "n_edits d_value"],
    second_moment: Float[Tensor, "d_key d_key"] | FactorizedSecondMoment,
) -> UpdateFactors:
    """Solve for the update that meets every residual exactly: Δ = Rᵀ (K C⁻¹ Kᵀ)⁻¹ K C⁻¹.

    This is the limit λ → 0 of `solve_update_factors`: of all Δ with Δ k_i = r_i for every edit, the
    one that moves ordinary keys least. For one edit it is ROME's update (ROME, Eqn 2), for many
    EMMET's.

    Args:
        keys: K, the input of the edited weight for each edit; linearly independent.
        residuals: R, what is to be added to the weight's output for each edit.
        second_moment: C = E[k kᵀ] over ordinary keys, plain or factorized; positive definite.

    Returns:
        Factors with left = Rᵀ and right = C⁻¹ Kᵀ (K C⁻¹ Kᵀ)⁻¹; dtype and device as for
        `solve_update`.

    Raises:
        ShapeError: Shapes disagree, or a tensor is not floating-point.
        IllPosedError: Something is not finite, `second_moment` is singular or not symmetric, or a
            key is zero or depends linearly on others, so that edits may contradict each other.
    """
    operation = "solve_equality_factors"
    n_edits, d_key = keys.shape
    if n_edits > d_key:
        raise IllPosedError(
            f"{operation}: more keys than dimensions cannot be linearly independent, got "
            f"n_edits={n_edits}; expected at most d_key={d_key}. Use `solve_update_factors`."
        )
    _check(operation, keys, residuals, second_moment)
    with torch.no_grad():
        if not isinstance(second_moment, FactorizedSecondMoment):
            second_moment = FactorizedSecondMoment(second_moment.to(keys.device))
        right = to_float64(keys, second_moment.device).mT
        if n_edits > 0:
            whitened = whiten(second_moment, right)
            factor, breakdown = cholesky_in_place(gram_of(whitened))
            if breakdown is not None:
                raise IllPosedError(
                    f"{operation}: row {breakdown.pivot} of `keys` is zero or a linear combination "
                    f"of the rows before it, got {breakdown}; expected linearly independent keys. "
                    "Drop that edit, or use `solve_update_factors`, which weighs such edits "
                    "against each other."
                )
            right = unwhiten(second_moment, solve_cholesky(factor, whitened.mT).mT)
        return _finish(residuals, right, keys.device)


def _solve_least_squares(
    operation: str,
    keys: Tensor,
    wanted: Tensor | None,
    second_moment: Tensor | FactorizedSecondMoment,
    weight: float,
    form: Form,
) -> Tensor:
    """Return (λC + KᵀK)⁻¹ KᵀT, [d_key, columns of T], in float64; T is the identity if None."""
    if isinstance(second_moment, FactorizedSecondMoment):
        device = second_moment.device
    else:
        device = find_float64_device(keys.device)
    if len(keys) == 0:
        return to_float64(keys, device).mT
    if isinstance(second_moment, FactorizedSecondMoment):
        if form == "auto":
            form = prefer_form(*keys.shape)
        solve = solve_dual if form == "dual" else solve_whitened_primal
        return solve(operation, keys, wanted, second_moment, weight)
    if form == "dual":
        factorized = FactorizedSecondMoment(second_moment.to(device))
        return solve_dual(operation, keys, wanted, factorized, weight)
    return solve_primal(operation, keys, wanted, second_moment, weight, device)


def _check_weight(operation: str, preservation_weight: float) -> float:
    if not (math.isfinite(preservation_weight) and preservation_weight > 0):
        raise MemitCoreError(
            f"{operation}: `preservation_weight` must be positive and finite, got "
            f"{preservation_weight}. Use `solve_equality_factors` for the limit of zero."
        )
    return float(preservation_weight)


def _check(
    operation: str,
    keys: Tensor,
    residuals: Tensor,
    second_moment: Tensor | FactorizedSecondMoment,
) -> None:
    """Check what the shape check cannot see."""
    if isinstance(second_moment, FactorizedSecondMoment) and second_moment.d_key != keys.shape[1]:
        raise ShapeError(
            f"{operation}: `second_moment` does not fit, got d_key={second_moment.d_key}; expected "
            f"d_key={keys.shape[1]}, the columns of `keys` {list(keys.shape)}. Check that it "
            "belongs to this layer, and that `keys` holds one edit per row."
        )
    for name, rows in (("keys", keys), ("residuals", residuals)):
        require_finite(operation, name, rows)


def _finish(residuals: Tensor, right: Tensor, device: torch.device) -> UpdateFactors:
    left = to_float64(residuals, right.device).mT
    return UpdateFactors(
        hand_back(left.contiguous(), device), hand_back(right.contiguous(), device)
    )
