"""A run that is gone on with."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from tests.editbench.runner.toys import (
    Broken,
    Length,
    RandomConfig,
    RandomUpdate,
    make_grid,
    random_update,
    rows_of,
)

from editbench.editors.base import Resources
from editbench.edits.edit import Edit
from editbench.errors import RunError
from editbench.metrics.probes import Success
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest
from editbench.runner import run_grid
from editbench.testing import tiny_model


def test_a_resumed_run_skips_what_is_done_and_retries_what_failed(model, tmp_path):
    trials = make_grid(model, Broken(RandomConfig()), random_update())
    run_grid(trials, tmp_path)
    before = rows_of(tmp_path)
    heard = []
    summary = run_grid(
        trials, tmp_path, resume=True, on_trial_finished=lambda trial, _: heard.append(trial)
    )
    assert (summary.n_run, summary.n_skipped) == (1, 2)
    assert [trial.editor.name for trial in heard] == ["broken"]
    assert rows_of(tmp_path) == before


def test_a_folder_with_a_run_is_refused_unless_resumed_with_the_same_configuration(model, tmp_path):
    run_grid(make_grid(model, random_update(1.0)), tmp_path)
    with pytest.raises(RunError, match="holds a run already"):
        run_grid(make_grid(model, random_update(1.0)), tmp_path)
    with pytest.raises(RunError, match=r"random\.scale: got 2\.0; expected 1\.0"):
        run_grid(make_grid(model, random_update(2.0)), tmp_path, resume=True)


class Interrupted(RandomUpdate):
    """Stands for a person at the keyboard, or for the system's memory running out."""

    name: ClassVar[str] = "random"
    strike: Callable[[], None]

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        if resources.seed == 1:
            self.strike()
        return super().edit(model, requests, resources)


def test_an_interrupt_keeps_what_is_finished(model, tmp_path):
    def press() -> None:
        raise KeyboardInterrupt

    editor = Interrupted(RandomConfig())
    editor.strike = press
    before = model.compute_fingerprint()
    with pytest.raises(KeyboardInterrupt):
        run_grid(make_grid(model, editor, seeds=[0, 1]), tmp_path / "run")
    assert model.compute_fingerprint() == before
    assert len(rows_of(tmp_path / "run")) == 3
    trials = make_grid(model, random_update(), seeds=[0, 1])
    summary = run_grid(trials, tmp_path / "run", resume=True)
    assert (summary.n_run, summary.n_skipped) == (1, 3)
    run_grid(trials, tmp_path / "whole")
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_run_killed_between_trials_and_resumed_gives_the_same_rows(model, tmp_path):
    """The killed run is a process of its own: this very module, run as a script."""
    folder, root = tmp_path / "run", Path(__file__).parents[3]
    module = ".".join(Path(__file__).relative_to(root).with_suffix("").parts)
    process = subprocess.run(
        [sys.executable, "-m", module, str(folder)],
        check=False,
        timeout=120,
        capture_output=True,
        cwd=root,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert len(rows_of(folder)) == 3
    trials = make_grid(model, random_update(), seeds=[0, 1], metrics=[Success(), Length()])
    summary = run_grid(trials, folder, resume=True)
    assert (summary.n_run, summary.n_skipped) == (1, 3)
    run_grid(trials, tmp_path / "whole")
    assert rows_of(folder) == rows_of(tmp_path / "whole")
    assert all(json.loads(line) for lines in rows_of(folder).values() for line in lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    doomed = Interrupted(RandomConfig())
    doomed.strike = lambda: os.kill(os.getpid(), signal.SIGKILL)
    run_grid(
        make_grid(tiny_model(n_layers=2), doomed, seeds=[0, 1], metrics=[Success(), Length()]),
        Path(sys.argv[1]),
    )
