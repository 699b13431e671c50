"""Running trials for a command: the run folder, what is said on the way, and the result."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from editbench.cli.group import SOME_FAILED, telling_what_is_kept
from editbench.cli.options import Decorator, gathering
from editbench.cli.plan import announce, work_of_trials
from editbench.cli.progress import ProgressDisplay
from editbench.cli.report import format_result
from editbench.errors import ConfigError, RunError
from editbench.plugins.manager import PluginManager

if TYPE_CHECKING:
    from editbench.results.row import Row
    from editbench.runner import Executor, PreparedRun, RunSummary, Trial


def executor_options() -> Decorator:
    """Options that say who runs the trials, passed on as ``executor``; None is this process."""
    return gathering(
        "executor",
        _choose_executor,
        click.option(
            "--executor",
            type=click.Choice(["local", "ray"]),
            default="local",
            show_default=True,
            help="Run trials one after the other in this process, or as tasks of a Ray cluster.",
        ),
        click.option(
            "--address",
            metavar="ADDRESS",
            help="The Ray cluster, such as 'auto' or HOST:PORT. [default: one of this machine's "
            "own]",
        ),
        click.option(
            "--trial-cpus",
            type=click.IntRange(min=1),
            metavar="N",
            help="Cores that Ray sets aside for a trial. [default: torch's threads]",
        ),
        click.option(
            "--trial-gpus",
            type=click.FloatRange(min=0),
            metavar="N",
            help="GPUs for a trial, or a part of one. [default: 1 if the model is on a GPU]",
        ),
        click.option(
            "--trial-memory",
            type=click.FloatRange(min=0),
            metavar="GIB",
            help="Main memory for a trial, by which it chooses its batches. [default: as planned]",
        ),
    )


def _choose_executor(
    executor: str,
    address: str | None,
    trial_cpus: int | None,
    trial_gpus: float | None,
    trial_memory: float | None,
) -> "Executor | None":
    if executor == "ray":
        from editbench.runner.on_ray import RayExecutor, TaskNeeds

        return RayExecutor(address, needs=TaskNeeds(trial_cpus, trial_gpus, trial_memory))
    only_ray = {
        "--address": address,
        "--trial-cpus": trial_cpus,
        "--trial-gpus": trial_gpus,
        "--trial-memory": trial_memory,
    }
    for option, value in only_ray.items():
        if value is not None:
            raise ConfigError(
                f"{option}: only for trials on a Ray cluster, got {value!r} with the executor "
                "'local'. Give --executor ray, or leave it out."
            )
    return None


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


def run_prepared(
    run: "PreparedRun",
    folder: Path,
    plugins: PluginManager,
    display: ProgressDisplay,
    *,
    resume: bool,
    cache: Path | None,
    executor: "Executor | None" = None,
    provenance: Mapping[str, Any] | None = None,
) -> "RunSummary":
    """Say what long work will cost, run the trials, and tell plugins of each that is finished."""
    from editbench.runner import run_grid

    work = work_of_trials(run, cache, resumed=folder if resume else None)
    announce(work, cache, display, is_divided=executor is not None)
    display.say(f"Run folder: {folder} ({len(run.trials)} trials)")
    return run_grid(
        run,
        folder,
        resume=resume,
        cache=cache,
        executor=executor,
        provenance={"command": sys.argv, **(provenance or {})},
        on_progress=display,
        on_trial_finished=lambda trial, rows: _tell_plugins(plugins, trial, rows, display),
    )


def show_result(summary: "RunSummary") -> None:
    """Print warnings and the table; leave with the exit code for failures if there were any."""
    from editbench.results.report import summarize

    for warning in summary.warnings:
        click.echo(f"Warning: {warning}", err=True)
    for trial, reason in summary.stopped:
        click.echo(f"Stopped: {trial.label}, {reason}")
    click.echo(format_result(summarize([summary.folder]), "table"), nl=False)
    click.echo(f"Results: {summary.folder}")
    if summary.failures:
        click.get_current_context().exit(SOME_FAILED)


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
    streams = ", and a stream up to its last checkpoint" if (folder / "streams").exists() else ""
    return (
        f"Interrupted: {n_finished} of {len(manifest.trials)} trials are finished and kept in "
        f"{folder}{streams}. Go on with the same options and --out {folder} --resume."
    )
