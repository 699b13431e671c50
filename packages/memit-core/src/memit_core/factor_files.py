"""Factorized second moments on disk, so that each is factorized once.

One safetensors file for each: tensor ``factor`` is U with C = Uᵀ U, upper triangular, float64, what
is below the diagonal stored as zeros, so that the file can be mapped into memory and used as it
stands. The metadata may hold, under ``editbench``, a JSON object with ``provenance``.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from memit_core._float64 import find_float64_device
from memit_core._tensor_files import TensorFile, write_tensors
from memit_core._well_posed import require_finite
from memit_core.errors import MemitCoreError
from memit_core.factorize import FactorizedSecondMoment

_TENSOR_NAME: Final = "factor"


@dataclass(frozen=True, eq=False)
class StoredFactor:
    """What a file of a factorized second moment holds.

    Attributes:
        factorized: The second moment.
        provenance: Where it comes from, as given on saving; None if the file does not say.
    """

    factorized: FactorizedSecondMoment
    provenance: dict[str, Any] | None


def save_factor(
    path: str | os.PathLike[str],
    factorized: FactorizedSecondMoment,
    provenance: Mapping[str, Any] | None,
) -> None:
    """Write a factorized second moment to a file, whole or not at all.

    Args:
        path: File to create or replace; its folder must exist. It takes 8 d_key² bytes.
        factorized: The second moment.
        provenance: JSON object that says which second moment it is.

    Raises:
        MemitCoreError: `provenance` is not JSON, the file cannot be written, or safetensors is
            missing.
    """
    card = {} if provenance is None else {"provenance": dict(provenance)}
    upper = factorized.factor.mT.cpu().contiguous()
    write_tensors("save_factor", path, {_TENSOR_NAME: upper}, card)


def load_factor(
    path: str | os.PathLike[str], *, device: torch.device | str | None = None
) -> StoredFactor:
    """Read a file that `save_factor` wrote.

    On the CPU it is mapped into memory. The first time in a process it is read once, to check it.

    Args:
        path: The file.
        device: Where solves are to be done; the CPU if None.

    Raises:
        DamagedError: It is not the file that was written.
        IllPosedError: A number in it is not finite, or the diagonal not positive.
        MemitCoreError: The file cannot be read or breaks the format.
    """
    operation = f"load_factor: {path}"
    file = TensorFile("load_factor", path)
    if set(file.tensors) != {_TENSOR_NAME}:
        raise MemitCoreError(
            f"{operation}: not a factorized second moment, got tensors {sorted(file.tensors)}; "
            f"expected '{_TENSOR_NAME}'."
        )
    provenance = file.read_card(("provenance",))["provenance"]
    place = find_float64_device(torch.device("cpu" if device is None else device))
    upper = file.read(_TENSOR_NAME)
    try:
        factorized = FactorizedSecondMoment.from_factor(upper.to(place).mT)
    except MemitCoreError as error:
        raise type(error)(f"{operation}: {error}") from error
    file.check(_TENSOR_NAME, "numbers", lambda: require_finite(operation, _TENSOR_NAME, upper))
    return StoredFactor(factorized, provenance)
