"""The record of a search: what it is of, and its trials; one that has ended can go on."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from editbench.errors import ConfigError
from editbench.files.result_folders import FolderKind, encode_sealed, first_line

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage

_KIND = FolderKind("search", "search.json", ConfigError)
_TRIALS = "trials.sqlite"
_STUDY = "tune"


class SearchManifest(BaseModel):
    """The file ``search.json``.

    Attributes:
        command: How the search was begun.
        about: What decides what it finds; see `editbench.tuning.bench.Problem.describe`.
    """

    command: list[str]
    about: dict[str, Any]


def require_optuna() -> None:
    """Refuse to search without Optuna.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"tune: searching needs Optuna, got none ({error}). Install it: pip install "
            "'editbench[tune]'."
        ) from error


def record_folder(out: Path) -> Path:
    """Where the record of a search lies whose result is the file `out`."""
    return out.with_name(f"{out.stem}.search")


def refuse_overwriting(out: Path) -> None:
    """Refuse a file that no search has written.

    Raises:
        ConfigError: There is one.
    """
    if out.exists() and not _KIND.is_begun(record_folder(out)):
        raise ConfigError(
            f"--out: the file is there already, and is no search's, got {str(out)!r}. Choose "
            "another name."
        )


@contextmanager
def open_record(folder: Path, about: Mapping[str, Any]) -> "Iterator[Study]":
    """Begin the record of a search, or go on with it, for the length of a block.

    Args:
        folder: The record's folder.
        about: What decides what the search finds, as plain values.

    Yields:
        Optuna's study.

    Raises:
        ConfigError: The folder holds another search, or something else; another process is
            writing to it; or it cannot be written or read.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _KIND.refuse_foreign(folder)
    with _KIND.locked(folder):
        # As it will be read again: JSON knows no tuples.
        content = SearchManifest(command=sys.argv, about=dict(about)).model_dump_json()
        manifest = SearchManifest.model_validate_json(content)
        if _KIND.is_begun(folder):
            begun = _KIND.read_manifest(folder, SearchManifest)
            _refuse_other(folder, begun.about, manifest.about)
        else:
            _KIND.write(folder / _KIND.manifest, encode_sealed(manifest))
        storage: RDBStorage | None = None
        try:
            storage = optuna.storages.RDBStorage(_address(folder / _TRIALS))
            yield optuna.create_study(
                storage=storage, study_name=_STUDY, direction="maximize", load_if_exists=True
            )
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            raise ConfigError(
                f"tune: cannot read or write the record, got {str(folder / _TRIALS)!r} "
                f"({first_line(error)}). Make room, or remove the folder to begin anew."
            ) from error
        finally:
            if storage is not None:
                storage.remove_session()
                storage.engine.dispose()


def _address(path: Path) -> str:
    from sqlalchemy import URL

    return URL.create("sqlite", database=str(path)).render_as_string()


def _refuse_other(folder: Path, begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for what in {**begun, **wanted}:
        one, other = begun.get(what), wanted.get(what)
        if one != other and isinstance(one, dict) and isinstance(other, dict):
            differing = [name for name in {**one, **other} if one.get(name) != other.get(name)]
            one, other = ({name: each.get(name) for name in differing} for each in (one, other))
        if one != other:
            raise ConfigError(
                f"tune: the record is of a search with another {what}, got {_show(other)} and "
                f"{_show(one)} in {str(folder)!r}. Give the options of that search, or another "
                "--out."
            )


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
