"""A model's folder, written anew with some tensors replaced and everything else as it is."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editbench.files.whole_files import write_whole, writing_whole
from editbench.models.folder import find_weight_files
from editbench.models.weight_files import StoredTensor, WeightFile, write_safetensors

Place = tuple[Path, str]
"""A file of weights, and the name of a tensor in it."""

# Files that may hold the weights once more, and would hold them unedited.
_OTHER_WEIGHTS = re.compile(
    r"\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|ot|gguf|ggml|onnx|onnx_data|tflite|mlmodel)$"
)
_INDEX = ".index.json"
_DTYPE_FIELDS = ("torch_dtype", "dtype")


@dataclass(frozen=True, slots=True)
class Precision:
    """The precision that a folder is written in.

    Attributes:
        dtype: Of all floating-point tensors; None for the one that each has.
        kept: Parts of names of tensors that keep theirs: the model's class wants them in float32.
    """

    dtype: torch.dtype | None = None
    kept: Sequence[str] = ()

    def of(self, name: str, stored: torch.dtype) -> torch.dtype:
        """What a tensor is written in."""
        is_kept = any(part in name for part in self.kept)
        return (
            stored if self.dtype is None or is_kept or not stored.is_floating_point else self.dtype
        )


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What a folder with a model holds.

    Attributes:
        path: The folder.
        weights: The files that transformers takes the weights from.
        others: What comes along as it is, relative to the folder.
        left_out: What may hold the same weights in another form, relative to the folder.
    """

    path: Path
    weights: tuple[WeightFile, ...]
    others: tuple[Path, ...]
    left_out: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> "ModelFolder":
        """Look through a folder that a model was loaded from.

        Raises:
            ModelError: A file of weights cannot be read.
        """
        weights = find_weight_files(path, name=str(path), allow_pickle=True)
        indices = [file for file in path.glob(f"*{_INDEX}") if _shards(file) == set(weights)]
        others: list[Path] = []
        left_out: list[str] = []
        for file in _walk(path):
            relative = file.relative_to(path)
            if file in weights or file in indices:
                continue
            is_alike = _OTHER_WEIGHTS.search(file.name) or file.name.endswith(_INDEX)
            if is_alike or not file.is_file():
                left_out.append(str(relative))
            else:
                others.append(relative)
        return cls(path, tuple(map(WeightFile.open, weights)), tuple(others), tuple(left_out))

    @property
    def tensors(self) -> dict[Place, StoredTensor]:
        """All tensors of the model."""
        return {
            (file.path, name): tensor
            for file in self.weights
            for name, tensor in file.tensors.items()
        }

    def is_changed_by(self, precision: Precision) -> bool:
        """Whether any tensor is in another precision."""
        return any(
            precision.of(name, stored.dtype) != stored.dtype
            for (_, name), stored in self.tensors.items()
        )

    def write(self, folder: Path, tensors: Mapping[Place, Tensor], precision: Precision) -> None:
        """Write the folder, with `tensors` in place of its own, the others in `precision`.

        `folder` may be the folder itself.

        Raises:
            OSError: It cannot be written.
        """
        is_elsewhere = folder != self.path
        for relative in self.others if is_elsewhere else ():
            _copy(self.path / relative, folder / relative)
        for file in self.weights:
            planned = {
                name: StoredTensor.of(tensors[file.path, name])
                if (file.path, name) in tensors
                else _converted(stored, precision.of(name, stored.dtype))
                for name, stored in file.tensors.items()
            }
            target = folder / _safe_name(str(file.path.relative_to(self.path)))
            if planned != file.tensors or target.name != file.path.name:
                target.parent.mkdir(parents=True, exist_ok=True)
                with writing_whole(target) as unfinished:
                    write_safetensors(unfinished, planned, file.metadata)
            elif is_elsewhere:
                _copy(file.path, target)
        self._write_indices(folder, precision)
        if precision.dtype is not None and self.is_changed_by(precision):
            _state_dtype(folder / "config.json", precision.dtype)

    def _write_indices(self, folder: Path, precision: Precision) -> None:
        """Write what says which shard holds what: as it is, where it still is right."""
        files = {file.path for file in self.weights}
        for path in self.path.glob(f"*{_INDEX}"):
            if _shards(path) != files:
                continue
            target = folder / _safe_name(path.name)
            if target.name == path.name and not self.is_changed_by(precision):
                if folder != self.path:
                    _copy(path, target)
                continue
            index = json.loads(path.read_text(encoding="utf-8"))
            index["weight_map"] = {
                name: _safe_name(shard) for name, shard in index["weight_map"].items()
            }
            n_bytes = sum(
                _converted(stored, precision.of(name, stored.dtype)).n_bytes
                for (_, name), stored in self.tensors.items()
            )
            index["metadata"] = {**(index.get("metadata") or {}), "total_size": n_bytes}
            _write_json(target, index)


def _converted(stored: StoredTensor, dtype: torch.dtype) -> StoredTensor:
    if dtype == stored.dtype:
        return stored
    return StoredTensor(dtype, stored.shape, lambda: stored.read().to(dtype))


def _shards(index: Path) -> set[Path]:
    """The files that an index names; none if it is no index."""
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return {index.parent / shard for shard in found}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _safe_name(name: str) -> str:
    """What a file of pickled weights, or its index, is called as safetensors."""
    return re.sub(r"^pytorch_model(.*)\.bin", r"model\1.safetensors", name)


def _walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, through links, except below hidden folders."""
    seen = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        here = Path(root)
        seen.add(here.resolve())
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith((".", "__pycache__")) and (here / name).resolve() not in seen
        )
        yield from (here / name for name in sorted(files))


def _copy(source: Path, target: Path) -> None:
    """Copy a file, not a link to it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with writing_whole(target) as unfinished:
        shutil.copyfile(source, unfinished)


def _state_dtype(path: Path, dtype: torch.dtype) -> None:
    """Let a configuration say in which precision the weights are, wherever it says one."""

    def stated(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        return {
            key: name if key in _DTYPE_FIELDS and isinstance(value, str) else stated(value)
            for key, value in part.items()
        }

    name = str(dtype).removeprefix("torch.")
    config = json.loads(path.read_text(encoding="utf-8"))
    if not any(field in config for field in _DTYPE_FIELDS):
        config[_DTYPE_FIELDS[0]] = name  # all versions of transformers read this one
    _write_json(path, stated(config))


def _write_json(path: Path, content: Any) -> None:
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
