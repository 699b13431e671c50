"""Tensors of a GGUF file: read, and replaced in a copy that is the file byte for byte otherwise."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from editbench.files.tensor_files import view_bytes
from editbench.models.gguf_file import GgufFile

_PIECE = 2**24  # bytes


def read_tensor(file: GgufFile, name: str) -> Tensor:
    """A tensor of a file, dequantized to float32."""
    from gguf import GGMLQuantizationType, dequantize

    place = file.tensors[name]
    with file.path.open("rb") as content:
        content.seek(place.begin)
        stored = np.frombuffer(content.read(place.n_bytes), dtype=np.uint8)
    rows = stored.reshape(*place.shape[:-1], -1)
    values = dequantize(rows, GGMLQuantizationType[place.kind]).astype(np.float32)
    return torch.from_numpy(values.reshape(place.shape))


def write_with_replaced(file: GgufFile, path: Path, replaced: Mapping[str, Tensor]) -> None:
    """Copy a file, with other numbers in place of some tensors'.

    Of the file no more than a piece is in memory at once.

    Args:
        file: What to copy.
        path: A new file.
        replaced: By name, in float16 or float32, with the shape that the file's tensor has.

    Raises:
        OSError: It cannot be written.
    """
    from gguf import GGMLQuantizationType

    kinds, sizes = {}, {}
    for name, tensor in file.tensors.items():
        new = replaced.get(name)
        kinds[name] = tensor.kind if new is None else {2: "F16", 4: "F32"}[new.element_size()]
        sizes[name] = tensor.n_bytes if new is None else new.nbytes
    with file.path.open("rb") as source, path.open("wb") as target:
        _copy(source, target, file.fields_end)
        offset = 0
        for name, tensor in file.tensors.items():
            encoded, axes = name.encode(), tensor.shape[::-1]
            target.write(struct.pack("<Q", len(encoded)) + encoded)
            target.write(struct.pack(f"<I{len(axes)}Q", len(axes), *axes))
            target.write(struct.pack("<IQ", GGMLQuantizationType[kinds[name]], offset))
            offset += sizes[name] + -sizes[name] % file.alignment
        for name, tensor in file.tensors.items():
            target.write(bytes(-target.tell() % file.alignment))
            if name in replaced:
                target.write(view_bytes(replaced[name]).numpy().data)
            else:
                source.seek(tensor.begin)
                _copy(source, target, tensor.n_bytes)
        target.write(bytes(-target.tell() % file.alignment))


def _copy(source: IO[bytes], target: IO[bytes], n_bytes: int) -> None:
    while n_bytes:
        piece = source.read(min(n_bytes, _PIECE))
        if not piece:
            raise OSError(f"the file has become shorter while it was read: {source.name}")
        target.write(piece)
        n_bytes -= len(piece)
