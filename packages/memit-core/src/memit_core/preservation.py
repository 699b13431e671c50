"""What moving ordinary values costs, and where an update may act at all."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from memit_core._linalg import (
    add_gram,
    cholesky_in_place,
    copy_symmetric,
    find_float64_device,
    require_finite,
    require_no_negative_eigenvalue,
    to_float64,
)
from memit_core._shapes import shape_checked
from memit_core.errors import IllPosedError, MemitCoreError, ShapeError


@shape_checked
class FactorizedSecondMoment:
    """C = L Lᵀ, to be reused over any number of solves and preservation weights.

    C is fixed per layer, and its factorization is by far the dearest part of a small edit: with it
    in hand, n_edits « d_key edits cost O(n_edits d_key²) instead of O(d_key³).

    Attributes:
        factor: L, lower triangular, float64, [d_key, d_key]. Never write into it.
    """

    factor: Tensor

    def __init__(self, second_moment: Float[Tensor, "d_key d_key"]) -> None:
        """Factorize a copy, in float64, on the moment's device (on the CPU if that lacks float64).

        Args:
            second_moment: C = E[k kᵀ] of any float dtype. Asymmetry as small as float32 rounding
                is averaged out.

        Raises:
            ShapeError: Not square, or not floating-point.
            IllPosedError: Not finite, not symmetric, singular, or with a negative eigenvalue.
        """
        with torch.no_grad():
            copy = copy_symmetric(
                "FactorizedSecondMoment",
                "second_moment",
                second_moment,
                find_float64_device(second_moment.device),
            )
            rounding = torch.finfo(second_moment.dtype).eps * copy.diagonal()
            self.factor, breakdown = cholesky_in_place(copy, rounding)
        if breakdown is not None:
            place = second_moment.to(self.device)
            require_no_negative_eigenvalue("FactorizedSecondMoment", "second_moment", place)
            d_key = self.d_key
            raise IllPosedError(
                f"FactorizedSecondMoment: `second_moment` is singular, got {breakdown}; "
                "expected a positive definite matrix. Collect it from more tokens (more than "
                f"{d_key} at the very least, and as varied as can be), or solve the primal form "
                "with the plain matrix, if the keys fill the gap."
            )

    @classmethod
    @shape_checked
    def from_factor(cls, factor: Float[Tensor, "d_key d_key"]) -> "FactorizedSecondMoment":
        """Wrap L, computed earlier; it is not copied.

        Args:
            factor: Lower triangular, float64, on a device that has it. What is above the diagonal
                is never read.

        Raises:
            ShapeError: Not square, or not float64.
            IllPosedError: Its diagonal is not positive.
        """
        operation = "FactorizedSecondMoment.from_factor"
        if factor.dtype != torch.float64:
            raise ShapeError(f"{operation}: got {factor.dtype}; expected torch.float64.")
        diagonal = factor.diagonal()
        if not bool((diagonal > 0).all()):  # false for NaN, too
            raise IllPosedError(
                f"{operation}: the diagonal must be positive, got {float(diagonal.min())}. "
                "Factorize the second moment again."
            )
        wrapped = cls.__new__(cls)
        wrapped.factor = factor
        return wrapped

    @property
    def d_key(self) -> int:
        """Width of a key."""
        return self.factor.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the factor lives, and where solves with it are done."""
        return self.factor.device


