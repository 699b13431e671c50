"""MEMIT's closed-form update, residual spreading, second moments and hooks."""

from memit_core.errors import (
    DamagedError,
    IllPosedError,
    IndefiniteError,
    MemitCoreError,
    ShapeError,
)
from memit_core.factor_files import StoredFactor, load_factor, save_factor
from memit_core.factorize import FactorizedSecondMoment
from memit_core.hooks import Captured, capture, intervene
from memit_core.moment_files import (
    SecondMomentFile,
    SecondMoments,
    load_second_moments,
    save_second_moments,
)
from memit_core.offload import find_device, in_memory
from memit_core.preservation import Preservation, find_null_space
from memit_core.sampling import estimate_excess
from memit_core.second_moment import SecondMoment
from memit_core.solve import solve_edits, solve_update
from memit_core.spread import spread_residuals
from memit_core.update_factors import UpdateFactors
from memit_core.weights import updated_weights

__version__ = "0.1.0"

__all__ = [
    "Captured",
    "DamagedError",
    "FactorizedSecondMoment",
    "IllPosedError",
    "IndefiniteError",
    "MemitCoreError",
    "Preservation",
    "SecondMoment",
    "SecondMomentFile",
    "SecondMoments",
    "ShapeError",
    "StoredFactor",
    "UpdateFactors",
    "capture",
    "estimate_excess",
    "find_device",
    "find_null_space",
    "in_memory",
    "intervene",
    "load_factor",
    "load_second_moments",
    "save_factor",
    "save_second_moments",
    "solve_edits",
    "solve_update",
    "spread_residuals",
    "updated_weights",
]
