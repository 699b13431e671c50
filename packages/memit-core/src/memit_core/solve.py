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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from memit_core._linalg import (
    Breakdown,
    add_gram,
    cholesky_in_place,
    copy_symmetric,
    find_float64_device,
    hand_back,
    require_finite,
    require_no_negative_eigenvalue,
    solve_cholesky,
    to_float64,
)
from memit_core._shapes import shape_checked
from memit_core.errors import IllPosedError, MemitCoreError, ShapeError
from memit_core.preservation import FactorizedSecondMoment, Preservation, unwhiten, whiten
from memit_core.update_factors import UpdateFactors

_ENTRIES_PER_CHUNK: Final = 2**25  # 256 MiB in float64


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
            solved = _System(operation, keys, wanted, preservation, slack, error, device).solve()
        if is_dense:
            return solved.mT.contiguous()
        return UpdateFactors(to_float64(residuals, device).mT, solved)


@dataclass(frozen=True)
class _System:
    """X = (αM + KᵀK)⁻¹ (KᵀT - αEᵀ), in the memory of few matrices.

    T is the residuals, and then X is Δᵀ; or it is left out, and then X is the update's right
    factor. Keys are widened to float64 a few at a time where T allows it, so that memory does not
    grow with their number. All is done in coordinates of the basis B, and for a factorized C in
    those where it is the identity.

    Attributes:
        operation: Public function to name in messages.
        keys: K `[n_edits, d_key]`.
        wanted: T `[n_edits, d_value]`; None is the identity.
        preservation: M and B.
        slack: α.
        error: E `[d_value, d_key]`, with T alone; None is zero.
        device: Where to solve.
    """

    operation: str
    keys: Tensor
    wanted: Tensor | None
    preservation: Preservation
    slack: float
    error: Tensor | None
    device: torch.device

    def solve(self) -> Tensor:
        """Return X `[d_key, columns of T]`, in float64, by the system that costs less."""
        if self._prefers_dual():
            return self._solve_dual()
        return self._solve_primal()

    def _prefers_dual(self) -> bool:
        """Whether the system of n_edits (and history) unknowns is the one.

        It needs factors of C, and costs for n rows in r dimensions, with N of history that were
        worked out before, 2nr² + 4rNn + 2N²n + 3rn² + n³/3 floating-point operations; the primal
        with factors r³/3 + 5nr² + 3Nr², and from a plain C r³/3 + 3nr² + Nr², which the dual would
        not beat by much. The primal takes a singular C, too, if the keys fill the gap.
        """
        if self.error is not None or self.slack == 0:
            return self.slack == 0
        if isinstance(self.preservation.second_moment, Tensor):
            return False
        history = self.preservation.history
        n, written = float(len(self.keys)), float(0 if history is None else len(history))
        r = float(self.preservation.rank(self.keys.shape[1]))
        fresh = float(self.preservation.n_fresh)
        dual = 2 * n * r**2 + 4 * r * written * n + 2 * written**2 * n + 3 * r * n**2 + n**3 / 3
        dual += fresh * r**2 + 2 * r * fresh * written + written**2 * fresh
        return dual <= r**3 / 3 + 5 * n * r**2 + 3 * written * r**2

    def _solve_primal(self) -> Tensor:
        """One rank × rank matrix beside the caller's C."""
        preservation, slack = self.preservation, self.slack
        plain = preservation.second_moment
        rounding: Tensor | float = 0.0
        if isinstance(plain, Tensor):
            system = copy_symmetric(self.operation, "second_moment", plain, self.device)
            beta, diagonal = slack * preservation.weight, slack * preservation.ridge
            rounding = torch.finfo(plain.dtype).eps * beta * system.diagonal()
        else:
            rank = preservation.rank(self.keys.shape[1])
            system = self.keys.new_zeros(rank, rank, dtype=torch.float64, device=self.device)
            beta, diagonal = 1.0, slack * preservation.scale
        right: Tensor | None = None
        for rows, targets in self._widen(self.keys, self.wanted, is_whole=self.wanted is None):
            add_gram(system, rows, beta=beta)
            beta = 1.0
            if targets is None:
                right = rows.mT
            else:
                right = rows.mT @ targets if right is None else right.addmm_(rows.mT, targets)
        assert right is not None
        if preservation.history is not None:
            for rows, _ in self._widen(preservation.history, None, is_whole=False):
                add_gram(system, rows, alpha=slack)
        if self.error is not None:
            right = right.sub(
                whiten(preservation, to_float64(self.error, self.device)), alpha=slack
            )
        if diagonal > 0:
            system.diagonal().add_(diagonal)
        factor, breakdown = cholesky_in_place(system, rounding)
        if breakdown is not None:
            if not isinstance(plain, Tensor):
                raise self._vanished(breakdown)
            require_no_negative_eigenvalue(self.operation, "second_moment", plain.to(self.device))
            raise IllPosedError(
                f"{self.operation}: λC + KᵀK is singular, got {breakdown}; expected a positive "
                "definite matrix. Collect `second_moment` from more tokens (more than d_key="
                f"{self.keys.shape[1]} at the very least, and as varied as can be)."
            )
        return unwhiten(preservation, solve_cholesky(factor, right))

    def _solve_dual(self) -> Tensor:
        """L⁻ᵀ W (αλI + WᵀW)⁻¹ T with W = L⁻¹ Kᵀ; with history, what it leaves of W on one side."""
        preservation, device = self.preservation, self.device
        whitened = whiten(preservation, to_float64(self.keys, device))
        system = whitened.new_zeros(len(self.keys), len(self.keys))
        add_gram(system, whitened)
        if preservation.history is not None:
            columns, inner = preservation.written(device)
            below = torch.linalg.solve_triangular(inner, columns.mT @ whitened, upper=False)
            system -= below.mT @ below
            whitened = whitened - columns @ torch.linalg.solve_triangular(
                inner.mT, below, upper=True
            )
        system.diagonal().add_(self.slack * preservation.scale)
        inner, breakdown = cholesky_in_place(system)
        if breakdown is not None and self.slack == 0:
            raise IllPosedError(
                f"{self.operation}: row {breakdown.pivot} of `keys` is zero or a "
                f"linear combination of the rows before it, got {breakdown}; expected linearly "
                "independent keys. Drop that edit, or give a slack, which weighs such edits "
                "against each other."
            )
        if breakdown is not None:
            raise self._vanished(breakdown)
        if self.wanted is None:
            return unwhiten(preservation, solve_cholesky(inner, whitened.mT).mT)
        targets = to_float64(self.wanted, device)
        return unwhiten(preservation, whitened @ solve_cholesky(inner, targets))

    def _widen(
        self, keys: Tensor, wanted: Tensor | None, *, is_whole: bool
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield keys in their coordinates and what is wanted of them, in float64: all, or a few."""
        n_rows = max(1, len(keys) if is_whole else _ENTRIES_PER_CHUNK // keys.shape[1])
        for start in range(0, max(1, len(keys)), n_rows):
            some = slice(start, start + n_rows)
            rows = whiten(self.preservation, to_float64(keys[some], self.device)).mT
            yield rows, None if wanted is None else to_float64(wanted[some], self.device)

    def _vanished(self, breakdown: Breakdown) -> IllPosedError:
        """A λ that rounding swallows next to K C⁻¹ Kᵀ, where only λ keeps it regular."""
        return IllPosedError(
            f"{self.operation}: the weight of what is preserved vanishes next to K C⁻¹ Kᵀ in "
            f"float64, got {self.slack * self.preservation.scale} with {breakdown}. Raise it, or "
            "drop edits whose keys depend linearly on each other."
        )
