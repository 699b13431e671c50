"""Finished target hidden states, kept by content, so that a crash or a rerun costs nothing."""

import hashlib
import os
import sqlite3
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from editbench.editors.targets.optimizer import FinishedTarget
from editbench.editors.targets.settings import TargetSettings
from editbench.editors.targets.tasks import hash_others
from editbench.edits.recipe import KeptTargets
from editbench.errors import EditError
from editbench.files.cache_entries import name_entry, put_aside
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest

if TYPE_CHECKING:
    from editbench.editors.base import Resources

_LOOKUP_SIZE = 500
_WRITE_SECONDS = 2.0
_TIMEOUT_SECONDS = 60

_WHAT = "target hidden states"
_TABLE = "checked_target_hidden"  # earlier versions wrote another one, without checksums
_COLUMNS = "key, state, initial, loss, n_steps, checksum"
_FIND_TABLE = f"select 1 from sqlite_master where type = 'table' and name = '{_TABLE}'"

# What SQLite says of a machine that has no room, time or right for it; the rest is about the file.
_ENVIRONMENT = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
}


class _Key:
    """What the keys of some facts have in common."""

    def __init__(
        self,
        state: str,
        model: EditableModel,
        layer: int,
        settings: TargetSettings,
        prefixes: Sequence[str],
        site: str = "",
    ) -> None:
        self._tokens = model.tokens
        self._content = {
            "model": state,
            "layer": layer,
            "prefixes": list(prefixes),
            "settings": settings.of_targets(),
        }
        if site:
            self._content["site"] = site

    def of(self, request: EditRequest, others: str = "") -> str:
        """The key of a fact, and of `others`, a hash of the facts that its state depends on."""
        content = {
            **self._content,
            "tokenizer": self._tokens.fingerprint_of(chat=request.chat),
            "request": request.fact,
            **({"others": others} if others else {}),
        }
        return name_entry(_WHAT, content)


class TargetLedger:
    """The target states that an edit takes: those that are known beforehand, and all it has used.

    Args:
        known: Key to state; they come before what any cache holds.
    """

    def __init__(self, known: KeptTargets | None = None) -> None:
        self._known = (
            {}
            if known is None
            else {
                key: FinishedTarget(state, initial, loss, n_steps)
                for key, state, initial, loss, n_steps in known
            }
        )
        self.used: dict[str, FinishedTarget] = {}

    @property
    def n_reused(self) -> int:
        """How many of those used were known."""
        return len(self._known.keys() & self.used.keys())

    def find(self, keys: Iterable[str]) -> dict[str, FinishedTarget]:
        """Those of `keys` that are known."""
        return {key: self._known[key] for key in keys if key in self._known}

    def kept(self) -> KeptTargets:
        """All that was used, for an edit file."""
        return KeptTargets.of(
            (key, one.state, one.initial, one.loss, one.n_steps)
            for key, one in sorted(self.used.items())
        )


