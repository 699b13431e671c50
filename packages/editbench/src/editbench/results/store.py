"""The run folder: what a run has finished, on disk, whole or not at all.

::

    <folder>/run.json                    what the run consists of
    <folder>/trials/<hash>/rows.jsonl    one row per case and metric
    <folder>/trials/<hash>/cases.jsonl.gz  what was asked about each case, and what the model said
    <folder>/trials/<hash>/trial.json    status, timings, edit cards, warnings

A trial is written into a folder of another name, flushed to disk, and renamed when it is complete;
a process that is killed at any point leaves either all of a trial or a leftover that the next one
removes. A lock, which the system releases when its holder dies, keeps a second process out.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from editbench.errors import RunError
from editbench.results.manifest import RunManifest
from editbench.results.row import Row, Status, encode_rows
from editbench.results.transcript import CaseTranscript, encode_transcripts

_LOCK = ".lock"
_UNFINISHED = ".unfinished-"


class TrialRecord(BaseModel):
    """The content of ``trial.json``: how a trial went.

    Attributes:
        trial: The trial's hash.
        status: As in its rows.
        message: What went wrong, if it failed.
        traceback: Where it went wrong, if it failed.
        finished: When, ISO 8601 with time zone.
        seconds: Stage (``edit``, ``answer``) to wall-clock seconds.
        peak_memory_bytes: ``process``: the largest resident size the process has had so far;
            ``device``: the most that this trial had allocated on the accelerator, if there is one.
        n_conflicts: How many groups of conflicting requests the policy resolved.
        edits: The card of each batch's edit.
        warnings: What was warned about on the way.
    """

    model_config = ConfigDict(frozen=True)

    trial: str
    status: Status
    message: str | None = None
    traceback: str | None = None
    finished: str
    seconds: dict[str, float] = Field(default_factory=dict)
    peak_memory_bytes: dict[str, int] = Field(default_factory=dict)
    n_conflicts: int = 0
    edits: tuple[dict[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()


class RunStore:
    """A run folder that this process holds the lock of; made by `RunStore.open`."""

    def __init__(self, folder: Path, manifest: RunManifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    @contextmanager
    def open(cls, folder: Path, manifest: RunManifest, *, resume: bool) -> Iterator["RunStore"]:
        """Begin a run in `folder`, or go on with the one it holds, for the length of a block.

        Args:
            folder: The run folder; made if missing.
            manifest: What the run consists of.
            resume: Go on with the run that the folder holds. A folder that holds none yet, because
                the run was killed before its first trial, is begun anew.

        Raises:
            RunError: The folder holds a run and `resume` is False; it holds a run of another
                configuration; it holds something else; another process is writing to it; or it
                cannot be written.
        """
        _refuse_foreign(folder)
        is_new = not folder.exists()
        with _explained("create the run folder", folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / _LOCK)
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                raise RunError(
                    "open run: another process is writing to the folder, got "
                    f"{str(folder)!r}. Wait for it to end, or choose another folder."
                ) from error
        try:
            yield cls(folder, _begin(folder, manifest, resume=resume))
        finally:
            lock.release()
            if is_new and not (folder / "run.json").exists():
                shutil.rmtree(folder, ignore_errors=True)

    def is_finished(self, trial: str) -> bool:
        """Whether the trial has been run, and did not fail."""
        record = _trial_folder(self.folder, trial) / "trial.json"
        return record.exists() and read_trial(self.folder, trial).status != "error"

    def write(
        self,
        record: TrialRecord,
        rows: Sequence[Row],
        transcripts: Sequence[CaseTranscript] = (),
    ) -> None:
        """Store a trial, in place of an earlier failure of it.

        Raises:
            RunError: The disk is full or the folder cannot be written; nothing is stored then.
        """
        finished = _trial_folder(self.folder, record.trial)
        unfinished = finished.with_name(f"{_UNFINISHED}{record.trial}")
        replaced = finished.with_name(f"{_UNFINISHED}replaced-{record.trial}")
        try:
            with _explained("store the trial", finished):
                unfinished.mkdir(parents=True)
                _write_file(unfinished / "rows.jsonl", encode_rows(rows).encode())
                if transcripts:
                    _write_file(unfinished / "cases.jsonl.gz", encode_transcripts(transcripts))
                record_text = record.model_dump_json(indent=2) + "\n"
                _write_file(unfinished / "trial.json", record_text.encode())
                if finished.exists():
                    finished.rename(replaced)
                unfinished.rename(finished)
                _flush_folder(finished.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.rmtree(replaced, ignore_errors=True)


def read_manifest(folder: Path) -> RunManifest:
    """Read the ``run.json`` of a run folder.

    Raises:
        RunError: There is none, or it is damaged.
    """
    path = folder / "run.json"
    try:
        return RunManifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise RunError(
            f"read run: the folder holds no run, got {str(folder)!r}; expected one with 'run.json' "
            "in it. Give the folder that was the run's --out."
        ) from error
    except (OSError, ValidationError) as error:
        raise RunError(f"read run: cannot read {str(path)!r} ({_first_line(error)}).") from error


def read_trial(folder: Path, trial: str) -> TrialRecord:
    """Read how a finished trial of a run folder went.

    Raises:
        RunError: The trial is missing or damaged.
    """
    path = _trial_folder(folder, trial) / "trial.json"
    try:
        return TrialRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise RunError(
            f"read trial: cannot read {str(path)!r} ({_first_line(error)}). Delete the folder "
            f"{str(path.parent)!r} and resume the run to compute the trial again."
        ) from error


def finished_trials(folder: Path, manifest: RunManifest) -> list[str]:
    """Hashes of the trials that were run, failed ones included, in the order of the manifest."""
    return [t for t in manifest.trials if (_trial_folder(folder, t) / "trial.json").exists()]


def rows_path(folder: Path, trial: str) -> Path:
    """Where a run folder keeps a trial's rows."""
    return _trial_folder(folder, trial) / "rows.jsonl"


