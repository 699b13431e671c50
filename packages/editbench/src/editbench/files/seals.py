"""Checksums of JSON objects: what was damaged since it was written is not believed."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_KEY: Final = "checksum"


def checksum(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def checksum_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_json(content: Any) -> str:
    """SHA-256 of what a JSON value says, whatever the order of keys in it, in hexadecimal."""
    as_read = json.loads(json.dumps(content))  # where all keys are strings
    return checksum(json.dumps(as_read, sort_keys=True).encode())


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Add to a JSON object a checksum of what it says."""
    return {**content, _KEY: checksum_json(content)}


def unseal(content: object, *, required: bool = False) -> dict[str, Any]:
    """Check a JSON object, and take the checksum out.

    Args:
        content: As it was read.
        required: Refuse an object that has none; else it is returned as it is. Files that were
            written before there were checksums have none.

    Raises:
        ValueError: It is no object, or not the one that was written.
    """
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, got {type(content).__name__}")  # noqa: TRY004
    rest = {key: value for key, value in content.items() if key != _KEY}
    if len(rest) == len(content):
        if required:
            raise ValueError("it has no checksum")
    elif content[_KEY] != checksum_json(rest):
        raise ValueError("it is not what was written: its checksum is another")
    return rest
