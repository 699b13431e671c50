"""Second moments as the authors of ROME and MEMIT keep them: one ``.npz`` file for each layer.

``mom2.mom2`` is the sum of k kᵀ, ``mom2.count`` the number of tokens; the layer is in the file's
name, as in ``transformer.h.13.mlp.c_proj_float32_mom2_100000.npz``. EasyEdit and others write the
same. Nothing in a file says which model it is of.
"""

import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from editbench.errors import SecondMomentError
from editbench.files.seals import checksum, checksum_file
from editbench.models.architecture import ProjectionKind
from editbench.models.editable import EditableModel
from memit_core import IllPosedError, SecondMoment

SUFFIX = ".npz"

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
_LEAF = re.compile(r"([A-Za-z_]\w*?)_(?:float\d+|bfloat16)_mom2")
_ZIP = b"PK\x03\x04"
_UNREADABLE = (
    *(OSError, EOFError, TypeError, ValueError, RuntimeError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
_SUM, _COUNT = "mom2.mom2", "mom2.count"


def is_npz(path: Path) -> bool:
    """Whether a path that somebody gives as second moments is such a file, or a folder of them."""
    if path.is_dir() or path.suffix == SUFFIX:
        return True
    with suppress(OSError), path.open("rb") as file:
        return file.read(len(_ZIP)) == _ZIP
    return False


def list_npz(path: Path) -> list[Path]:
    """The files that a path stands for: itself, or those in the folder."""
    return sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]


def hash_moments(path: Path) -> str:
    """SHA-256 of a file of second moments, this kind or another, or of all in a folder.

    Raises:
        SecondMomentError: It cannot be read.
    """
    if not path.is_dir():
        return _hash_file(path)
    sums = "".join(f"{_hash_file(file)}  {file.name}\n" for file in list_npz(path))
    return checksum(sums.encode())


def _hash_file(path: Path) -> str:
    try:
        return checksum_file(path)
    except OSError as error:
        raise SecondMomentError(
            f"second moments: cannot read the file, got {str(path)!r} ({error.strerror}). "
            "Check the path, or leave it out to collect second moments anew."
        ) from error


def read_npz_moments(
    model: EditableModel, layers: Sequence[int], path: Path, module: ProjectionKind
) -> dict[int, Callable[[], Tensor]]:
    """Find the files of some layers, and check that what they hold can be this model's.

    Args:
        model: The model.
        layers: The layers.
        path: A file, or a folder of files.
        module: Whose output projection's inputs the keys have to be.

    Returns:
        For each layer what reads E[k kᵀ], `[d_key, d_key]`.

    Raises:
        SecondMomentError: A layer is missing or there twice, or a file cannot be read, has another
            width, or holds what cannot be a second moment.
    """
    found: dict[int, Path] = {}
    others: list[str] = []
    for file in list_npz(path):
        layer = _find_layer(file)
        projection = model.architecture.projection(layer, module).rpartition(".")[2]
        leaf = _find_leaf(file)
        if leaf is not None and leaf != projection:
            others.append(f"{file.name} of '{leaf}'")
            continue
        if layer in found:
            raise SecondMomentError(
                f"second moments: layer {layer} is there twice in {path}, got {found[layer].name} "
                f"and {file.name}. Leave one of them there."
            )
        found[layer] = file
    if missing := [layer for layer in layers if layer not in found]:
        apart = f" (and {', '.join(others)}, which is not asked for)" if others else ""
        raise SecondMomentError(
            f"second moments: {path} lacks {_name_layers(missing)}, got "
            f"{_name_layers(sorted(found))}{apart}; expected files named like "
            f"{model.architecture.projection(missing[0], module)}_float32_mom2_100000{SUFFIX}. "
            "Give a folder with a file for each layer, or choose other layers."
        )
    readers: dict[int, Callable[[], Tensor]] = {}
    for layer in layers:
        d_key = model.d_key(layer, module)
        file = found[layer]
        try:
            SecondMoment.from_moment(_read(file, d_key), n_tokens=None)
        except IllPosedError as error:
            raise SecondMomentError(f"second moments: layer {layer} of {file}: {error}") from error
        readers[layer] = partial(_read, file, d_key)
    warnings.warn(
        f"second moments: {path} is in memit's format, which does not say which model it was "
        f"collected from; only the shapes of {_name_layers(layers)} could be checked",
        stacklevel=3,
    )
    return readers


def _find_layer(file: Path) -> int:
    match = _LAYER.search(file.name)
    if match is None:
        raise SecondMomentError(
            f"second moments: the name of a file must say its layer, got {str(file)!r}; expected "
            f"one like model.layers.5.mlp.down_proj_float32_mom2_100000{SUFFIX}. Rename it."
        )
    return int(match[1])


def _find_leaf(file: Path) -> str | None:
    """The last part of the name of the module whose inputs a file is of, if its name says so."""
    match = _LEAF.search(file.name.rpartition(".")[0].rpartition(".")[2])
    return None if match is None else match[1]


def _read(file: Path, d_key: int) -> Tensor:
    """The mean that a file holds, [d_key, d_key], in the precision of the file."""
    try:
        with zipfile.ZipFile(file) as archive:
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"a wrong checksum of {damaged}")
        with np.load(file, allow_pickle=False) as arrays:
            if lacking := [name for name in (_SUM, _COUNT) if name not in arrays]:
                raise SecondMomentError(
                    f"second moments: {file} is no file of second moments, got arrays "
                    f"{', '.join(sorted(arrays)) or 'none'}; expected '{lacking[0]}' as well. Give "
                    "a file that memit, ROME or EasyEdit wrote."
                )
            total, count = arrays[_SUM], arrays[_COUNT]
    except _UNREADABLE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise SecondMomentError(
            f"second moments: cannot read {file}, got {reason}; expected an .npz file without "
            "pickled objects. Check the path, and whether the file is complete."
        ) from error
    if total.shape != (d_key, d_key) or total.dtype not in (np.float32, np.float64):
        raise SecondMomentError(
            f"second moments: '{_SUM}' in {file} has the wrong shape or dtype, got "
            f"{list(total.shape)} of {total.dtype}; expected [{d_key}, {d_key}] of float32 or "
            "float64. The file is of another model or module."
        )
    n_tokens = float(count.item()) if count.size == 1 and count.dtype.kind in "iuf" else 0.0
    if not 0 < n_tokens < float("inf"):
        raise SecondMomentError(
            f"second moments: '{_COUNT}' in {file} must be a positive count of tokens, got "
            f"{count.tolist()!r}. Find a complete file, or collect them with 'editbench stats'."
        )
    return torch.from_numpy(total).div_(n_tokens)


def _name_layers(layers: Sequence[int]) -> str:
    if not layers:
        return "no layer"
    noun = "layer" if len(layers) == 1 else "layers"
    return f"{noun} {', '.join(map(str, layers))}"
