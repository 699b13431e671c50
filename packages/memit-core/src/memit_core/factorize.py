"""A second moment, factorized once for many solves."""

import torch
from jaxtyping import Float
from torch import Tensor

from memit_core._float64 import find_float64_device
from memit_core._shapes import shape_checked
from memit_core._well_posed import (
    cholesky_in_place,
    copy_symmetric,
    require_no_negative_eigenvalue,
)
from memit_core.errors import IllPosedError, ShapeError


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