@shape_checked
class Preservation:
    """The price tr(Δ M Δᵀ) of an update with M = λC + ρI + SᵀS, which acts inside span(B) alone.

    Second moment, ridge, history and basis are the ways to make one, and combine:

        MEMIT                               λC
        with history                        λC + SᵀS, S the keys of all that was written before
        a null space (AlphaEdit)            ρI in B, the directions that ordinary keys hardly use
        neurons that never fire             λC in B, the axes of those that do

    Attributes:
        second_moment: C in the coordinates of B: plain `[rank, rank]`, factorized, or None for 0.
        weight: λ.
        ridge: ρ.
        basis: B: orthonormal columns `[d_key, rank]`; or bool `[d_key]`, which axes; None: all.
        history: S `[n_written, d_key]`; None without.
    """

    def __init__(
        self,
        second_moment: Float[Tensor, "d_key d_key"] | FactorizedSecondMoment | None,
        *,
        weight: float = 1.0,
        ridge: float = 0.0,
        basis: Float[Tensor, "d_key rank"] | Bool[Tensor, "d_key"] | None = None,
        history: Float[Tensor, "n_edits d_key"] | None = None,
    ) -> None:
        """Put a price together; nothing is computed but a plain C in the coordinates of B.

        Args:
            second_moment: C = E[k kᵀ] over ordinary keys, plain; or BᵀCB, factorized: any λ and
                history go with it, but a ridge has to be in it (of C + ρ/λ I). None leaves ρI.
            weight: λ > 0.
            ridge: ρ ≥ 0, in the units of λC.
            basis: B, see the attributes.
            history: S, keys whose values are to stay as they are, one a row.

        Raises:
            ShapeError: Shapes disagree, or a tensor is not floating-point.
            IllPosedError: `history` is not finite.
            MemitCoreError: `weight` or `ridge` is out of range, or nothing has a price.
        """
        operation = "Preservation"
        if not (math.isfinite(weight) and weight > 0):
            raise MemitCoreError(
                f"{operation}: `weight` must be positive and finite, got {weight}. A slack of zero "
                "meets residuals exactly, whatever the weight."
            )
        if not (math.isfinite(ridge) and ridge >= 0):
            raise MemitCoreError(f"{operation}: `ridge` must not be negative, got {ridge}.")
        is_plain = isinstance(second_moment, Tensor)
        if not is_plain and (ridge > 0) == (second_moment is not None):
            raise MemitCoreError(
                f"{operation}: a ridge goes with a plain second moment or with none, got "
                f"ridge={ridge}. Factorize C + ρ/λ I instead, or give `ridge` where there is no C."
            )
        if basis is not None and basis.dtype == torch.bool and bool(basis.all()):
            basis = None
        history = history if history is not None and len(history) > 0 else None
        self.weight, self.ridge, self.basis, self.history = weight, ridge, basis, history
        self._written: tuple[Tensor, Tensor] | None = None  # of the first rows of history
        if history is not None:
            require_finite(operation, "history", history)
        if isinstance(second_moment, Tensor) and basis is not None:
            second_moment = _restrict(second_moment, basis)
        self.second_moment = second_moment
        if isinstance(second_moment, FactorizedSecondMoment):
            rank = self.rank(second_moment.d_key)
            if second_moment.d_key != rank:
                raise ShapeError(
                    f"{operation}: `second_moment` does not fit, got factors of "
                    f"{second_moment.d_key} dimensions; expected {rank}, those of `basis`. Check "
                    "that both belong to the same layer."
                )

    @shape_checked
    def with_history(self, keys: Float[Tensor, "n_edits d_key"]) -> "Preservation":
        """The same, but for values of some more keys, which are to stay as they are now.

        Rows of S are kept one by one, so whoever leaves one out again has a price that never knew
        of it. What a solve has worked out for the rows so far is not worked out again.
        """
        if len(keys) == 0:
            return self
        history = keys if self.history is None else torch.cat([self.history, keys.to(self.history)])
        return self._changed(self.second_moment, history)

    def factorized(self, device: torch.device | None = None) -> "Preservation":
        """The same with C, and its ridge, factorized; itself if it is, or if there is no C.

        Raises:
            IllPosedError: λC + ρI is singular.
        """
        plain = self.second_moment
        if not isinstance(plain, Tensor):
            return self
        plain = plain.to(plain.device if device is None else device)
        if self.ridge > 0:
            plain = plain.to(find_float64_device(plain.device), torch.float64, copy=True)
            plain.diagonal().add_(self.ridge / self.weight)
        return self._changed(FactorizedSecondMoment(plain), self.history)

    def absorbed(self) -> "Preservation":
        """The same with history a part of C: C + SᵀS/λ, or of its factors, L (λI + WWᵀ) Lᵀ.

        From then on a solve costs the same whatever was written before. Itself without history.
        """
        if self.history is None:
            return self
        moment = self.second_moment
        with torch.no_grad():
            if isinstance(moment, Tensor):
                device = find_float64_device(moment.device)
                rows = into_basis(self.basis, to_float64(self.history, device))
                whole = copy_symmetric("absorbed", "second_moment", moment, device)
                return self._changed(whole.addmm_(rows.mT, rows, alpha=1 / self.weight), None)
            device = self.device or find_float64_device(self.history.device)
            columns, _ = self.written(device)
            inner = columns.new_zeros(len(columns), len(columns))
            add_gram(inner, columns.mT)
            inner.diagonal().add_(self.scale)
            factor = _factor_inner(inner, self.scale).tril_()
            if moment is not None:
                factor = moment.factor @ factor
        changed = self._changed(FactorizedSecondMoment.from_factor(factor), None)
        changed.weight = 1.0
        return changed

    def written(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """History as solves take it, worked out once for each row: float64, on `device`.

        Returns:
            W = L⁻¹BᵀSᵀ `[rank, n_written]`, and the lower Cholesky factor of λI + WᵀW.
        """
        assert self.history is not None
        columns, inner = (
            (part.to(device) for part in self._written) if self._written else (None, None)
        )
        n_known = 0 if columns is None else columns.shape[1]
        if columns is None or inner is None or n_known < len(self.history):
            fresh = whiten(self, to_float64(self.history[n_known:], device))
            corner = fresh.mT @ fresh
            corner.diagonal().add_(self.scale)
            if columns is None or inner is None:
                columns, inner = fresh, _factor_inner(corner, self.scale)
            else:
                below = torch.linalg.solve_triangular(inner, columns.mT @ fresh, upper=False)
                corner -= below.mT @ below
                grown = inner.new_zeros(len(self.history), len(self.history))
                grown[:n_known, :n_known] = inner
                grown[n_known:, :n_known] = below.mT
                grown[n_known:, n_known:] = _factor_inner(corner, self.scale)
                columns, inner = torch.cat([columns, fresh], dim=1), grown
        self._written = columns, inner
        return columns, inner

    def to(self, device: torch.device) -> "Preservation":
        """The same, all of it on another device."""
        moment = self.second_moment
        if isinstance(moment, FactorizedSecondMoment):
            moment = FactorizedSecondMoment.from_factor(moment.factor.to(device))
        elif moment is not None:
            moment = moment.to(device)
        moved = self._changed(moment, None if self.history is None else self.history.to(device))
        moved.basis = None if self.basis is None else self.basis.to(device)
        if self._written is not None:
            columns, inner = self._written
            moved._written = columns.to(device), inner.to(device)
        return moved

    @shape_checked
    def times(self, update: Float[Tensor, "d_value d_key"]) -> Float[Tensor, "d_value d_key"]:
        """Return Δ M for an update inside span(B), in float64 on the update's device.

        With `post` what was made of a solution Δ, E = (post − Δ)(M + KᵀK/α) is the error to feed
        back into the next one.
        """
        device = find_float64_device(update.device)
        wide = update.to(device, torch.float64)
        inner = into_basis(self.basis, wide)
        moved = self.ridge * inner
        if isinstance(self.second_moment, FactorizedSecondMoment):
            factor = self.second_moment.factor.to(device)
            moved = self.weight * (inner @ factor) @ factor.mT
        elif self.second_moment is not None:
            moment = copy_symmetric("times", "second_moment", self.second_moment, device)
            moved = moved + self.weight * inner @ moment
        if self.history is not None:
            rows = self.history.to(wide)
            moved = moved + into_basis(self.basis, (wide @ rows.mT) @ rows)
        return out_of_basis(self.basis, moved.mT).mT

    @property
    def d_key(self) -> int | None:
        """Width of a key; None if any is fine."""
        if self.basis is not None:
            return len(self.basis)
        if self.second_moment is None:
            return None if self.history is None else self.history.shape[1]
        if isinstance(self.second_moment, Tensor):
            return len(self.second_moment)
        return self.second_moment.d_key

    def rank(self, d_key: int) -> int:
        """Dimensions of span(B), where keys have `d_key`."""
        if self.basis is None:
            return d_key
        return int(self.basis.sum()) if self.basis.dtype == torch.bool else self.basis.shape[1]

    @property
    def n_fresh(self) -> int:
        """Rows of history that no solve has worked out yet."""
        n_known = self._written[0].shape[1] if self._written else 0
        return 0 if self.history is None else len(self.history) - n_known

    @property
    def scale(self) -> float:
        """What the part with factors is multiplied by: λ, or ρ where there is no C."""
        return self.ridge if self.second_moment is None else self.weight

    @property
    def device(self) -> torch.device | None:
        """Where solves have to be done: where the factors are; None if anywhere."""
        if isinstance(self.second_moment, FactorizedSecondMoment):
            return self.second_moment.device
        return None

    def _changed(
        self, second_moment: Tensor | FactorizedSecondMoment | None, history: Tensor | None
    ) -> "Preservation":
        """A copy with another form of C, already in the coordinates of B, and another S."""
        changed = Preservation.__new__(Preservation)
        changed.__dict__.update(self.__dict__, second_moment=second_moment, history=history)
        if second_moment is not self.second_moment:
            changed._written = None
        if isinstance(second_moment, FactorizedSecondMoment):
            changed.ridge = 0.0  # it is in the factors
        return changed


def into_basis(basis: Tensor | None, rows: Tensor) -> Tensor:
    """Coordinates of rows `[n, d_key]` in a basis: `[n, rank]`."""
    if basis is None:
        return rows
    basis = basis.to(rows.device)
    return rows[:, basis] if basis.dtype == torch.bool else rows @ basis.to(rows.dtype)


def out_of_basis(basis: Tensor | None, columns: Tensor) -> Tensor:
    """Columns `[d_key, n]` that have these coordinates `[rank, n]` in a basis."""
    if basis is None:
        return columns
    basis = basis.to(columns.device)
    if basis.dtype != torch.bool:
        return basis.to(columns.dtype) @ columns
    spread = columns.new_zeros(len(basis), columns.shape[1])
    spread[basis] = columns
    return spread


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


def _factor_inner(matrix: Tensor, scale: float) -> Tensor:
    """The lower Cholesky factor of what history adds to `scale`·I."""
    factor, breakdown = cholesky_in_place(matrix.contiguous())
    if breakdown is not None:
        raise IllPosedError(
            "history: the weight of what is preserved vanishes next to S C⁻¹ Sᵀ in float64, got "
            f"{scale} with {breakdown}. Raise it."
        )
    return factor


def _restrict(moment: Tensor, basis: Tensor) -> Tensor:
    """C in the coordinates of B."""
    if basis.dtype == torch.bool:
        place = basis.nonzero()[:, 0].to(moment.device)
        return moment[place[:, None], place]
    wide = basis.to(moment.device, torch.float64)
    return wide.mT @ moment.double() @ wide
