"""Second moments on disk: one safetensors file for all layers of a model.

Tensor ``layers.<l>``, float32 or float64, is the second moment of layer l. The file's card may hold
``n_tokens`` (layer → count) and ``provenance`` (what model and corpus the tokens came from).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from editbench.errors import SecondMomentError
from editbench.files.tensor_files import DAMAGED, DamagedError, TensorFile, write_tensors
from memit_core import MemitCoreError, SecondMoment, check_second_moment

_TENSOR_NAME: Final = re.compile(r"layers\.(0|[1-9]\d*)")
_DTYPES: Final = (torch.float64, torch.float32)


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
    path: Path,
    moments: Mapping[int, SecondMoment],
    provenance: Mapping[str, Any] | None,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write second moments to one file, whole or not at all.

    Args:
        path: File to create or replace; its folder must exist.
        moments: By layer, from 0; each has seen tokens.
        provenance: JSON object that says which model, corpus and settings they come from.
        dtype: float32 halves the file; None keeps each moment's own dtype, and so its bits.

    Raises:
        SecondMomentError: The file cannot be written.
        MemitCoreError: A layer has seen no token.
    """
    ordered = sorted(moments.items())
    tensors = {f"layers.{n}": each.moment().to("cpu", dtype) for n, each in ordered}
    counts = {str(n): each.n_tokens for n, each in ordered if each.n_tokens is not None}
    card: dict[str, Any] = {"n_tokens": counts}
    if provenance is not None:
        card["provenance"] = dict(provenance)
    try:
        write_tensors(path, tensors, card)
    except OSError as error:
        raise SecondMomentError(
            f"second moments: cannot write the file, got {path} ({error}). Check that its folder "
            "exists, may be written to, and has space."
        ) from error


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

    def __init__(self, path: Path) -> None:
        """Read what the file says about itself, and none of its matrices.

        Args:
            path: File as `save_second_moments` writes it. Without metadata it can be read, too.

        Raises:
            SecondMomentError: The file cannot be read or breaks the format; the message names it.
        """
        self.path = Path(path)
        try:
            self._file = TensorFile(self.path)
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error
        self.shapes = dict(sorted(self._read_shapes().items()))
        if not self.shapes:
            raise self._refuse("holds no second moment, got no tensor 'layers.<l>'")
        card = self._file.card or {}
        for name in ("n_tokens", "provenance"):
            if not isinstance(card.get(name), dict | None):
                raise self._refuse(f"metadata '{name}' must be a JSON object, got {card[name]!r}")
        self.n_tokens: dict[str, int] = card.get("n_tokens") or {}
        self.provenance: dict[str, Any] | None = card.get("provenance")
        self.is_sealed = self._file.is_sealed
        for layer, count in self.n_tokens.items():
            if type(count) is not int:
                raise self._refuse(
                    "metadata 'n_tokens' must hold a count for each layer, got "
                    f"{count!r} for layer {layer}"
                )

    def _read_shapes(self) -> dict[int, tuple[int, ...]]:
        shapes: dict[int, tuple[int, ...]] = {}
        for name, (dtype, shape) in self._file.tensors.items():
            match = _TENSOR_NAME.fullmatch(name)
            if match is None:
                raise self._refuse(
                    f"not a file of second moments, got tensor '{name}'; expected 'layers.<l>' only"
                )
            if dtype not in _DTYPES:
                raise self._refuse(
                    f"tensor '{name}' has the wrong dtype, got {dtype}; expected torch.float64 or "
                    "torch.float32"
                )
            if len(shape) != 2 or shape[0] != shape[1]:
                raise self._refuse(
                    f"tensor '{name}' must be square, got {list(shape)}; expected [d_key, d_key]"
                )
            shapes[int(match[1])] = shape
        return shapes

    def read(self, layer: int) -> Tensor:
        """Return a layer's moment as it is in the file, [d_key, d_key], on the CPU.

        The file is mapped into memory, and read once to check it where it carries checksums.
        Whether the numbers make sense is left to `check`, and to every solve.

        Raises:
            SecondMomentError: It is not what was written.
        """
        try:
            return self._file.read(f"layers.{layer}")
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error

    def check(self, layer: int) -> None:
        """Refuse a layer's moment that is damaged or can be no second moment.

        It is read once, and not copied. A negative eigenvalue that no single entry gives away is
        left to the solve.

        Raises:
            SecondMomentError: Not what was written, not finite, not symmetric, no positive diagonal
                entry, or indefinite; the message names the file, the layer and the entry.
        """
        name = f"layers.{layer}"
        try:
            moment = self._file.map(name)
            self._file.check(name, "numbers", lambda: check_second_moment(moment))
        except MemitCoreError as error:
            try:
                self._file.read(name)
                damage = ""
            except (OSError, ValueError):
                damage = f" {DAMAGED}"
            raise self._refuse(f"layer {layer}: {error}{damage}") from error
        except OSError as error:
            raise self._unreadable(error) from error
        self.read(layer)

    def load(self, layer: int) -> SecondMoment:
        """Return a layer's moment as one that can be updated and merged.

        Raises:
            SecondMomentError: Not finite, or not symmetric; or the count of tokens is not positive.
        """
        try:
            count = self.n_tokens.get(str(layer))
            return SecondMoment.from_moment(self.read(layer), n_tokens=count)
        except MemitCoreError as error:
            raise self._refuse(f"layer {layer}: {error}") from error

    def _unreadable(self, error: Exception) -> SecondMomentError:
        if isinstance(error, DamagedError):
            return self._refuse(f"{error}. {DAMAGED}")
        return self._refuse(
            f"cannot be read as safetensors, got {error}. Check the path, and whether the file is "
            "complete"
        )

    def _refuse(self, problem: str) -> SecondMomentError:
        return SecondMomentError(f"second moments: {self.path}: {problem.rstrip('.')}.")


def load_second_moments(path: Path) -> SecondMoments:
    """Read a file of second moments, all layers at once.

    Args:
        path: File as `save_second_moments` writes it. Without metadata it loads, too: then the
            provenance and the token counts are None.

    Returns:
        The moments, each in the file's own dtype on the CPU, and their provenance.

    Raises:
        SecondMomentError: The file cannot be read or breaks the format; the message names it.
    """
    file = SecondMomentFile(path)
    return SecondMoments({layer: file.load(layer) for layer in file.shapes}, file.provenance)


def merge_shards(paths: Sequence[Path], path: Path) -> dict[int, SecondMoment]:
    """Join the shards of one collection into the file that it would have made without shards.

    Args:
        paths: Files of all its shards, in any order.
        path: The file to write.

    Raises:
        SecondMomentError: A file cannot be read, is no shard, or is of another collection; a shard
            is missing or given twice; or the file cannot be written.
    """
    files: dict[int, SecondMomentFile] = {}
    collection: dict[str, Any] | None = None
    n_shards = 0
    for each in paths:
        file = SecondMomentFile(each)
        provenance = dict(file.provenance or {})
        if "shard" not in provenance:
            raise SecondMomentError(
                f"merge shards: {each} is no shard. Collect shards with 'editbench stats --shard'."
            )
        index, n_shards = provenance.pop("shard")
        collection = collection or {**provenance, "n_shards": n_shards}
        provenance["n_shards"] = n_shards
        for name in {*collection, *provenance}:
            if collection.get(name) != provenance.get(name):
                raise SecondMomentError(
                    f"merge shards: {each} is of another collection than {paths[0]}, got {name} "
                    f"{provenance.get(name)!r}; expected {collection.get(name)!r}."
                )
        if index in files:
            raise SecondMomentError(
                f"merge shards: shard {index + 1}/{n_shards} is there twice, got {each} and "
                f"{files[index].path}."
            )
        files[index] = file
    missing = [f"{index + 1}/{n_shards}" for index in range(n_shards) if index not in files]
    if missing or collection is None:
        raise SecondMomentError(
            f"merge shards: not all shards are there, missing {', '.join(missing) or 'all'}."
        )
    del collection["n_shards"]
    first, *others = (files[index] for index in sorted(files))
    merged: dict[int, SecondMoment] = {}
    for layer in first.shapes:
        merged[layer] = first.load(layer)
        for other in others:
            merged[layer].merge(other.load(layer))
    save_second_moments(path, merged, collection)
    return merged
