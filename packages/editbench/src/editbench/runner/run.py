"""Running a grid of trials: prepared first, each stored by this process as soon as it is done."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from editbench.progress import Progress, report_nothing
from editbench.results.manifest import RunManifest
from editbench.results.row import Row
from editbench.results.store import RunStore
from editbench.runner.executors import Executor, LocalExecutor
from editbench.runner.prepare import PreparedRun, PreparedTrial, prepare_run
from editbench.runner.provenance import describe_metrics, gather_provenance
from editbench.runner.trial import Trial
from editbench.runner.trial_run import Conditions, TrialOutcome, describe, failed_trial, now

TrialFinished = Callable[[Trial, Sequence[Row]], object]


@dataclass(frozen=True, slots=True)
class RunSummary:
    """How a run went.

    Attributes:
        folder: Where its results are.
        n_run: Trials that were run now, failed ones included.
        n_skipped: Trials that were done already.
        failures: For each trial that failed, what it was and what went wrong.
        warnings: What was warned about, each once.
    """

    folder: Path
    n_run: int
    n_skipped: int
    failures: tuple[tuple[Trial, str], ...]
    warnings: tuple[str, ...]


def run_grid(
    trials: Sequence[Trial] | PreparedRun,
    folder: Path,
    *,
    resume: bool = False,
    cache: Path | None = None,
    token_budget: int | None = None,
    executor: Executor | None = None,
    provenance: Mapping[str, Any] | None = None,
    on_progress: Progress = report_nothing,
    on_trial_finished: TrialFinished | None = None,
) -> RunSummary:
    """Run trials and store what they yield.

    Everything that can be known to be wrong is checked before the first trial begins. After that a
    trial that fails becomes a row that says why, and the others go on. A trial is stored whole as
    soon as it is finished, by this process alone: an interrupt or a crash loses only what is being
    run.

    Args:
        trials: What to run, in this order; or these trials prepared already.
        folder: The run folder.
        resume: Go on with the run that the folder holds, skipping what is done; trials that
            failed are tried again.
        cache: Where editors and the unedited model's answers may keep what is worth keeping between
            runs.
        token_budget: How many tokens to put to a model at once when it is asked; None chooses by
            device.
        executor: Who runs the trials; by default this process does, one after the other.
        provenance: What else ``run.json`` should say about where the run comes from.
        on_progress: Told about the work as it advances.
        on_trial_finished: Called after each trial that was run, once its rows are stored. What it
            raises is warned about.

    Returns:
        How the run went.

    Raises:
        EditbenchError: The trials cannot be run, or the folder cannot be used; see
            `prepare_run` and `RunStore`.
    """
    executor = executor or LocalExecutor()
    run = trials if isinstance(trials, PreparedRun) else prepare_run(trials, cache)
    for model in {id(trial.model): trial.model for trial in run.trials}.values():
        model.check_unedited("run")
    manifest = RunManifest(
        created=now(),
        provenance={
            **gather_provenance(run.trials),
            "executor": dict(executor.describe()),
            **(provenance or {}),
        },
        metrics=describe_metrics(run.trials),
        trials={trial.hash: trial.description for trial in run.trials},
    )
    with RunStore.open(folder, manifest, resume=resume) as store:
        course = _Course(store, run, on_progress, on_trial_finished)
        outcomes = executor.run(
            course.take_up(), Conditions(cache, token_budget), on_progress, course.announce
        )
        with closing(outcomes):
            for outcome in outcomes:
                course.keep(outcome)
                course.report()
    warnings = tuple(dict.fromkeys(course.warnings))
    return RunSummary(folder, course.n_run, course.n_skipped, tuple(course.failures), warnings)


@dataclass
class _Course:
    """The course of a run: what it was given, and how it has gone so far."""

    store: RunStore
    run: PreparedRun
    on_progress: Progress
    on_trial_finished: TrialFinished | None
    n_run: int = 0
    n_skipped: int = 0
    n_cases_done: int = 0
    failures: list[tuple[Trial, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._place = {trial.hash: place for place, trial in enumerate(self.run.prepared)}
        self._n_cases = sum(trial.n_cases for trial in self.run.prepared)

    def take_up(self) -> list[PreparedTrial]:
        """What is left to do; what is done is skipped, what could not be prepared has failed."""
        left = []
        for trial in self.run.prepared:
            if self.store.is_finished(trial.hash):
                self.n_skipped += 1
                self.n_cases_done += trial.n_cases
            elif trial.failure is not None:
                self.keep(failed_trial(trial, trial.failure))
            else:
                left.append(trial)
        return left

    def announce(self, trial: PreparedTrial) -> None:
        """Say that a trial begins."""
        place = self._place[trial.hash] + 1
        self.report(f"trial {place} of {len(self.run.trials)}: {trial.label}")

    def report(self, note: str = "") -> None:
        """Say how far the run has come."""
        self.on_progress("cases", self.n_cases_done, self._n_cases, note)

    def keep(self, outcome: TrialOutcome) -> None:
        """Store a trial, and tell whoever listens."""
        record = outcome.record
        place = self._place[record.trial]
        trial = self.run.trials[place]
        rows = self._rows(outcome)
        self.store.write(record, rows, outcome.transcripts)
        self.n_run += 1
        self.n_cases_done += self.run.prepared[place].n_cases
        self.warnings += record.warnings
        if record.status == "error":
            self.failures.append((trial, record.message or ""))
        if self.on_trial_finished is not None:
            try:
                self.on_trial_finished(trial, rows)
            except Exception as error:  # a listener is not worth a run
                self.warnings.append(f"after {trial.label}: {describe(error)}")

    def _rows(self, outcome: TrialOutcome) -> list[Row]:
        record = outcome.record
        # A resumed run may find the model in another place; what the run called it first stays.
        description = self.store.manifest.trials[record.trial]

        def row(case_id: str | None, metric: str | None, value: float | None) -> Row:
            return Row(
                trial=record.trial,
                editor=description.editor,
                model=description.model,
                dataset=description.dataset,
                n_edits=description.n_edits,
                seed=description.seed,
                case_id=case_id,
                metric=metric,
                value=value,
                status=record.status,
                message=record.message,
            )

        return [row(*value) for value in outcome.values] or [row(None, None, None)]
