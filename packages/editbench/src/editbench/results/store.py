"""The run folder: what a run has finished, on disk, whole or not at all.

::

    <folder>/run.json                    what the run consists of
    <folder>/trials/<hash>/rows.jsonl    one row per case and metric
    <folder>/trials/<hash>/cases.jsonl.gz  what was asked about each case, and what the model said
    <folder>/trials/<hash>/trial.json    status, timings, edit cards, warnings

A trial is written into a folder of another name, flushed to disk, and renamed when it is complete;
a process that is killed at any point leaves either all of a trial or a leftover that the next one
removes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from editbench.errors import RunError
from editbench.files.result_folders import FolderKind, decode_sealed, encode_sealed, first_line
from editbench.files.seals import checksum, checksum_file
from editbench.files.whole_files import write_whole, writing_whole_folder
from editbench.results.manifest import RunManifest
from editbench.results.row import Row, Status, encode_rows
from editbench.results.transcript import CaseTranscript, encode_transcripts

_KIND = FolderKind("run", "run.json", RunError)
_ROWS, _CASES, _RECORD = "rows.jsonl", "cases.jsonl.gz", "trial.json"


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
        n_known: How many facts the unedited model knew, and of how many; None if it was not asked
            since all facts are edited.
        n_shared_subjects: How many cases have a subject that another one written with them has.
        edits: The card of each batch's edit.
        warnings: What was warned about on the way.
        files: Name to SHA-256 of the trial's other files; empty in records of earlier versions.
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
    n_known: tuple[int, int] | None = None
    n_shared_subjects: int = 0
    edits: tuple[dict[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    files: dict[str, str] = Field(default_factory=dict)


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
        _KIND.refuse_foreign(folder)
        with _KIND.locked(folder):
            yield cls(folder, _begin(folder, manifest, resume=resume))

    def is_finished(self, trial: str) -> bool:
        """Whether the trial has been run, and did not fail."""
        return has_succeeded(self.folder, trial)

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
        contents = {_ROWS: encode_rows(rows).encode()}
        if transcripts:
            contents[_CASES] = encode_transcripts(transcripts)
        files = {name: checksum(content) for name, content in contents.items()}
        contents[_RECORD] = encode_sealed(record.model_copy(update={"files": files}))
        with (
            _KIND.explained("store the trial", finished),
            writing_whole_folder(finished) as unfinished,
        ):
            for name, content in contents.items():
                write_whole(unfinished / name, content)


def read_manifest(folder: Path) -> RunManifest:
    """Read the ``run.json`` of a run folder.

    Raises:
        RunError: There is none, or it is damaged.
    """
    return _KIND.read_manifest(folder, RunManifest)


def read_trial(folder: Path, trial: str) -> TrialRecord:
    """Read how a finished trial of a run folder went, and check its other files.

    Raises:
        RunError: The trial is missing or damaged.
    """
    path = _trial_folder(folder, trial) / _RECORD
    try:
        record = decode_sealed(path.read_bytes(), TrialRecord)
        if record.trial != trial:
            raise ValueError(f"it is of trial {record.trial}")
        for name, stated in record.files.items():
            path = _trial_folder(folder, trial) / name
            if checksum_file(path) != stated:
                raise ValueError("it is not what was written: its checksum is another")
    except (OSError, ValueError) as error:
        raise RunError(
            f"read trial: cannot read {str(path)!r} ({first_line(error)}). Delete the folder "
            f"{str(path.parent)!r} and resume the run to compute the trial again."
        ) from error
    return record


def finished_trials(folder: Path, manifest: RunManifest) -> list[str]:
    """Hashes of the trials that were run, failed ones included, in the order of the manifest."""
    return [t for t in manifest.trials if _trial_folder(folder, t).exists()]


def has_succeeded(folder: Path, trial: str) -> bool:
    """Whether a run folder holds a trial that has been run, and did not fail.

    Raises:
        RunError: The trial is damaged.
    """
    # It appears as a whole: where its record is missing, it is damaged.
    return _trial_folder(folder, trial).exists() and read_trial(folder, trial).status != "error"


def rows_path(folder: Path, trial: str) -> Path:
    """Where a run folder keeps a trial's rows, which are checked.

    Raises:
        RunError: The trial is damaged.
    """
    read_trial(folder, trial)
    return _trial_folder(folder, trial) / _ROWS


def transcripts_path(folder: Path, trial: str) -> Path:
    """Where a run folder keeps what was asked in a trial; missing if the trial failed.

    Raises:
        RunError: The trial is damaged.
    """
    read_trial(folder, trial)
    return _trial_folder(folder, trial) / _CASES


def _trial_folder(folder: Path, trial: str) -> Path:
    return folder / "trials" / trial


def _begin(folder: Path, manifest: RunManifest, *, resume: bool) -> RunManifest:
    if not _KIND.is_begun(folder):
        content = encode_sealed(manifest)
        _KIND.write(folder / _KIND.manifest, content, operation="begin the run")
        return manifest
    if not resume:
        _KIND.refuse_begun(folder)
    stored = read_manifest(folder)
    if differences := stored.differences(manifest):
        raise RunError(
            f"resume run: the run in {str(folder)!r} has another configuration, "
            f"{'; '.join(differences)}. Repeat the options of that run, or choose another folder."
        )
    return stored
