"""MEMIT's closed-form update, residual spreading, second moments and hooks."""

from memit_core._linalg import find_float64_device
from memit_core.errors import IllPosedError, IndefiniteError, MemitCoreError, ShapeError
from memit_core.hooks import Captured, capture, intervene
from memit_core.null_space import find_null_space
from memit_core.preservation import FactorizedSecondMoment, Preservation
from memit_core.sampling import estimate_excess
from memit_core.second_moment import SecondMoment, check_second_moment
from memit_core.solve import solve_edits, solve_update
from memit_core.spread import spread_residuals
from memit_core.update_factors import UpdateFactors
from memit_core.weights import updated_weights

__version__ = "0.1.0"

__all__ = [
    "Captured",
    "FactorizedSecondMoment",
    "IllPosedError",
    "IndefiniteError",
    "MemitCoreError",
    "Preservation",
    "SecondMoment",
    "ShapeError",
    "UpdateFactors",
    "capture",
    "check_second_moment",
    "estimate_excess",
    "find_float64_device",
    "find_null_space",
    "intervene",
    "solve_edits",
    "solve_update",
    "spread_residuals",
    "updated_weights",
]
