"""Second moments that were factorized once, and kept in the cache.

C is fixed, and its factorization is by far the dearest part of a small edit. A file of 8 d_key²
bytes for each layer spares it: a safetensors file whose tensor ``factor`` is U with C = Uᵀ U, upper
triangular, float64, what is below the diagonal stored as zeros, so that the file can be mapped into
memory and used as it stands. Its card holds ``provenance``.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editbench.errors import SecondMomentError
from editbench.files.cache_entries import JsonEntry, read_kept
from editbench.files.tensor_files import TensorFile, write_tensors
from editbench.models.out_of_memory import else_on_cpu
from editbench.second_moments.collection_files import alone
from editbench.second_moments.obtaining import LayerMoments
from memit_core import (
    FactorizedSecondMoment,
    IllPosedError,
    IndefiniteError,
    MemitCoreError,
    Preservation,
    find_float64_device,
)

_FACTOR = "factor"
_ORIGIN = ("model_fingerprint", "corpus_fingerprint", "n_tokens")


def require_factor(
    moments: LayerMoments, layer: int, cache: Path | None, device: torch.device
) -> Preservation:
    """`obtain_factor`, for solves that cannot do without; made for once where there is no cache.

    On the CPU, if the device has too little memory for it.

    Raises:
        SecondMomentError: It cannot be written, or the second moment is singular even so.
    """

    def make(device: torch.device) -> Preservation:
        factor = obtain_factor(moments, layer, cache, device)
        return _factorize(moments[layer], device) if factor is None else factor

    try:
        return else_on_cpu(f"factorizing second moments of layer {layer}", device, make)
    except MemitCoreError as error:
        where = f" of {moments.source}" if moments.source else ""
        raise SecondMomentError(f"second moments{where}, layer {layer}: {error}") from error


def obtain_factor(
    moments: LayerMoments, layer: int, cache: Path | None, device: torch.device
) -> Preservation | None:
    """Read a second moment's factors from the cache, or factorize it and keep them there.

    They are found by what the second moment is from and by the bits of its diagonal; where nobody
    knows what it is from, by all of its bits. Whoever wants the same at the same time waits.

    Args:
        moments: Second moments, of which that of `layer` is read.
        layer: The layer.
        cache: The cache folder.
        device: Where solves are to be done.

    Returns:
        C, factorized without the dimensions that ordinary text never uses: those are no axes of
        its basis. None where there is no cache, or where the second moment is singular.

    Raises:
        SecondMomentError: They cannot be written.
    """
    if cache is None:
        return None
    moment = moments[layer]
    path = cache / "factors" / f"{_name(moment, layer, moments.provenance)}.safetensors"
    singular = JsonEntry(path.with_suffix(".singular"), "a note on factors")  # do not try again
    live = find_live(moment, layer)
    if (found := _read(path, live, device)) is not None or singular.read(bool):
        return found
    if path.exists():  # damaged, and cannot be put aside
        return _factorize(moment, device)
    try:
        with alone(path):
            if (found := _read(path, live, device)) is not None or singular.read(bool):
                return found
            try:
                made = _factorize(moment, device)
            except IndefiniteError:
                raise
            except IllPosedError:
                singular.write(content=True)
                return None
            assert isinstance(made.second_moment, FactorizedSecondMoment)
            origin = {**(moments.provenance or {}), "layer": layer, "name": path.name}
            save_factor(path, made.second_moment, origin)
    except IndefiniteError:
        raise
    except (OSError, MemitCoreError, SecondMomentError) as error:
        reason = str(error).rstrip(".")
        raise SecondMomentError(
            f"second moments of layer {layer}: cannot keep factors: {reason}. Free space, choose "
            "another folder with --cache, or go without by --no-cache."
        ) from error
    return made


def _factorize(moment: Tensor, device: torch.device) -> Preservation:
    live = moment.diagonal() > 0
    try:
        return Preservation(moment, basis=live.to(device)).factorized(device)
    except IndefiniteError as error:
        raise error.at(int(live.nonzero()[error.row])) from error


def _name(moment: Tensor, layer: int, origin: Mapping[str, Any] | None) -> str:
    is_known = origin is not None and all(name in origin for name in _ORIGIN)
    digest = hashlib.sha256(json.dumps([layer, origin], sort_keys=True).encode())
    bits = moment.diagonal().contiguous() if is_known else moment.contiguous()
    digest.update(bits.numpy().data)
    return digest.hexdigest()[:32]


def _read(path: Path, live: Tensor, device: torch.device) -> Preservation | None:
    """What a file holds; None if it is not there, or damaged, and then it is put aside."""

    def read() -> Preservation:
        factorized, provenance = load_factor(path, device)
        if (provenance or {}).get("name") != path.name:
            raise SecondMomentError("it is of another second moment than its name says")
        return Preservation(factorized, basis=live.to(device))

    return read_kept(path, "factors of second moments", read)


def save_factor(
    path: Path, factorized: FactorizedSecondMoment, provenance: Mapping[str, Any]
) -> None:
    """Write a factorized second moment to a file, whole or not at all.

    Args:
        path: File to create or replace; its folder must exist. It takes 8 d_key² bytes.
        factorized: The second moment.
        provenance: JSON object that says which second moment it is.

    Raises:
        OSError: The file cannot be written.
    """
    upper = factorized.factor.mT.cpu().contiguous()
    write_tensors(path, {_FACTOR: upper}, {"provenance": dict(provenance)})


def load_factor(
    path: Path, device: torch.device
) -> tuple[FactorizedSecondMoment, dict[str, Any] | None]:
    """Read a file that `save_factor` wrote, and its provenance.

    On the CPU it is mapped into memory. The first time in a process it is read once, to check it.

    Args:
        path: The file.
        device: Where solves are to be done; the CPU in place of one that lacks float64.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not what was written, or no factor.
    """
    file = TensorFile(path)
    if set(file.tensors) != {_FACTOR}:
        raise ValueError(f"got tensors {sorted(file.tensors)}; expected '{_FACTOR}'")
    upper = file.read(_FACTOR)

    def require_finite() -> None:
        if not bool(torch.stack(torch.aminmax(upper)).isfinite().all()):
            raise ValueError("a number of the factor is not finite")

    file.check(_FACTOR, "numbers", require_finite)
    factorized = FactorizedSecondMoment.from_factor(upper.to(find_float64_device(device)).mT)
    return factorized, (file.card or {}).get("provenance")


def find_live(moment: Tensor, layer: int) -> Tensor:
    """Which dimensions ordinary text uses, bool `[d_key]`.

    Raises:
        SecondMomentError: None of them.
    """
    live = moment.diagonal() > 0
    if not bool(live.any()):
        raise SecondMomentError(
            f"second moments of layer {layer}: no dimension is ever used, got a diagonal of "
            f"{len(live)} zeros. Collect them from other text, or edit another layer."
        )
    return live
