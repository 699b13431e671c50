"""Who runs the trials of a grid: this process, one after the other, unless told otherwise."""

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from editbench.progress import Progress
from editbench.questions import Answers
from editbench.runner.conditions import Conditions
from editbench.runner.prepare import PreparedTrial
from editbench.runner.trial_run import TrialOutcome, failed_trial, run_trial


class Executor(Protocol):
    """Runs trials, anywhere and in any order, and gives back what came out of them.

    It stores nothing: the process that asked is the only one that writes to the run folder. Every
    trial goes through `run_trial`.
    """

    def describe(self) -> Mapping[str, Any]:
        """What provenance says about it, as plain JSON values."""

    def run(
        self,
        trials: Sequence[PreparedTrial],
        conditions: Conditions,
        on_progress: Progress,
        on_begun: Callable[[PreparedTrial], None],
    ) -> Generator[TrialOutcome, None, None]:
        """Run trials.

        Args:
            trials: The trials.
            conditions: What they are run with.
            on_progress: Told about the work as it advances.
            on_begun: Called as each trial begins.

        Yields:
            One outcome of each trial, as soon as it is there. Closing the generator ends what is
            still running.
        """


class LocalExecutor:
    """One trial after the other, in this process."""

    def describe(self) -> Mapping[str, Any]:
        """Its name."""
        return {"name": "local"}

    def run(
        self,
        trials: Sequence[PreparedTrial],
        conditions: Conditions,
        on_progress: Progress,
        on_begun: Callable[[PreparedTrial], None],
    ) -> Generator[TrialOutcome, None, None]:
        """Run trials in order; see `Executor.run`."""
        asked: dict[int, Answers] = {}  # what has been asked of unedited models so far
        spoiled: dict[str, str] = {}  # fingerprints of models that are of no use, and why
        for trial in trials:
            on_begun(trial)
            if reason := spoiled.get(trial.model.fingerprint):
                yield failed_trial(trial, reason)
                continue

            def unedited(trial: PreparedTrial = trial) -> Answers:
                for each in trial.questionnaires:
                    if id(each) not in asked:
                        asked[id(each)] = each.ask(
                            trial.model,
                            cache=conditions.cache,
                            token_budget=conditions.token_budget,
                            on_progress=partial(on_progress, "answers"),
                        )
                return merge_answers([asked[id(each)] for each in trial.questionnaires])

            outcome = run_trial(trial, conditions, unedited, on_progress)
            if outcome.spoiled is not None:
                spoiled[trial.model.fingerprint] = outcome.spoiled
            yield outcome


def merge_answers(parts: Sequence[Answers]) -> Answers:
    """The answers to several questionnaires as one mapping."""
    return {question: answer for part in parts for question, answer in part.items()}
