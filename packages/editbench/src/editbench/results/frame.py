"""Rows of one or more runs as one tidy table."""

from collections.abc import Iterable
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import pandas as pd

from editbench.results.row import FIELDS
from editbench.results.row import read_rows as read_rows_file
from editbench.results.store import finished_trials, read_manifest, rows_path


def load_rows(folders: Iterable[Path]) -> pd.DataFrame:
    """Read the rows of run folders.

    Args:
        folders: Run folders, finished or not. A trial that several of them hold is read once: the
            same hash means the same rows.

    Returns:
        One line per row, in the order of the runs and their trials, with the columns of
        `editbench.results.row.Row`. A failed trial is one line without case, metric and value. A
        stream has lines of all of its checkpoints: whoever takes means looks at one of them.

    Raises:
        RunError: A folder holds no run, or one of its files is damaged.
    """
    rows = []
    as_tuple = attrgetter(*FIELDS)  # dataclasses.astuple copies deeply, at twenty times the cost
    seen: set[str] = set()
    for folder in folders:
        for trial in finished_trials(folder, read_manifest(folder)):
            if trial not in seen:
                seen.add(trial)
                for row in read_rows_file(rows_path(folder, trial)):
                    says = row.checkpoint is not None  # but where it failed, or is older
                    rows.append(as_tuple(row if says else replace(row, checkpoint=row.n_edits)))
    frame = pd.DataFrame(rows, columns=list(FIELDS))
    whole = dict.fromkeys(("n_edits", "seed", "checkpoint"), "int64")
    return frame.astype({"value": "float64", "batch_size": "Int64", **whole})
