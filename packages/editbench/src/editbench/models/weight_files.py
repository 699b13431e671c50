"""Files of weights, read and written one tensor at a time."""

import json
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from editbench.errors import ModelError
from editbench.files.tensor_files import view_bytes
from editbench.models.hub import one_line

_DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_ALIGNMENT = 8  # of the numbers behind a header


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a file, not read yet.

    Attributes:
        dtype: Of its numbers.
        shape: Its sizes.
        read: Reads it.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> "StoredTensor":
        """A tensor that is in memory."""
        return cls(tensor.dtype, tuple(tensor.shape), lambda: tensor)

    @property
    def n_bytes(self) -> int:
        """What its numbers take."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A file of weights.

    Attributes:
        path: Where it is.
        tensors: What it holds, by name, in the file's order.
        metadata: What its header says besides.
    """

    path: Path
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]

    @classmethod
    def open(cls, path: Path) -> "WeightFile":
        """Read the outline of a file: of safetensors, or pickled by torch.

        Pickles are read by torch's restricted reader, which runs no code.

        Raises:
            ModelError: The file cannot be read, or holds other things than tensors.
        """
        return _open_safetensors(path) if path.suffix == ".safetensors" else _open_pickled(path)


def write_safetensors(
    path: Path, tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file in which no two tensors are in memory at once.

    Args:
        path: A new file.
        tensors: What to write, in this order where all have one dtype; else larger numbers come
            first, which aligns them.
        metadata: What the header is to say besides.

    Raises:
        OSError: It cannot be written.
    """
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)  # stable
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.n_bytes
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    content += b" " * (-len(content) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(content).to_bytes(8, "little"))
        file.write(content)
        for _, tensor in ordered:
            file.write(view_bytes(tensor.read().cpu()).numpy().data)


def _open_safetensors(path: Path) -> WeightFile:
    """Outline a file that `check_folder` has let pass."""
    names = {name: dtype for dtype, name in _DTYPES.items()}
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, about in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if about["dtype"] not in names:
            raise ModelError(
                f"weights: unknown type of numbers in '{path}', got '{name}' in {about['dtype']}; "
                f"expected one of {', '.join(names)}."
            )
        tensors[name] = StoredTensor(
            names[about["dtype"]], tuple(about["shape"]), _reader(path, name)
        )
    return WeightFile(path, tensors, metadata)


def _reader(path: Path, name: str) -> Callable[[], Tensor]:
    def read() -> Tensor:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    return read


def _open_pickled(path: Path) -> WeightFile:
    found = _unpickle(path)
    tensors = {}
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor) or tensor.dtype not in _DTYPES:
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ModelError(
                f"weights: '{path}' holds what is no tensor of plain numbers, got '{name}': {got}. "
                "Save the model again with `save_pretrained`."
            )
        tensors[name] = StoredTensor.of(tensor)
    return WeightFile(path, tensors, {"format": "pt"})


def _unpickle(path: Path) -> Mapping[str, Any]:
    try:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # an old format, which cannot be read bit by bit
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ModelError(
            f"weights: '{path}' cannot be read, got {one_line(error)}. Fetch it again."
        ) from error
    if not isinstance(found, Mapping):
        raise ModelError(
            f"weights: '{path}' must hold tensors by name, got {type(found).__name__}. Save the "
            "model again with `save_pretrained`."
        )
    return found
