"""Checkpoints of a stream on disk: each whole or not at all, and with the last what goes on."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from editbench.editors.stream import Carried
from editbench.edits.card import package_versions
from editbench.files.result_folders import decode_sealed, encode_sealed, first_line
from editbench.files.whole_files import is_unfinished, remove, write_whole, writing_whole_folder
from editbench.results.stream_records import CheckpointRecord
from editbench.results.transcript import CaseTranscript
from editbench.runner.measuring import Measurement

_CHECKPOINT, _CARRIED = "checkpoint.json", "carried.safetensors"


class Checkpoint(BaseModel):
    """What was found when all facts of a stream so far were asked.

    Attributes:
        trial: The trial's hash.
        record: What the trial's record keeps of it.
        values: The numbers.
        transcripts: What was asked about each case, and what the model said.
        card: The card of all that was written.
        changes_something: Whether the edit does.
        stops: Why the stream ends here; None if it goes on, or is at its end.
    """

    model_config = ConfigDict(frozen=True)

    trial: str
    record: CheckpointRecord
    values: tuple[Measurement, ...]
    transcripts: tuple[CaseTranscript, ...]
    card: dict[str, Any]
    changes_something: bool
    stops: str | None = None


@dataclass(frozen=True)
class StreamFolder:
    """Where the checkpoints of one stream lie while it is not finished.

    ::

        <path>/<facts written>/checkpoint.json      a `Checkpoint`
        <path>/<facts written>/carried.safetensors  what the stream goes on from; in the last alone

    Attributes:
        path: The folder, made when there is something to keep.
        trial: The trial's hash.
    """

    path: Path
    trial: str

    def read(self) -> tuple[list[Checkpoint], Carried | None]:
        """All checkpoints in their order, and what the stream carried at the last one.

        What is damaged is said, and nothing of it or after it is believed.
        """
        found: list[Checkpoint] = []
        carried: Carried | None = None
        folders = sorted(self.path.glob("*")) if self.path.is_dir() else []
        for folder in (each for each in folders if not is_unfinished(each)):
            carried = None
            try:
                found.append(self._read_checkpoint(folder))
                carried = self._read_carried(folder, found[-1].record.n_written)
            except (OSError, ValueError, LookupError) as error:
                warnings.warn(
                    f"stream: a checkpoint cannot be read, got {str(folder)!r} "
                    f"({first_line(error)}). It is computed again.",
                    stacklevel=2,
                )
                break
        return found, carried

    def keep(self, checkpoint: Checkpoint, carried: Carried | None) -> None:
        """Write a checkpoint, and what is carried; earlier ones are made small.

        Where that cannot be written, a warning says so: it is not worth a run.
        """
        folder = self.path / f"{checkpoint.record.n_written:08d}"
        try:
            with writing_whole_folder(folder) as unfinished:
                write_whole(unfinished / _CHECKPOINT, encode_sealed(checkpoint))
                if carried is not None:
                    carried.save(unfinished / _CARRIED, self._describe(checkpoint))
        except OSError as error:
            warnings.warn(
                f"stream: a checkpoint cannot be kept, got {str(folder)!r} ({error}). Free some "
                "space; until then a run that is killed goes on from an earlier one.",
                stacklevel=2,
            )
            return
        for earlier in self.path.glob(f"*/{_CARRIED}"):
            if earlier.parent != folder:
                remove(earlier)

    def _read_checkpoint(self, folder: Path) -> Checkpoint:
        checkpoint = decode_sealed((folder / _CHECKPOINT).read_bytes(), Checkpoint)
        if checkpoint.trial != self.trial:
            raise ValueError(f"it is of trial {checkpoint.trial}")
        return checkpoint

    def _read_carried(self, folder: Path, n_written: int) -> Carried | None:
        path = folder / _CARRIED
        if not path.exists():
            return None
        carried, told = Carried.load(path)
        if (told["trial"], told["n_written"]) != (self.trial, n_written):
            raise ValueError(f"it is of trial {told['trial']} after {told['n_written']} facts")
        return carried

    @staticmethod
    def _describe(checkpoint: Checkpoint) -> dict[str, Any]:
        """Where what is carried comes from."""
        card = checkpoint.card
        return {
            "format": 1,
            "trial": checkpoint.trial,
            "n_written": checkpoint.record.n_written,
            **{name: card[name] for name in ("editor", "model_fingerprint", "requests_hash")},
            "versions": package_versions(),
        }


def last_of(checkpoints: Sequence[Checkpoint]) -> int:
    """How many facts had been written at the last of some checkpoints."""
    return checkpoints[-1].record.n_written if checkpoints else 0
