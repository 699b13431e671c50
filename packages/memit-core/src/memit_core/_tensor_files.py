"""safetensors files with a card: a JSON object in the metadata, under ``editbench``.

The card carries checksums, and what is read is checked against them. Files of other programs, and
those written before there were checksums, have none and are read as they are.

safetensors is an extra, for those who keep things in files; it is imported on demand.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor

from memit_core.checksums import DAMAGED, check_names, check_tensor, seal_card, unseal_card
from memit_core.errors import DamagedError, MemitCoreError
from memit_core.whole_files import writing_whole

_METADATA_KEY: Final = "editbench"

# What this process has checked: which file, as it was then, which tensor, and what about it.
_checked: set[tuple[object, ...]] = set()


def write_tensors(
    operation: str,
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    card: Mapping[str, Any],
) -> None:
    """Write a file, whole or not at all.

    Args:
        operation: Public function to name in messages.
        path: File to create or replace; its folder must exist.
        tensors: By name; contiguous, on the CPU.
        card: JSON object.

    Raises:
        MemitCoreError: The card's `provenance` is not JSON, the file cannot be written, or
            safetensors is missing.
    """
    safetensors = import_safetensors(operation)
    try:
        sealed = seal_card(card, tensors)
        metadata = {_METADATA_KEY: json.dumps(sealed, sort_keys=True, allow_nan=False)}
    except (TypeError, ValueError) as error:
        raise MemitCoreError(
            f"{operation}: `provenance` is not JSON, got {card['provenance']!r} ({error}). Use "
            "strings, numbers, lists and dictionaries only."
        ) from error
    try:
        with writing_whole(Path(path)) as partial:
            safetensors.torch.save_file(dict(tensors), partial, metadata=metadata)
    except (OSError, safetensors.SafetensorError) as error:
        raise MemitCoreError(
            f"{operation}: cannot write the file, got {path} ({error}). Check that its folder "
            "exists, may be written to, and has space."
        ) from error


class TensorFile:
    """A file whose tensors are read one at a time.

    Args:
        operation: Public function to name in messages.
        path: The file.

    Attributes:
        tensors: Name to dtype and shape.
        is_sealed: Whether the file carries checksums.

    Raises:
        DamagedError: The metadata is not what was written.
        MemitCoreError: The file cannot be read, or safetensors is missing.
    """

    def __init__(self, operation: str, path: str | os.PathLike[str]) -> None:
        self._safetensors = import_safetensors(operation)
        self._operation = f"{operation}: {path}"
        self._path = path
        self.tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        try:
            with self._safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                for name in file.keys():  # noqa: SIM118 (not a dictionary)
                    tensor = file.get_tensor(name)  # mapped: nothing is read yet
                    self.tensors[name] = (tensor.dtype, tuple(tensor.shape))
        except (OSError, self._safetensors.SafetensorError) as error:
            raise self._unreadable(error) from error
        self._card: dict[str, Any] = {}
        self._sums: dict[str, str] | None = None
        if _METADATA_KEY in metadata:
            try:
                self._card, self._sums = unseal_card(self._parse(metadata[_METADATA_KEY]))
                if self._sums is not None:
                    check_names(self._sums, self.tensors)
            except DamagedError as error:
                raise self._damaged(error) from error
        self.is_sealed = self._sums is not None

    def read(self, name: str) -> Tensor:
        """Map a tensor into memory; what is written into it does not reach the file.

        The first time in a process it is checked, for which all of it is read.

        Raises:
            DamagedError: It is not the tensor that was written.
            MemitCoreError: The file cannot be read.
        """
        tensor = self.map(name)
        self.check(name, "checksum", lambda: self._check_sum(name, tensor))
        return tensor

    def check(self, name: str, what: str, require: Callable[[], None]) -> None:
        """Check something about a tensor, unless this process has done so since the file changed.

        Args:
            name: The tensor.
            what: What is checked.
            require: Does it; raises if it does not hold.

        Raises:
            MemitCoreError: The file is gone.
        """
        try:
            state = Path(self._path).stat()
        except OSError as error:
            raise self._unreadable(error) from error
        identity = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, name, what)
        if identity not in _checked:
            require()
            _checked.add(identity)

    def _check_sum(self, name: str, tensor: Tensor) -> None:
        if self._sums is None:
            return
        try:
            check_tensor(name, self._sums[name], tensor)
        except DamagedError as error:
            raise self._damaged(error) from error

    def map(self, name: str) -> Tensor:
        """Map a tensor into memory, without checking it."""
        try:
            with self._safetensors.safe_open(self._path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except (OSError, self._safetensors.SafetensorError) as error:
            raise self._unreadable(error) from error
        return tensor

    def read_card(self, objects: Sequence[str]) -> dict[str, Any]:
        """Take the card apart.

        Args:
            objects: Keys whose values are JSON objects.

        Returns:
            For each key its value, or None.

        Raises:
            MemitCoreError: The card is damaged.
        """
        card = self._card
        for name in objects:
            if not isinstance(card.get(name), dict | None):
                raise MemitCoreError(
                    f"{self._operation}: metadata '{name}' must be a JSON object, got "
                    f"{card[name]!r}."
                )
        return {name: card.get(name) for name in objects}

    def _parse(self, text: str) -> dict[str, Any]:
        try:
            card = json.loads(text)
        except ValueError as error:
            raise MemitCoreError(
                f"{self._operation}: metadata '{_METADATA_KEY}' is not JSON, got {text[:80]!r} "
                f"({error})."
            ) from error
        if not isinstance(card, dict):
            raise MemitCoreError(
                f"{self._operation}: metadata '{_METADATA_KEY}' must be a JSON object, got "
                f"{card!r}."
            )
        return card

    def _damaged(self, error: DamagedError) -> DamagedError:
        return DamagedError(f"{self._operation}: {error}. {DAMAGED}")

    def _unreadable(self, error: Exception) -> MemitCoreError:
        return MemitCoreError(
            f"{self._operation}: cannot be read as safetensors, got {error}. Check the path, and "
            "whether the file is complete."
        )


def import_safetensors(operation: str) -> ModuleType:
    """Import the package.

    Raises:
        MemitCoreError: It is not installed.
    """
    try:
        import safetensors.torch
    except ImportError as error:
        raise MemitCoreError(
            f"{operation}: needs the package safetensors, got {error}. "
            "Install it with: pip install 'memit-core[files]'"
        ) from error
    return safetensors
