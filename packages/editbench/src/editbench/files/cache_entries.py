"""What is kept between runs: believed where it is whole, else put aside, said and computed anew.

What was computed is found by a hash of all that it was computed from, and of the `VERSIONS` of how.
"""

import gzip
import json
import os
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar
from uuid import uuid4

from editbench.errors import EditbenchError
from editbench.files.seals import checksum_json, seal, unseal
from editbench.files.whole_files import write_whole

_Content = TypeVar("_Content")

VERSIONS: Final[Mapping[str, int]] = MappingProxyType(
    {"target hidden states": 3, "answers": 2, "critical layers": 2, "measurements": 1}
)
"""Of what is kept. To be raised where the same inputs give other numbers, or are kept otherwise."""

# What readers raise about files that are not what was written; memit-core's errors are ValueErrors.
_DAMAGE = (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError, EditbenchError)

_said: set[Path] = set()


def name_entry(kind: str, content: Mapping[str, Any]) -> str:
    """The name of what was computed from `content`, a JSON object: 64 hexadecimal digits.

    Args:
        kind: One of `VERSIONS`.
        content: All that determines what is kept.
    """
    return checksum_json({"version": VERSIONS[kind], **content})


def read_kept(path: Path, what: str, read: Callable[[], _Content]) -> _Content | None:
    """Read an entry of the cache, if it is there and whole; else it is put aside.

    Args:
        path: The entry.
        what: What it holds, for the warning.
        read: Reads and checks it; raises if it is not what was written.

    Returns:
        What was read; None if there is nothing to be believed.
    """
    try:
        seen = path.stat()
    except OSError:
        return None  # not there, or out of reach: whoever writes it says so
    try:
        return read()
    except FileNotFoundError:
        return None  # another process has put it aside
    except _DAMAGE as error:
        put_aside(path, what, str(error), seen)
        return None


def put_aside(path: Path, what: str, problem: str, seen: os.stat_result | None = None) -> None:
    """Give an entry that is not to be believed another name, and say so once.

    Where it cannot be renamed it stays, and is still there for the caller to see.

    Args:
        path: The entry, a file or a folder.
        what: What it should hold.
        problem: What is wrong.
        seen: The state in which that was found out: what another process has written in its place
            meanwhile is left alone.
    """
    aside = path.with_name(f"{path.name}.damaged")
    if aside.exists():
        aside = path.with_name(f"{path.name}.{uuid4().hex[:8]}.damaged")
    try:
        now = path.stat()
        if seen is not None and _identify(now) != _identify(seen):
            return
        path.rename(aside)
        outcome = f"It is kept as {aside.name!r}, and computed anew"
    except FileNotFoundError:
        return
    except OSError as error:
        outcome = f"It cannot be put aside ({error.strerror}), so nothing is kept in its place"
    if path not in _said:
        reason = " ".join(problem.split()).rstrip(".")
        where = "" if str(path) in reason else f", got {str(path)!r}"
        warnings.warn(f"cache: {what}: {reason}{where}. {outcome}", stacklevel=2)
    if path.exists():
        _said.add(path)


@dataclass(frozen=True, slots=True)
class JsonEntry:
    """An entry that holds JSON, with a checksum over it and over its name.

    Attributes:
        path: The file, named by a hash of what its content was computed from; gzipped if it ends
            in ``.gz``.
        what: What it holds, for warnings.
    """

    path: Path
    what: str

    def read(self, decode: Callable[[Any], _Content]) -> _Content | None:
        """Read it.

        Args:
            decode: Makes of the JSON what is wanted; raises if it cannot be that.

        Returns:
            None if it is not there, or was not what was written and has been put aside.
        """
        return read_kept(self.path, self.what, lambda: decode(self._load()))

    def write(self, content: object) -> None:
        """Write it, whole or not at all.

        Nothing is written where something stands that could not be put aside.

        Raises:
            OSError: It cannot be written.
        """
        if self.path.exists():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = json.dumps(seal({"name": self.path.name, "content": content})).encode()
        if self.path.suffix == ".gz":
            data = gzip.compress(data, mtime=0)
        write_whole(self.path, data)

    def keep(self, content: object) -> None:
        """Write it, for what is not worth a run: that it could not be written is a warning."""
        try:
            self.write(content)
        except OSError as error:
            warnings.warn(
                f"{self.what}: cannot be kept, got {str(self.path)!r} ({error.strerror or error}). "
                "Free some space, or choose another folder with --cache.",
                stacklevel=3,
            )

    def _load(self) -> object:
        data = self.path.read_bytes()
        if self.path.suffix == ".gz":
            data = gzip.decompress(data)
        entry = unseal(json.loads(data), required=True)
        if entry["name"] != self.path.name:
            raise ValueError(f"it is another entry, {entry['name']!r}")
        return entry["content"]


def _identify(state: os.stat_result) -> tuple[int, ...]:
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns
