"""The atom of all results: one number, of one metric, on one case, in one trial."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from editbench.errors import RunError

Status = Literal["ok", "no_effect", "error"]


@dataclass(frozen=True, slots=True)
class Row:
    """One case × one metric, or one failed trial.

    Attributes:
        trial: Content hash of the trial.
        editor: Name of the editor.
        model: What the run calls the model.
        dataset: Name of the dataset.
        n_edits: How many requests were written at once.
        seed: The trial's seed.
        case_id: The case; None in the one row of a failed trial.
        metric: The metric, such as ``efficacy_success``; None in the one row of a failed trial.
        value: The number, rates in percent; None in the one row of a failed trial.
        status: ``ok``; ``no_effect`` if the editor changed nothing; ``error`` if the trial failed.
        message: What went wrong, in a failed trial.
        batch_size: How many requests were written at a time; None if all were at once.
        checkpoint: How many had been written when this was asked; None in rows that do not say.
        fact_status: What had become of the case's fact by then, as the editor says: ``written``,
            ``clamped``, ``stopped early`` or ``skipped``; None if it does not say.
    """

    trial: str
    editor: str
    model: str
    dataset: str
    n_edits: int
    seed: int
    case_id: str | None
    metric: str | None
    value: float | None
    status: Status
    message: str | None = None
    batch_size: int | None = None
    checkpoint: int | None = None
    fact_status: str | None = None


FIELDS = tuple(field.name for field in fields(Row))
"""Names of a row's columns, in order."""


def encode_rows(rows: Iterable[Row]) -> str:
    """Write rows as JSON Lines."""
    return "".join(
        json.dumps(asdict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows
    )


def read_rows(path: Path) -> Iterator[Row]:
    """Read rows from a JSON Lines file.

    Raises:
        RunError: The file cannot be read, or a line is no row.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"read rows: cannot read the file, got {str(path)!r} ({error}).") from error
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            yield Row(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise RunError(
                f"read rows: {path}:{number} is no row ({error}). Delete the folder "
                f"{str(path.parent)!r} and resume the run to compute its trial again."
            ) from error