class TargetCache:
    """A table from everything that determines z to z.

    One SQLite file: a write is a transaction, so a killed run leaves whole entries only. Each entry
    carries a checksum over its key and what it holds. Entries that are not what was written are
    computed anew and replaced; a file that is no database any more is put aside.

    Args:
        folder: Where the file lies; None keeps nothing.
        ledger: Is asked first, and told of all that is read or written.
    """

    def __init__(self, folder: Path | None, ledger: TargetLedger | None = None) -> None:
        self._path = None if folder is None else folder / "target_hidden.sqlite"
        self._ledger = ledger or TargetLedger()

    @classmethod
    def of(cls, resources: "Resources") -> "TargetCache":
        """The one that an editor is given."""
        return cls(resources.cache, resources.targets)

    @property
    def keeps_nothing(self) -> bool:
        """Whether what is written is gone afterwards."""
        return self._path is None

    def key(
        self,
        model: EditableModel,
        request: EditRequest,
        layer: int,
        settings: TargetSettings,
        prefixes: Sequence[str],
        *,
        site: str = "",
        changed: Collection[str] | None = None,
    ) -> str:
        """Hash of the model as it is now, tokenizer, fact, layer, prefixes and hyperparameters.

        Also of `site`, the module whose output z is, if it is not the block. `changed` is as for
        `EditableModel.state_after`.
        """
        return _Key(model.state_after(changed), model, layer, settings, prefixes, site).of(request)

    def keys(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        groups: Sequence[Sequence[int]],
        layer: int,
        settings: TargetSettings,
        prefixes: Sequence[str],
        *,
        warm_start: bool,
    ) -> list[str]:
        """The keys of all requests, of which each group shares an offset."""
        key = _Key(model.state, model, layer, settings, prefixes)
        others = hash_others(requests, groups, warm_start=warm_start)
        if any(request.chat for request in requests):
            asked = model.tokens.fingerprint_of(chat=True)
            others = [f"{hashed} {asked}" if hashed else "" for hashed in others]
        return [key.of(*pair) for pair in zip(requests, others, strict=True)]

    def read(self, keys: Sequence[str]) -> dict[int, FinishedTarget]:
        """What is known of `keys`, by position; what is damaged or not finite is not known."""
        rows = self._ledger.find(keys)
        if self._path is not None and self._path.exists():
            rows |= self._read_file(self._path, [key for key in keys if key not in rows])
        self._ledger.used |= rows
        return {index: rows[key] for index, key in enumerate(keys) if key in rows}

    def _read_file(self, path: Path, keys: Sequence[str]) -> dict[str, FinishedTarget]:
        rows: dict[str, FinishedTarget] = {}
        n_damaged = 0
        for key, *content, stated in self._look_up(path, keys):
            if _checksum(key, *content) != stated:
                n_damaged += 1
                continue
            state, initial, loss, n_steps = content
            one = FinishedTarget(_tensor(state), _tensor(initial), loss, n_steps)
            if one.is_finite:
                rows[key] = one
        if n_damaged:
            warnings.warn(
                f"cache: {_WHAT}: {n_damaged} of {len(keys)} entries are not what was written, got "
                f"{str(path)!r}. They are computed anew",
                stacklevel=2,
            )
            self._keep_nothing_unless_writable(path)
        return rows

    def write(self, outcomes: Mapping[str, FinishedTarget]) -> None:
        """Keep those of `outcomes` that are finite, all or none of them."""
        finite = {key: one for key, one in outcomes.items() if one.is_finite}
        self._ledger.used |= finite
        if self._path is None or not finite:
            return
        rows = []
        for key, one in finite.items():
            vectors = one.state.numpy().tobytes(), one.initial.numpy().tobytes()
            row = (key, *vectors, one.loss, one.n_steps)
            rows.append((*row, _checksum(*row)))
        path = self._path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                _insert(path, rows)
            except sqlite3.Error as error:
                if not _is_damaged(error) or not os.access(path.parent, os.W_OK):
                    raise
                _put_aside(path, error)
                if not path.exists():
                    _insert(path, rows)
        except (sqlite3.Error, OSError) as error:
            raise self._failure("write", error) from error

    @contextmanager
    def writing_now_and_then(self) -> Iterator[Callable[[str, FinishedTarget], None]]:
        """Keep single outcomes within a ``with`` body, every two seconds and on every exit.

        Writing waits for the disk, which for a small model takes a tenth as long as an edit.

        Yields:
            A function that takes a key and its outcome.
        """
        unwritten: dict[str, FinishedTarget] = {}
        written = time.monotonic()

        def keep(key: str, outcome: FinishedTarget) -> None:
            nonlocal written
            unwritten[key] = outcome
            if time.monotonic() - written > _WRITE_SECONDS:
                self.write(unwritten)
                unwritten.clear()
                written = time.monotonic()

        try:
            yield keep
        finally:
            if unwritten:
                self.write(unwritten)

    def _look_up(self, path: Path, keys: Sequence[str]) -> list[tuple[Any, ...]]:
        """The rows of some keys, as they are stored."""
        rows: list[tuple[Any, ...]] = []
        try:
            with closing(sqlite3.connect(path, timeout=_TIMEOUT_SECONDS)) as database:
                if not database.execute(_FIND_TABLE).fetchone():
                    return []  # nothing has been written yet, or by an earlier version only
                for start in range(0, len(keys), _LOOKUP_SIZE):
                    some = keys[start : start + _LOOKUP_SIZE]
                    marks = ",".join("?" * len(some))
                    rows += database.execute(
                        f"select {_COLUMNS} from {_TABLE} where key in ({marks})", some
                    )
        except sqlite3.Error as error:
            if not _is_damaged(error):
                raise self._failure("read", error) from error
            _put_aside(path, error)
            self._keep_nothing_unless_writable(path)
        return rows

    def _keep_nothing_unless_writable(self, path: Path) -> None:
        """What is damaged in a cache that can only be read stays there, and costs no run."""
        if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
            self._path = None

    def _failure(self, action: str, error: Exception) -> EditError:
        return EditError(
            f"target cache: cannot {action} {self._path}: {error}. Free space or remove the file, "
            "choose another folder with --cache, or go without by --no-cache."
        )


def _insert(path: Path, rows: Sequence[tuple[Any, ...]]) -> None:
    with closing(sqlite3.connect(path, timeout=_TIMEOUT_SECONDS)) as database, database:
        database.execute(
            f"create table if not exists {_TABLE} (key text primary key, state blob, "
            "initial blob, loss real, n_steps integer, checksum text)"
        )
        database.executemany(
            f"insert or replace into {_TABLE} ({_COLUMNS}) values (?, ?, ?, ?, ?, ?)", rows
        )


def _is_damaged(error: sqlite3.Error) -> bool:
    """Whether an error says that the file is no database, or not the one that was written."""
    code = getattr(error, "sqlite_errorcode", None)  # some have none: text that cannot be decoded
    return code is None or code & 0xFF not in _ENVIRONMENT


def _put_aside(path: Path, error: sqlite3.Error) -> None:
    put_aside(path, _WHAT, str(error))
    if not path.exists():  # what it left to be undone is not the next one's
        with suppress(OSError):
            path.with_name(f"{path.name}-journal").unlink(missing_ok=True)


def _checksum(*row: object) -> str:
    """A checksum over an entry's key and what it holds."""
    digest = hashlib.sha256()
    for part in row:
        data = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def _tensor(content: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(content, dtype=np.float32).copy())
