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
from memit_core._well_posed import (
    Breakdown,
    cholesky_in_place,
    copy_symmetric,
    require_finite,
    solve_cholesky,
)
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
    factors = _solve_least_squares(
        "solve_update", keys, residuals, second_moment, preservation_weight, "auto"
    )
    return factors.dense()


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

        plain C, primal         d³/3 + 4nd²
        plain C, dual           d³/3 + 2nd² + 4dn² + n³/3
        factorized C, primal    d³/3 + 6nd²
        factorized C, dual             2nd² + 4dn² + n³/3

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
    return _solve_least_squares(
        "solve_update_factors", keys, residuals, second_moment, preservation_weight, form
    )


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
    with torch.no_grad():
        if not isinstance(second_moment, FactorizedSecondMoment):
            second_moment = FactorizedSecondMoment(second_moment.to(keys.device))
        columns, left = _prepare(operation, keys, residuals, second_moment, second_moment.device)
        right = columns
        if n_edits > 0:
            whitened = _whiten(second_moment, columns)
            factor, breakdown = cholesky_in_place(whitened.mT @ whitened)
            if breakdown is not None:
                raise IllPosedError(
                    f"{operation}: row {breakdown.pivot} of `keys` is zero or a linear combination "
                    f"of the rows before it, got {breakdown}; expected linearly independent keys. "
                    "Drop that edit, or use `solve_update_factors`, which weighs such edits "
                    "against each other."
                )
            right = _unwhiten(second_moment, solve_cholesky(factor, whitened.mT).mT)
        return _finish(left, right, keys.device)


def _solve_least_squares(
    operation: str,
    keys: Tensor,
    residuals: Tensor,
    second_moment: Tensor | FactorizedSecondMoment,
    preservation_weight: float,
    form: Form,
) -> UpdateFactors:
    """Do the work of `solve_update` and `solve_update_factors`, under either's name."""
    if not (math.isfinite(preservation_weight) and preservation_weight > 0):
        raise MemitCoreError(
            f"{operation}: `preservation_weight` must be positive and finite, got "
            f"{preservation_weight}. Use `solve_equality_factors` for the limit of zero."
        )
    weight = float(preservation_weight)
    with torch.no_grad():
        if isinstance(second_moment, FactorizedSecondMoment):
            device = second_moment.device
        else:
            device = find_float64_device(keys.device)
        columns, left = _prepare(operation, keys, residuals, second_moment, device)
        if len(keys) == 0:
            right = columns
        elif isinstance(second_moment, FactorizedSecondMoment):
            if form == "auto":
                form = _choose_form(*keys.shape)
            solve = _solve_dual if form == "dual" else _solve_whitened_primal
            right = solve(operation, columns, second_moment, weight)
        elif form == "dual":
            factorized = FactorizedSecondMoment(second_moment.to(device))
            right = _solve_dual(operation, columns, factorized, weight)
        else:
            right = _solve_primal(operation, columns, second_moment, weight)
        return _finish(left, right, keys.device)


def _choose_form(n_edits: int, d_key: int) -> Literal["primal", "dual"]:
    """Take the form that costs fewer floating-point operations with C factorized."""
    n, d = float(n_edits), float(d_key)
    dual = 2 * n * d**2 + 4 * d * n**2 + n**3 / 3
    primal = d**3 / 3 + 6 * n * d**2
    return "dual" if dual <= primal else "primal"


def _prepare(
    operation: str,
    keys: Tensor,
    residuals: Tensor,
    second_moment: Tensor | FactorizedSecondMoment,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Check what the shape check cannot see; return Kᵀ and Rᵀ in float64, as copies."""
    if isinstance(second_moment, FactorizedSecondMoment) and second_moment.d_key != keys.shape[1]:
        raise ShapeError(
            f"{operation}: `second_moment` does not fit, got d_key={second_moment.d_key}; expected "
            f"d_key={keys.shape[1]}, the columns of `keys` {list(keys.shape)}. Check that it "
            "belongs to this layer, and that `keys` holds one edit per row."
        )
    in_float64 = []
    for name, rows in (("keys", keys), ("residuals", residuals)):
        copy = rows.to(device=device, dtype=torch.float64, copy=True)
        require_finite(operation, name, copy)
        in_float64.append(copy.mT)
    return in_float64[0], in_float64[1]


def _finish(left: Tensor, right: Tensor, device: torch.device) -> UpdateFactors:
    return UpdateFactors(
        hand_back(left.contiguous(), device), hand_back(right.contiguous(), device)
    )


def _whiten(second_moment: FactorizedSecondMoment, columns: Tensor) -> Tensor:
    """Return L⁻¹ Kᵀ, [d_key, n_edits]: keys in coordinates where C is the identity."""
    return torch.linalg.solve_triangular(second_moment.factor, columns, upper=False)


def _unwhiten(second_moment: FactorizedSecondMoment, columns: Tensor) -> Tensor:
    """Return L⁻ᵀ X, [d_key, n_edits]."""
    return torch.linalg.solve_triangular(second_moment.factor.mT, columns, upper=True)


def _solve_primal(operation: str, columns: Tensor, second_moment: Tensor, weight: float) -> Tensor:
    """Return (λC + KᵀK)⁻¹ Kᵀ. One d_key × d_key matrix beside the caller's C."""
    system = copy_symmetric(operation, "second_moment", second_moment, columns.device)
    rounding = torch.finfo(second_moment.dtype).eps * weight * system.diagonal()
    system.addmm_(columns, columns.mT, beta=weight)
    factor, breakdown = cholesky_in_place(system, rounding)
    if breakdown is not None:
        d_key = len(columns)
        raise IllPosedError(
            f"{operation}: λC + KᵀK is singular, got {breakdown}; expected a positive "
            f"definite matrix. Collect `second_moment` from more tokens (more than d_key={d_key} "
            "at the very least, and as varied as can be)."
        )
    return solve_cholesky(factor, columns)


def _solve_whitened_primal(
    operation: str, columns: Tensor, second_moment: FactorizedSecondMoment, weight: float
) -> Tensor:
    """Return L⁻ᵀ (λI + W Wᵀ)⁻¹ W with W = L⁻¹ Kᵀ: the primal, without multiplying out C."""
    whitened = _whiten(second_moment, columns)
    system = whitened @ whitened.mT
    system.diagonal().add_(weight)
    factor, breakdown = cholesky_in_place(system)
    _require_weight_felt(operation, breakdown, weight)
    return _unwhiten(second_moment, solve_cholesky(factor, whitened))


def _solve_dual(
    operation: str, columns: Tensor, second_moment: FactorizedSecondMoment, weight: float
) -> Tensor:
    """Return C⁻¹ Kᵀ (λI + K C⁻¹ Kᵀ)⁻¹ = L⁻ᵀ W (λI + Wᵀ W)⁻¹ with W = L⁻¹ Kᵀ."""
    whitened = _whiten(second_moment, columns)
    system = whitened.mT @ whitened
    system.diagonal().add_(weight)
    factor, breakdown = cholesky_in_place(system)
    _require_weight_felt(operation, breakdown, weight)
    return _unwhiten(second_moment, solve_cholesky(factor, whitened.mT).mT)


def _require_weight_felt(operation: str, breakdown: Breakdown | None, weight: float) -> None:
    """Refuse a λ that rounding swallows next to K C⁻¹ Kᵀ, where only λ keeps it regular."""
    if breakdown is not None:
        raise IllPosedError(
            f"{operation}: `preservation_weight` vanishes next to K C⁻¹ Kᵀ in float64, got "
            f"{weight} with {breakdown}. Raise it, or drop edits whose keys depend linearly on "
            "each other."
        )
