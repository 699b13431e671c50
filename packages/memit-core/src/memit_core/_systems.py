"""The linear systems behind an update, X = (αM + KᵀK)⁻¹ (KᵀT - αEᵀ), in the memory of few matrices.

T is the residuals, and then X is Δᵀ; or it is left out, and then X is the update's right factor.
Keys are widened to float64 a few at a time where T allows it, so that memory does not grow with
their number. All is done in coordinates of the basis B, and for a factorized C in those where it is
the identity.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

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
from memit_core.preservation import Preservation, into_basis, out_of_basis

_ENTRIES_PER_CHUNK: Final = 2**25  # 256 MiB in float64


@dataclass(frozen=True)
class System:
    """What is to be solved.

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

        It needs factors of C, and costs 2Nr² + 3rN² + N³/3 floating-point operations for N rows in
        r dimensions; the primal with factors r³/3 + 5Nr², and from a plain C r³/3 + 3Nr², which the
        dual would not beat by much. The primal takes a singular C, too, if the keys fill the gap.
        """
        if self.error is not None or self.slack == 0:
            return self.slack == 0
        if isinstance(self.preservation.second_moment, Tensor):
            return False
        history = self.preservation.history
        n = float(len(self.keys) + (0 if history is None else len(history)))
        r = float(self.preservation.rank(self.keys.shape[1]))
        return 2 * n * r**2 + 3 * r * n**2 + n**3 / 3 <= r**3 / 3 + 5 * n * r**2

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
        """L⁻ᵀ W (αλI + WᵀW)⁻¹ T with W = L⁻¹ Kᵀ; rows of history are keys with a slack of one."""
        preservation, device = self.preservation, self.device
        rows, n_written = to_float64(self.keys, device), 0
        if preservation.history is not None:
            n_written = len(preservation.history)
            rows = torch.cat([to_float64(preservation.history, device), rows])
        whitened = whiten(preservation, rows)
        system = whitened.new_zeros(len(rows), len(rows))
        add_gram(system, whitened)
        system.diagonal()[:n_written].add_(preservation.scale)
        system.diagonal()[n_written:].add_(self.slack * preservation.scale)
        inner, breakdown = cholesky_in_place(system)
        if breakdown is not None and self.slack == 0:
            raise IllPosedError(
                f"{self.operation}: row {breakdown.pivot - n_written} of `keys` is zero or a "
                f"linear combination of the rows before it, got {breakdown}; expected linearly "
                "independent keys. Drop that edit, or give a slack, which weighs such edits "
                "against each other."
            )
        if breakdown is not None:
            raise self._vanished(breakdown)
        if self.wanted is None:
            right = solve_cholesky(inner, whitened.mT)[n_written:].mT
            return unwhiten(preservation, right)
        targets = to_float64(self.wanted, device)
        if n_written > 0:
            targets = torch.cat([targets.new_zeros(n_written, targets.shape[1]), targets])
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


def whiten(preservation: Preservation, rows: Tensor) -> Tensor:
    """Return L⁻¹ Bᵀ Kᵀ, [rank, n]: rows where C, if it has factors, is the identity."""
    columns = into_basis(preservation.basis, rows).mT
    moment = preservation.second_moment
    if not isinstance(moment, FactorizedSecondMoment):
        return columns
    return torch.linalg.solve_triangular(moment.factor, columns, upper=False)


def unwhiten(preservation: Preservation, columns: Tensor) -> Tensor:
    """Return B L⁻ᵀ X, [d_key, n]."""
    moment = preservation.second_moment
    if isinstance(moment, FactorizedSecondMoment):
        columns = torch.linalg.solve_triangular(moment.factor.mT, columns, upper=True)
    return out_of_basis(preservation.basis, columns)


def to_float64(rows: Tensor, device: torch.device) -> Tensor:
    """Copy to float64, so that no result shares memory with an argument."""
    return rows.to(device=device, dtype=torch.float64, copy=True)
