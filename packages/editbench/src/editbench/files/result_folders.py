"""Folders that a command fills for hours: written by one process, whole or not at all.

What a process that is killed leaves half-written the next one removes. A lock, which the system
releases when its holder dies, keeps a second process out.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel

from editbench.errors import EditbenchError
from editbench.files.seals import seal, unseal
from editbench.files.whole_files import UNFINISHED, is_unfinished, remove, write_whole

_Model = TypeVar("_Model", bound=BaseModel)

_LOCK = ".lock"


@dataclass(frozen=True, slots=True)
class FolderKind:
    """A kind of such folders, with what to call it in messages.

    Attributes:
        noun: What a folder holds.
        manifest: The file that says what exactly; where it is missing, nothing has been begun.
        error: What is raised.
    """

    noun: str
    manifest: str
    error: type[EditbenchError]

    def is_begun(self, folder: Path) -> bool:
        """Whether the folder holds something of this kind."""
        return (folder / self.manifest).exists()

    def refuse_foreign(self, folder: Path) -> None:
        """Refuse a place that holds something else."""
        if folder.exists() and not folder.is_dir():
            raise self.error(
                f"open {self.noun}: not a folder, got {str(folder)!r}. Choose another place."
            )
        if self.is_begun(folder) or not folder.exists():
            return
        for found in folder.iterdir():
            if found.name != _LOCK and not is_unfinished(found):
                raise self.error(
                    f"open {self.noun}: the folder holds something that is no {self.noun}, got "
                    f"{str(folder)!r} with {found.name!r} in it. Choose an empty or new folder."
                )

    def refuse_begun(self, folder: Path) -> None:
        """Refuse a folder in which one has been begun."""
        if self.is_begun(folder):
            raise self.error(
                f"open {self.noun}: the folder holds a {self.noun} already, got {str(folder)!r}. "
                "Choose another folder, or give --resume to go on with it."
            )

    @contextmanager
    def locked(self, folder: Path) -> Iterator[None]:
        """Hold a folder's lock for the length of a block; leftovers are removed.

        The folder is made if missing, and removed again if nothing has been begun in it.
        """
        is_new = not folder.exists()
        with self.explained(f"create the {self.noun} folder", folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / _LOCK)
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                raise self.error(
                    f"open {self.noun}: another process is writing to the folder, got "
                    f"{str(folder)!r}. Wait for it to end, or choose another folder."
                ) from error
        try:
            _remove_leftovers(folder)
            yield
        finally:
            lock.release()
            if is_new and not self.is_begun(folder):
                shutil.rmtree(folder, ignore_errors=True)

    def read_manifest(self, folder: Path, model: type[_Model]) -> _Model:
        """Read what a folder says that it holds."""
        path = folder / self.manifest
        try:
            return decode_sealed(path.read_bytes(), model)
        except FileNotFoundError as error:
            raise self.error(
                f"read {self.noun}: the folder holds no {self.noun}, got {str(folder)!r}; expected "
                f"one with {self.manifest!r} in it. Give the folder that was the {self.noun}'s "
                "--out."
            ) from error
        except (OSError, ValueError) as error:
            raise self.error(
                f"read {self.noun}: cannot read {str(path)!r} ({first_line(error)}). Copy it from "
                f"where it is whole, or begin the {self.noun} again in another folder."
            ) from error

    def write(self, path: Path, content: bytes, *, operation: str = "store") -> None:
        """Write a file, whole or not at all; its folder is made if missing."""
        with self.explained(operation, path):
            path.parent.mkdir(exist_ok=True)
            write_whole(path, content)

    @contextmanager
    def explained(self, operation: str, path: Path) -> Iterator[None]:
        """Make an operating system's error one that says what to do."""
        try:
            yield
        except OSError as error:
            raise self.error(
                f"{operation}: cannot write, got {str(path)!r} ({error.strerror or error}). "
                "Everything finished before is kept: make room or choose another folder, and "
                "resume."
            ) from error


def encode_sealed(content: BaseModel) -> bytes:
    """Write what a JSON file says, with a checksum of it."""
    sealed = seal(json.loads(content.model_dump_json()))
    return (json.dumps(sealed, indent=2, ensure_ascii=False) + "\n").encode()


def decode_sealed(data: bytes, model: type[_Model]) -> _Model:
    """Read what `encode_sealed` wrote, or an earlier version without a checksum.

    Raises:
        ValueError: It is not what was written.
    """
    parsed = model.model_validate_json(data)
    unseal(json.loads(data))
    return parsed


def first_line(error: Exception) -> str:
    """What an error says, without the details below."""
    return str(error).split("\n", 1)[0]


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written; the lock says that it is not being used."""
    for leftover in (
        each for depth in ("", "*/", "*/*/") for each in folder.glob(f"{depth}{UNFINISHED}*")
    ):
        remove(leftover)
