"""Running planned trials for a command: the run folder, what is said on the way, and the result."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from editbench.cli.group import SOME_FAILED, telling_what_is_kept
from editbench.cli.progress import ProgressDisplay
from editbench.cli.report import format_table
from editbench.errors import RunError
from editbench.plugins.manager import PluginManager

if TYPE_CHECKING:
    from editbench.results.row import Row
    from editbench.runner import RunSummary, Trial


def choose_folder(out: Path | None, *, resume: bool) -> Path:
    """The run folder: the one that is asked for, or a new one named after the time.

    Raises:
        RunError: It is to be resumed and nobody says which; or it holds a run and is not.
    """
    if out is None and resume:
        raise RunError("--resume: which run? Name its folder with --out DIR.")
    if out is not None and not resume and (out / "run.json").exists():
        raise RunError(
            f"open run: the folder holds a run already, got {str(out)!r}. Choose another folder, "
            "or give --resume to go on with it."
        )
    return out or Path("runs") / f"{datetime.now():%Y-%m-%d-%H%M%S}"


@contextmanager
def showing_progress(folder: Path, *, quiet: bool) -> Iterator[ProgressDisplay]:
    """Show progress for the length of a block; an interrupt says what the folder keeps."""
    with (
        ProgressDisplay(quiet=quiet) as display,
        telling_what_is_kept(lambda: _describe_interruption(folder)),
    ):
        yield display


def run_trials(
    trials: "Sequence[Trial]",
    folder: Path,
    plugins: PluginManager,
    display: ProgressDisplay,
    *,
    resume: bool,
    cache: Path | None,
    provenance: Mapping[str, Any] | None = None,
) -> "RunSummary":
    """Run the trials, and tell plugins of each that is finished."""
    from editbench.runner import run_grid

    display.say(f"Run folder: {folder} ({len(trials)} trials)")
    return run_grid(
        trials,
        folder,
        resume=resume,
        cache=cache,
        provenance={"command": sys.argv, **(provenance or {})},
        on_progress=display,
        on_trial_finished=lambda trial, rows: _tell_plugins(plugins, trial, rows, display),
    )


def show_result(context: click.Context, summary: "RunSummary") -> None:
    """Print warnings and the table; leave with the exit code for failures if there were any."""
    from editbench.results.report import summarize

    for warning in summary.warnings:
        click.echo(f"Warning: {warning}", err=True)
    click.echo(format_table(summarize([summary.folder])), nl=False)
    click.echo(f"Results: {summary.folder}")
    if summary.failures:
        context.exit(SOME_FAILED)


def _tell_plugins(
    plugins: PluginManager, trial: "Trial", rows: "Sequence[Row]", display: ProgressDisplay
) -> None:
    for failure in plugins.trial_finished(trial, rows):
        display.say(f"Warning: {failure}")


def _describe_interruption(folder: Path) -> str:
    from editbench.results.store import finished_trials, read_manifest

    if not (folder / "run.json").exists():
        return "Interrupted before the first trial: no run was begun."
    manifest = read_manifest(folder)
    n_finished = len(finished_trials(folder, manifest))
    return (
        f"Interrupted: {n_finished} of {len(manifest.trials)} trials are finished and kept in "
        f"{folder}. Go on with the same options and --out {folder} --resume."
    )
