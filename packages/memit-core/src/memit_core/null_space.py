"""Directions that ordinary keys hardly use."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from memit_core._linalg import copy_symmetric, find_float64_device
from memit_core._shapes import shape_checked
from memit_core.errors import MemitCoreError


@shape_checked
def find_null_space(
    second_moment: Float[Tensor, "d_key d_key"],
    threshold: float,
    unit: Literal["absolute", "share"] = "share",
) -> Float[Tensor, "d_key rank"]:
    """Find directions that ordinary keys hardly use: eigenvectors of C with small eigenvalues.

    Args:
        second_moment: C = E[k kᵀ] over ordinary keys.
        threshold: Which eigenvalues are small: those below it, or so many of all.
        unit: ``absolute``, an eigenvalue, which depends on the scale of keys; or ``share``, of the
            spectrum's dimensions.

    Returns:
        Orthonormal columns, float64, on the moment's device (on the CPU if that lacks float64).

    Raises:
        ShapeError: Not square, or not floating-point.
        IllPosedError: Not finite, or not symmetric.
        MemitCoreError: No direction is left, or `threshold` is out of range.
    """
    operation = "find_null_space"
    if unit == "share" and not 0 < threshold <= 1:
        raise MemitCoreError(f"{operation}: a share lies above 0 and up to 1, got {threshold}.")
    with torch.no_grad():
        device = find_float64_device(second_moment.device)
        copy = copy_symmetric(operation, "second_moment", second_moment, device)
        eigenvalues, vectors = torch.linalg.eigh(copy)
        is_small = eigenvalues < threshold
        rank = round(threshold * len(copy)) if unit == "share" else int(is_small.sum())
    if rank == 0:
        raise MemitCoreError(
            f"{operation}: no direction is left to write in, got threshold={threshold} ({unit}); "
            f"the smallest of {len(copy)} eigenvalues is {float(eigenvalues[0]):.3e} and their "
            f"median {float(eigenvalues.median()):.3e}. Raise the threshold."
        )
    return vectors[:, :rank].contiguous()
