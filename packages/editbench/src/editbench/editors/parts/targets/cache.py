"""Finished target hidden states, kept by content, so that a crash or a rerun costs nothing."""

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import torch

from editbench.editors.parts.targets.groups import hash_others
from editbench.editors.parts.targets.optimizer import FinishedTarget
from editbench.editors.parts.targets.overflow import is_finite
from editbench.editors.parts.targets.settings import TargetSettings
from editbench.errors import EditError
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest

_VERSION = 2  # raised whenever the same inputs give another z
_LOOKUP_SIZE = 500
_WRITE_SECONDS = 2.0


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
        self._content = {
            "version": _VERSION,
            "model": state,
            "tokenizer": model.tokens.fingerprint,
            "layer": layer,
            "prefixes": list(prefixes),
            "settings": {name: getattr(settings, name) for name in TargetSettings.model_fields},
        }
        if site:
            self._content["site"] = site

    def of(self, request: EditRequest, others: str = "") -> str:
        """The key of a fact, and of `others`, a hash of the facts that its state depends on."""
        fact = [request.subject, request.prompt, request.target]
        content = {**self._content, "request": fact, **({"others": others} if others else {})}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class TargetCache:
    """A table from everything that determines z to z.

    One SQLite file: a write is a transaction, so a killed run leaves whole entries only.

    Args:
        folder: Where the file lies; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / "target_hidden.sqlite"

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
        return [key.of(*pair) for pair in zip(requests, others, strict=True)]

    def read(self, keys: Sequence[str]) -> dict[int, FinishedTarget]:
        """What is known of `keys`, by position; what is not finite is not known."""
        if self._path is None or not self._path.exists():
            return {}
        rows: dict[str, FinishedTarget] = {}
        try:
            with closing(self._connect()) as database:
                for start in range(0, len(keys), _LOOKUP_SIZE):
                    some = keys[start : start + _LOOKUP_SIZE]
                    marks = ",".join("?" * len(some))
                    found = database.execute(
                        "select key, state, initial, loss, n_steps from target_hidden "
                        f"where key in ({marks})",
                        some,
                    )
                    for key, state, initial, loss, n_steps in found:
                        if loss is None:  # NaN, as SQLite stores it; written before it was refused
                            continue
                        one = FinishedTarget(_tensor(state), _tensor(initial), loss, n_steps)
                        if is_finite(one):
                            rows[key] = one
        except sqlite3.Error as error:
            raise self._failure("read", error) from error
        return {index: rows[key] for index, key in enumerate(keys) if key in rows}

    def write(self, outcomes: Mapping[str, FinishedTarget]) -> None:
        """Keep those of `outcomes` that are finite, all or none of them."""
        if self._path is None:
            return
        rows = [
            (key, one.state.numpy().tobytes(), one.initial.numpy().tobytes(), one.loss, one.n_steps)
            for key, one in outcomes.items()
            if is_finite(one)
        ]
        if not rows:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._connect()) as database, database:
                database.executemany(
                    "insert or replace into target_hidden values (?, ?, ?, ?, ?)", rows
                )
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

    def _connect(self) -> sqlite3.Connection:
        assert self._path is not None
        database = sqlite3.connect(self._path, timeout=60)
        database.execute(
            "create table if not exists target_hidden "
            "(key text primary key, state blob, initial blob, loss real, n_steps integer)"
        )
        return database

    def _failure(self, action: str, error: Exception) -> EditError:
        return EditError(
            f"target cache: cannot {action} {self._path}: {error}. Free space or remove the file, "
            "choose another folder with --cache, or go without by --no-cache."
        )


def _tensor(content: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(content, dtype=np.float32).copy())
