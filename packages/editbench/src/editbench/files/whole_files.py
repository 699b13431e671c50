"""Files and folders that are written whole or not at all: the one way in which this package writes.

What is being written has a name that begins with `UNFINISHED`, is flushed to disk and renamed. A
process that is killed at any point leaves what it was writing, which may be large.
"""

import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

UNFINISHED: Final = ".unfinished-"
"""What names begin with of what is being written, or was when its writer died."""

_LEFTOVER: Final = re.compile(rf"{re.escape(UNFINISHED)}.+-[0-9a-f]{{32}}")
_LEFT_AFTER_SECONDS: Final = 24 * 3600


@contextmanager
def writing_whole(path: Path) -> Iterator[Path]:
    """Write a file under another name, and give it its own once it is whole and on disk.

    Any number of processes may do so at once; the last one's file stays. What killed processes have
    left is removed by whoever writes to the folder a day later.

    Args:
        path: File to create or replace; its folder must exist.

    Yields:
        Where to write it. It is removed if the body raises, and ``path`` is left as it was.

    Raises:
        OSError: The file cannot be put in place, or was not written.
    """
    unfinished = _name_unfinished(path)
    try:
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
        _flush_folder(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file, whole or not at all; text in UTF-8, with its line ends as they are.

    Args:
        path: File to create or replace; its folder must exist.
        content: What to write.

    Raises:
        OSError: It cannot be written.
    """
    with writing_whole(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def writing_whole_folder(folder: Path) -> Iterator[Path]:
    """Write a folder under another name, and give it its own once it is whole.

    Args:
        folder: Folder to create or replace; the folders above it are made.

    Yields:
        Where to write it. It is removed if the body raises, and `folder` is left as it was.

    Raises:
        OSError: It cannot be put in place.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished, replaced = _name_unfinished(folder), _name_unfinished(folder)
    try:
        unfinished.mkdir()
        yield unfinished
        if folder.exists():
            folder.rename(replaced)
        unfinished.rename(folder)
        _flush_folder(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def is_unfinished(path: Path) -> bool:
    """Whether something is being written there, or was when its writer died."""
    return path.name.startswith(UNFINISHED)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _name_unfinished(path: Path) -> Path:
    """A name in the same folder, so that the final rename cannot cross file systems."""
    _remove_leftovers(path.parent)
    return path.with_name(f"{UNFINISHED}{path.name}-{uuid.uuid4().hex}")


def _remove_leftovers(folder: Path) -> None:
    """Remove what nobody has written to for a day; what is being written is younger than that."""
    for path in folder.glob(f"{UNFINISHED}*"):
        with suppress(OSError):  # another process may have been faster
            is_old = time.time() - path.stat().st_mtime > _LEFT_AFTER_SECONDS
            if is_old and _LEFTOVER.fullmatch(path.name):
                remove(path)


def _flush_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
