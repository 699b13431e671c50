"""safetensors files with a card: a JSON object in the metadata, under ``editbench``.

The card holds checksums, under ``checksums`` one of each tensor (its dtype, its shape and its
bytes) and under ``checksum`` one of the card itself, and what is read is checked against them.
Files of other programs, and those written before there were checksums, have none and are read as
they are. Functions raise what says what is wrong with a file; whoever knows what it should hold
says so to the user.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from editbench.errors import shown
from editbench.files.seals import seal, unseal
from editbench.files.whole_files import writing_whole

DAMAGED: Final = (
    "The file was damaged, or changed by another program: copy it again from where it is whole, or "
    "make it anew."
)
"""What a message about a file that is not what was written ends with."""

_METADATA_KEY: Final = "editbench"
_SUMS: Final = "checksums"
_PIECE: Final = 2**24  # bytes

# What this process has checked: which file, as it was then, which tensor, and what about it.
_checked: set[tuple[object, ...]] = set()


class DamagedError(ValueError):
    """A file does not hold what was written to it."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write a file, whole or not at all.

    Args:
        path: File to create or replace; its folder must exist.
        tensors: By name; contiguous, on the CPU.
        card: JSON object.

    Raises:
        OSError: The file cannot be written.
        TypeError: The card is not JSON.
        ValueError: Likewise.
    """
    sums = {name: checksum_tensor(tensor) for name, tensor in sorted(tensors.items())}
    content = json.dumps(seal({**card, _SUMS: sums}), ensure_ascii=False, allow_nan=False)
    try:
        with writing_whole(path) as unfinished:
            # One key alone: safetensors writes several in random order.
            save_file(dict(tensors), unfinished, metadata={_METADATA_KEY: content})
    except SafetensorError as error:
        raise OSError(str(error)) from error


class TensorFile:
    """A file whose tensors are read one at a time.

    Args:
        path: The file.

    Attributes:
        path: The file.
        tensors: Name to dtype and shape.
        card: The JSON object, without checksums; None if the file has none.
        is_sealed: Whether the file carries checksums.

    Raises:
        OSError: It cannot be read as safetensors.
        DamagedError: The card or the list of tensors is not what was written.
        ValueError: The card is no JSON object.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                for name in file.keys():  # noqa: SIM118 (not a dictionary)
                    tensor = file.get_tensor(name)  # mapped: nothing is read yet
                    self.tensors[name] = (tensor.dtype, tuple(tensor.shape))
        except SafetensorError as error:
            raise OSError(str(error)) from error
        self.card: dict[str, Any] | None = None
        self._sums: dict[str, str] | None = None
        if _METADATA_KEY in metadata:
            self.card, self._sums = _unseal_card(metadata[_METADATA_KEY])
        self.is_sealed = self._sums is not None
        if self._sums is not None and self._sums.keys() != self.tensors.keys():
            raise DamagedError(
                f"the tensors are not those that were written, got {sorted(self.tensors)}; "
                f"expected {sorted(self._sums)}"
            )

    def read(self, name: str) -> Tensor:
        """Map a tensor into memory; what is written into it does not reach the file.

        The first time in a process it is checked, for which all of it is read.

        Raises:
            DamagedError: It is not the tensor that was written.
            OSError: The file cannot be read.
        """
        tensor = self.map(name)

        def require_sum() -> None:
            if self._sums is not None and checksum_tensor(tensor) != self._sums[name]:
                raise DamagedError(
                    f"tensor '{name}' is not what was written: its checksum is another"
                )

        self.check(name, "checksum", require_sum)
        return tensor

    def read_all(self) -> dict[str, Tensor]:
        """`read` all tensors."""
        return {name: self.read(name) for name in self.tensors}

    def map(self, name: str) -> Tensor:
        """Map a tensor into memory, without checking it.

        Raises:
            OSError: The file cannot be read.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        return tensor

    def check(self, name: str, what: str, require: Callable[[], None]) -> None:
        """Check something about a tensor, unless this process has done so since the file changed.

        Args:
            name: The tensor.
            what: What is checked.
            require: Does it; raises if it does not hold.

        Raises:
            OSError: The file is gone.
        """
        state = self.path.stat()
        identity = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, name, what)
        if identity not in _checked:
            require()
            _checked.add(identity)


def checksum_tensor(tensor: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes, in hexadecimal.

    The bytes are hashed in pieces of 16 MiB, and then the pieces' sums: threads do that side by
    side, as fast as memory is read.

    Args:
        tensor: Of any shape and dtype, on the CPU; it may be mapped from a file.
    """
    total = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    view: memoryview = view_bytes(tensor).numpy().data
    pieces = [view[start : start + _PIECE] for start in range(0, len(view), _PIECE)]
    if len(pieces) < 2:
        digests = [_digest(piece) for piece in pieces]
    else:
        with ThreadPoolExecutor() as threads:
            digests = list(threads.map(_digest, pieces))
    total.update(b"".join(digests))
    return total.hexdigest()


def view_bytes(tensor: Tensor) -> Tensor:
    """A tensor's bytes, uint8 `[n_bytes]`: of its own memory, where that is contiguous."""
    return rearrange(tensor.detach().contiguous(), "... -> (...)").view(torch.uint8)


def _unseal_card(text: str) -> tuple[dict[str, Any], dict[str, str] | None]:
    """Check a card, and take the checksums out: of the tensors by name, or None without any."""
    try:
        card = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"metadata '{_METADATA_KEY}' is not JSON, got {shown(text)} ({error})"
        ) from error
    if not isinstance(card, dict):
        raise ValueError(f"metadata '{_METADATA_KEY}' must be a JSON object, got {card!r}")  # noqa: TRY004
    try:
        content = unseal(card, required=_SUMS in card)
    except ValueError as error:
        raise DamagedError(
            "the metadata is not what was written: its checksum is another"
        ) from error
    return content, content.pop(_SUMS, None)


def _digest(piece: memoryview) -> bytes:
    return hashlib.sha256(piece).digest()