def transcripts_path(folder: Path, trial: str) -> Path:
    """Where a run folder keeps what was asked in a trial; missing if the trial failed."""
    return _trial_folder(folder, trial) / "cases.jsonl.gz"


def _trial_folder(folder: Path, trial: str) -> Path:
    return folder / "trials" / trial


def _begin(folder: Path, manifest: RunManifest, *, resume: bool) -> RunManifest:
    path = folder / "run.json"
    if not path.exists():
        _remove_leftovers(folder)
        unfinished = folder / f"{_UNFINISHED}run.json"
        try:
            with _explained("begin the run", path):
                _write_file(unfinished, (manifest.model_dump_json(indent=2) + "\n").encode())
                unfinished.replace(path)
                _flush_folder(folder)
        finally:
            unfinished.unlink(missing_ok=True)
        return manifest
    if not resume:
        raise RunError(
            f"open run: the folder holds a run already, got {str(folder)!r}. Choose another "
            "folder, or give --resume to go on with it."
        )
    stored = read_manifest(folder)
    if differences := stored.differences(manifest):
        raise RunError(
            f"resume run: the run in {str(folder)!r} has another configuration, "
            f"{'; '.join(differences)}. Repeat the options of that run, or choose another folder."
        )
    _remove_leftovers(folder)
    return stored


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunError(f"open run: not a folder, got {str(folder)!r}. Choose another place.")
    if folder.exists() and not (folder / "run.json").exists():
        for found in folder.iterdir():
            if found.name != _LOCK and not found.name.startswith(_UNFINISHED):
                raise RunError(
                    "open run: the folder holds something that is no run, got "
                    f"{str(folder)!r} with {found.name!r} in it. Choose an empty or new folder."
                )


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written; the lock says that it is not being used."""
    for leftover in [*folder.glob(f"{_UNFINISHED}*"), *folder.glob(f"trials/{_UNFINISHED}*")]:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _write_file(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _explained(operation: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{operation}: cannot write, got {str(path)!r} ({error.strerror or error}). Everything "
            "finished before is kept: make room or choose another folder, and resume."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]
