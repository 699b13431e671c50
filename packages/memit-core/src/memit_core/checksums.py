"""Checksums in tensor files: what was damaged since it was written is not believed.

A file's card, the JSON object in its metadata, holds under ``checksums`` one of each tensor (its
dtype, its shape and its bytes), and under ``checksum`` one of the card itself.
"""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import torch
from torch import Tensor

from memit_core.errors import DamagedError

_PIECE: Final = 2**24  # bytes
_CARD: Final = "checksum"
_TENSORS: Final = "checksums"

DAMAGED: Final = (
    "The file was damaged, or changed by another program: copy it again from where it is whole, or "
    "make it anew."
)
"""What a message about a wrong checksum ends with."""


def checksum_tensor(tensor: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes, in hexadecimal.

    The bytes are hashed in pieces of 16 MiB, and then the pieces' sums: threads do that side by
    side, as fast as memory is read.

    Args:
        tensor: Of any shape and dtype, on the CPU; it may be mapped from a file.
    """
    total = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    view: memoryview = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
    pieces = [view[start : start + _PIECE] for start in range(0, len(view), _PIECE)]
    if len(pieces) < 2:
        digests = [_digest(piece) for piece in pieces]
    else:
        with ThreadPoolExecutor() as threads:
            digests = list(threads.map(_digest, pieces))
    total.update(b"".join(digests))
    return total.hexdigest()


def seal_card(card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Put checksums into the card of a file.

    Args:
        card: JSON object.
        tensors: All that the file will hold, by name, on the CPU.
    """
    sums = {name: checksum_tensor(tensor) for name, tensor in sorted(tensors.items())}
    sealed = {**card, _TENSORS: sums}
    return {**sealed, _CARD: _checksum_json(sealed)}


def unseal_card(card: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str] | None]:
    """Check a card, and take its checksums out.

    Args:
        card: As it was read.

    Returns:
        The card without them, and the tensors' checksums by name; None for these if the card has
        none: the file is of another program, or older than they are.

    Raises:
        DamagedError: The card is not the one that was written.
    """
    content = dict(card)
    stated = content.pop(_CARD, None)
    if stated is None and _TENSORS not in content:
        return content, None
    if stated != _checksum_json(content):
        raise DamagedError("the metadata is not what was written: its checksum is another")
    sums: dict[str, str] = content.pop(_TENSORS)
    return content, sums


def check_tensors(sums: Mapping[str, str] | None, tensors: Mapping[str, Tensor]) -> None:
    """Check the tensors of a file against its card.

    Args:
        sums: From `unseal_card`; None checks nothing.
        tensors: All that the file holds.

    Raises:
        DamagedError: They are not those that were written; the message names one.
    """
    if sums is None:
        return
    check_names(sums, tensors)
    for name, tensor in tensors.items():
        check_tensor(name, sums[name], tensor)


def check_names(sums: Mapping[str, str], tensors: Mapping[str, object]) -> None:
    """Check that a file holds the tensors that its card names, and no others.

    Raises:
        DamagedError: It does not.
    """
    if sums.keys() != tensors.keys():
        raise DamagedError(
            f"the tensors are not those that were written, got {sorted(tensors)}; expected "
            f"{sorted(sums)}"
        )


def check_tensor(name: str, stated: str, tensor: Tensor) -> None:
    """Check one tensor against its checksum.

    Raises:
        DamagedError: It is not the one that was written.
    """
    if checksum_tensor(tensor) != stated:
        raise DamagedError(f"tensor '{name}' is not what was written: its checksum is another")


def _digest(piece: memoryview) -> bytes:
    return hashlib.sha256(piece).digest()


def _checksum_json(content: Mapping[str, Any]) -> str:
    """The sum of what will be read again, whatever the order of its keys."""
    as_read = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()
