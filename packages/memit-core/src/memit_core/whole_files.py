"""Files that are written whole or not at all."""

import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_LEFTOVER: Final = re.compile(r"\..+\.[0-9a-f]{32}\.partial")
_LEFT_AFTER_SECONDS: Final = 24 * 3600


@contextmanager
def writing_whole(path: Path) -> Iterator[Path]:
    """Write a file under another name, and give it its own once it is whole.

    Any number of processes may do so at once; the last one's file stays. A process that is killed
    leaves its file, which may be large: whoever writes to the folder a day later removes it.

    Args:
        path: File to create or replace; its folder must exist.

    Yields:
        Where to write it. It is removed if the body raises, and ``path`` is left as it was.

    Raises:
        OSError: The file cannot be put in place, or was not written.
    """
    _remove_leftovers(path.parent)
    # In the file's own folder, so that the final rename cannot cross file systems.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove what nobody has written to for a day; a file being written is younger than that."""
    with suppress(OSError):
        for path in folder.glob(".*.partial"):
            if not _LEFTOVER.fullmatch(path.name):
                continue
            with suppress(OSError):  # another process may have been faster
                if time.time() - path.stat().st_mtime > _LEFT_AFTER_SECONDS:
                    path.unlink()
