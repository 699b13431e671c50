"""Second moments on disk: one safetensors file for all layers of a model.

Tensor ``layers.<l>``, float32 or float64, is the second moment of layer l. The file's metadata may
hold, under ``editbench``, a JSON object with ``n_tokens`` (layer → count) and ``provenance`` (what
model and corpus the tokens came from). What is written carries checksums; see
`memit_core.checksums`.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from memit_core._tensor_files import TensorFile, import_safetensors, write_tensors
from memit_core._well_posed import require_second_moment
from memit_core.checksums import DAMAGED
from memit_core.errors import DamagedError, IllPosedError, MemitCoreError, ShapeError
from memit_core.second_moment import DTYPES, SecondMoment

_TENSOR_NAME: Final = re.compile(r"layers\.(0|[1-9]\d*)")


@dataclass(frozen=True, eq=False)
class SecondMoments:
    """What a file of second moments holds.

    Attributes:
        moments: By layer, ascending.
        provenance: Where they come from, as given on saving; None if the file does not say. Check
            it against your model before you trust the moments.
    """

    moments: dict[int, SecondMoment]
    provenance: dict[str, Any] | None


def save_second_moments(
    path: str | os.PathLike[str],
    moments: Mapping[int, SecondMoment],
    provenance: Mapping[str, Any] | None,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write second moments to one file, whole or not at all.

    Args:
        path: File to create or replace; its folder must exist.
        moments: By layer.
        provenance: JSON object that says which model, corpus and settings they come from.
        dtype: float32 halves the file; None keeps each moment's own dtype, and so its bits.

    Raises:
        MemitCoreError: There is nothing to save, a layer has seen no token, `provenance` is not
            JSON, `dtype` is another one, the file cannot be written, or safetensors is missing.
    """
    operation = "save_second_moments"
    import_safetensors(operation)  # before anything is copied
    if not moments:
        raise MemitCoreError(f"{operation}: there is nothing to save, got no layer.")
    if dtype is not None and dtype not in DTYPES:
        raise MemitCoreError(
            f"{operation}: `dtype` is too narrow, got {dtype}; expected torch.float64 or "
            "torch.float32."
        )
    tensors = {}
    for layer, second_moment in sorted(moments.items()):
        if layer < 0 or second_moment.n_tokens == 0:
            raise MemitCoreError(
                f"{operation}: a layer must count from 0 and have seen tokens, got layer {layer} "
                f"with n_tokens={second_moment.n_tokens}."
            )
        tensors[f"layers.{layer}"] = second_moment.moment().to(device="cpu", dtype=dtype)
    counts = {str(layer): moments[layer].n_tokens for layer in sorted(moments)}
    card: dict[str, Any] = {"n_tokens": {k: n for k, n in counts.items() if n is not None}}
    if provenance is not None:
        card["provenance"] = dict(provenance)
    write_tensors(operation, path, tensors, card)


class SecondMomentFile:
    """A file of second moments, of which one layer at a time is read.

    At d_key = 16384 a layer takes 2 GiB: where several are needed one after another, read each when
    its turn has come.

    Attributes:
        path: The file.
        provenance: Where the moments come from, as given on saving; None if the file does not say.
        n_tokens: Tokens that each layer is the mean over, where the file says so.
        shapes: Shape of each layer's tensor, layers ascending.
        is_sealed: Whether the file carries checksums, which what is read is checked against.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read what the file says about itself, and none of its matrices.

        Args:
            path: File as `save_second_moments` writes it. Without metadata it can be read, too.

        Raises:
            MemitCoreError: The file cannot be read or breaks the format; the message names it.
        """
        self.path = os.fspath(path)
        operation = f"load_second_moments: {self.path}"
        self._file = TensorFile("load_second_moments", self.path)
        shapes = {}
        for name, (dtype, shape) in self._file.tensors.items():
            match = _TENSOR_NAME.fullmatch(name)
            if match is None:
                raise MemitCoreError(
                    f"{operation}: not a file of second moments, got tensor '{name}'; expected "
                    "'layers.<l>' only."
                )
            if dtype not in DTYPES:
                raise MemitCoreError(
                    f"{operation}: tensor '{name}' has the wrong dtype, got {dtype}; expected "
                    "torch.float64 or torch.float32."
                )
            if len(shape) != 2 or shape[0] != shape[1]:
                raise ShapeError(
                    f"{operation}: tensor '{name}' must be square, got "
                    f"{list(shape)}; expected [d_key, d_key]."
                )
            shapes[int(match[1])] = shape
        if not shapes:
            raise MemitCoreError(
                f"{operation}: holds no second moment, got no tensor 'layers.<l>'."
            )
        self.shapes = dict(sorted(shapes.items()))
        card = self._file.read_card(("n_tokens", "provenance"))
        for layer, count in (card["n_tokens"] or {}).items():
            if type(count) is not int:
                raise MemitCoreError(
                    f"{operation}: metadata 'n_tokens' must hold a count for each layer, got "
                    f"{count!r} for layer {layer}."
                )
        self.n_tokens: dict[str, int] = card["n_tokens"] or {}
        self.provenance: dict[str, Any] | None = card["provenance"]
        self.is_sealed = self._file.is_sealed

    def read(self, layer: int) -> Tensor:
        """Return a layer's moment as it is in the file, [d_key, d_key], on the CPU.

        The file is mapped into memory, and read once to check it where it carries checksums.
        Whether the numbers make sense is left to `check`, and to every solve.

        Raises:
            DamagedError: It is not what was written.
        """
        return self._file.read(f"layers.{layer}")

    def check(self, layer: int) -> None:
        """Refuse a layer's moment that is damaged or can be no second moment.

        It is read once, and not copied. A negative eigenvalue that no single entry gives away is
        left to the solve.

        Raises:
            IllPosedError: Not finite, not symmetric, no positive diagonal entry, or indefinite; the
                message names the file, the layer and the entry.
            DamagedError: It is not what was written.
        """
        moment = self._file.map(f"layers.{layer}")
        where = f"load_second_moments: {self.path}: layer {layer}"
        try:
            self._file.check(
                f"layers.{layer}", "numbers", lambda: require_second_moment(where, "moment", moment)
            )
        except IllPosedError as error:
            try:
                self.read(layer)
            except DamagedError as damage:
                raise IllPosedError(f"{error} {DAMAGED}") from damage
            raise
        self.read(layer)

    def load(self, layer: int) -> SecondMoment:
        """Return a layer's moment as one that can be updated and merged.

        Raises:
            IllPosedError: Not finite, or not symmetric.
            MemitCoreError: The count of tokens is not positive.
        """
        try:
            count = self.n_tokens.get(str(layer))
            return SecondMoment.from_moment(self.read(layer), n_tokens=count)
        except MemitCoreError as error:
            raise type(error)(
                f"load_second_moments: {self.path}: layer {layer}: {error}"
            ) from error


def load_second_moments(path: str | os.PathLike[str]) -> SecondMoments:
    """Read a file of second moments, all layers at once.

    Args:
        path: File as `save_second_moments` writes it. Without metadata it loads, too: then the
            provenance and the token counts are None.

    Returns:
        The moments, each in the file's own dtype on the CPU, and their provenance.

    Raises:
        MemitCoreError: The file cannot be read or breaks the format; the message names it.
    """
    file = SecondMomentFile(path)
    return SecondMoments({layer: file.load(layer) for layer in file.shapes}, file.provenance)
