"""The search: one trial after another, each chosen by what those before it came to."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from time import monotonic
from typing import TYPE_CHECKING, Any

import pandas as pd

from editbench.editors.base import EditorConfig
from editbench.errors import EditbenchError, EditError
from editbench.progress import Progress
from editbench.tuning.bench import Bench
from editbench.tuning.facts import Size
from editbench.tuning.objective import FAILED

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

_N_COMPANIONS = 4  # trials that differ in what is cheap alone, the first of them included
_N_RANDOM = 8  # trials before there is something to learn from
_N_UNPRUNED = 5
_MOST_REPEATED = 30  # draws in a row of what was tried before, until nothing seems to be left
_MOST_FAILED = 3

_LEADER, _SECONDS, _REPEATED, _MESSAGE = "leader", "seconds", "repeats", "message"
_DRAWN, _MEASURED = "drawn", "measured"


class _OutOfTimeError(KeyboardInterrupt):
    """The time is used up: as harmless as Ctrl-C, wherever it comes."""


@dataclass(frozen=True, slots=True)
class Found:
    """Hyperparameters, and what they came to on the facts that were searched on.

    Attributes:
        number: The number of the trial, counted from 0, which is the default.
        config: The hyperparameters.
        value: What the objective made of them.
    """

    number: int
    config: EditorConfig
    value: float


@dataclass(frozen=True, slots=True)
class SearchStatus:
    """How far a search has come.

    Attributes:
        n_trials: Trials that are done, whatever came of them.
        n_pruned: Those that were given up after a part of the facts.
        n_failed: Those with which the editor failed.
        seconds: How long they took together.
        default: What the search started from.
        best: The best so far; of equal ones the earliest. None before the first is done.
    """

    n_trials: int
    n_pruned: int
    n_failed: int
    seconds: float
    default: Found | None
    best: Found | None


class Search:
    """Goes on with a search until it is to end.

    Trials are drawn by a tree-structured Parzen estimator (Bergstra et al., 2011), the first as
    the hyperparameters that the search starts from. A trial that proposes how z is optimized, or
    whatever else takes long, is followed by some that keep that and vary what is cheap: λ, say. A
    trial that does worse with some of the facts than half of those before it is given up.

    What is drawn depends on the seed and on what the trials before came to, and on nothing else: a
    search that was killed goes on as if it had not been.

    Args:
        study: The record.
        bench: Measures hyperparameters.
        on_progress: Told about the work.
        on_better: Told whenever there is a new best.
    """

    def __init__(
        self,
        study: "Study",
        bench: Bench,
        on_progress: Progress,
        on_better: Callable[[SearchStatus], object],
    ) -> None:
        self._study = study
        self._bench = bench
        self._on_progress = on_progress
        self._on_better = on_better
        self._unedited: dict[Size, pd.DataFrame] = {}
        self._deadline: float | None = None

    @property
    def state(self) -> SearchStatus:
        """How far the search has come."""
        done = [trial for trial in self._drawn() if _REPEATED not in trial.user_attrs]
        complete = [each for each in enumerate(done) if each[1].state.name == "COMPLETE"]
        good = [each for each in complete if each[1].value != FAILED]
        best = max(good, key=lambda each: (each[1].value, -each[0]), default=None)
        return SearchStatus(
            n_trials=len(done),
            n_pruned=len(done) - len(complete),
            n_failed=len(complete) - len(good),
            seconds=sum(trial.user_attrs[_SECONDS] for trial in done),
            default=self._found(*good[0]) if good and good[0][0] == 0 else None,
            best=None if best is None else self._found(*best),
        )

    def run(self, n_trials: int | None, seconds: float | None) -> str:
        """Make trials, and say why there are no more.

        Args:
            n_trials: How many there are to be in all; None sets no limit.
            seconds: How long they may take together, those of earlier sessions included. The
                first, the default, is not cut short.

        Raises:
            EditError: The editor fails again and again from the first trial on.
        """
        from optuna.trial import TrialState

        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._study.tell(trial.number, state=TrialState.FAIL)  # it was killed: drawn again
        n_repeated = 0
        while True:
            state = self.state
            if n_trials is not None and state.n_trials >= n_trials:
                return f"{state.n_trials} trials are done"
            left = None if seconds is None else seconds - state.seconds
            if left is not None and left <= 0 and state.n_trials:
                return "the time is used up"
            if n_repeated == _MOST_REPEATED:
                return "nothing else seems to be left to try"
            self._on_progress("trials", state.n_trials, n_trials or 0, _describe(state.best))
            is_cut = left is not None and state.n_trials > 0
            self._deadline = monotonic() + left if left is not None and is_cut else None
            try:
                n_repeated = 0 if self._make_trial() else n_repeated + 1
            except _OutOfTimeError:
                return "the time is used up"
            finally:
                self._deadline = None
            now = self.state
            if now.n_failed == now.n_trials == _MOST_FAILED:
                raise EditError(
                    f"tune: the editor '{self._bench.problem.editor.name}' fails whatever is "
                    f"tried: {self._drawn()[-1].user_attrs[_MESSAGE]}"
                )
            if now.best != state.best:
                self._on_better(now)

    def _keep_time(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Pass on how a trial advances, and end it when the time is used up."""
        if self._deadline is not None and monotonic() > self._deadline:
            raise _OutOfTimeError
        if stage != "cases":  # of one trial, which says nothing about the search
            self._on_progress(stage, done, total, note)

    def _measure(self, config: EditorConfig | None, size: Size) -> pd.DataFrame:
        facts = self._bench.problem.facts.search
        return self._bench.measure(config, facts, size, self._keep_time)

    def _make_trial(self) -> bool:
        """Draw hyperparameters and try them; False where they had been tried before."""
        import optuna
        from optuna.trial import TrialState

        problem, drawn_before = self._bench.problem, self._drawn()
        fixed = self._choose_fixed(drawn_before)
        if fixed and not self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            self._study.enqueue_trial(fixed)
        seed = random.Random(f"{problem.seed} {len(drawn_before)}").getrandbits(32)
        if drawn_before and _REPEATED in drawn_before[-1].user_attrs:
            self._study.sampler = optuna.samplers.RandomSampler(seed)
        else:
            self._study.sampler = optuna.samplers.TPESampler(
                seed=seed, multivariate=True, n_startup_trials=_N_RANDOM
            )
        self._study.pruner = optuna.pruners.MedianPruner(n_startup_trials=_N_UNPRUNED)
        trial = self._study.ask(self._distributions)
        leader = drawn_before[-1].user_attrs[_LEADER] if fixed and drawn_before else trial.number
        drawn = self._values(trial.params)
        trial.set_user_attr(_LEADER, leader)
        trial.set_user_attr(_DRAWN, {name: drawn[name] for name in self._distributions})
        if any(earlier.params == trial.params for earlier in drawn_before):
            trial.set_user_attr(_REPEATED, True)
            self._study.tell(trial, state=TrialState.FAIL)
            return False
        began = monotonic()
        value: float | None = FAILED
        try:
            config = problem.configure(drawn) if drawn_before else problem.start
            value = self._try(trial, config, may_prune=bool(drawn_before))
        except EditbenchError as error:
            trial.set_user_attr(_MESSAGE, str(error))
            self._bench.on_warning(f"a trial failed: {error}")
        trial.set_user_attr(_SECONDS, monotonic() - began)
        if value is None:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, value)
        return True

    def _try(self, trial: "Trial", config: EditorConfig, *, may_prune: bool) -> float | None:
        """What hyperparameters come to; None if they are given up."""
        facts = self._bench.problem.facts
        for step, size in enumerate(facts.rungs):
            measured = self._measure(config, size)
            if size not in self._unedited:
                self._unedited[size] = self._measure(None, size)
            trial.set_user_attr(_MEASURED, measured.mean().round(2).to_dict())
            value = self._bench.problem.objective.value(measured, self._unedited[size])
            if size != facts.size and isfinite(value):
                trial.report(value, step)
                if may_prune and trial.should_prune():
                    return None
        if not isfinite(value):
            raise EditError("tune: the score is not defined on these facts.")
        return value

    def _choose_fixed(self, drawn_before: "Sequence[FrozenTrial]") -> dict[str, int]:
        """What the next trial shall keep, as places in grids: the rest is drawn."""
        problem = self._bench.problem
        if not drawn_before:
            return self._places(problem.start_drawn)
        leader = drawn_before[-1].user_attrs[_LEADER]
        group = [trial for trial in drawn_before if trial.user_attrs[_LEADER] == leader]
        kept = [name for name in self._distributions if not problem.parts[name].is_cheap]
        if len(kept) == len(self._distributions) or len(group) >= _N_COMPANIONS:
            return {}
        if group[0].value in (None, FAILED):  # given up, tried before, or of no use
            return {}
        return {name: group[0].params[name] for name in kept}

    def _places(self, drawn: Mapping[str, Any]) -> dict[str, int]:
        parts = self._bench.problem.parts
        return {
            name: parts[name].values.index(drawn[name])
            for name in self._distributions
            if name in drawn
        }

    @property
    def _distributions(self) -> "dict[str, BaseDistribution]":
        """What is drawn: places in the grids that have more than one value."""
        from optuna.distributions import IntDistribution

        return {
            name: IntDistribution(0, len(grid.values) - 1)
            for name, grid in self._bench.problem.parts.items()
            if len(grid.values) > 1
        }

    def _drawn(self) -> "list[FrozenTrial]":
        """The trials whose hyperparameters decide what is drawn next, in order."""
        from optuna.trial import TrialState

        done = self._study.get_trials(
            deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        )
        return [
            trial
            for trial in done
            if trial.state != TrialState.FAIL or _REPEATED in trial.user_attrs
        ]

    def _values(self, places: Mapping[str, int]) -> dict[str, Any]:
        parts = self._bench.problem.parts
        return {name: grid.values[places.get(name, 0)] for name, grid in parts.items()}

    def _found(self, number: int, trial: "FrozenTrial") -> Found:
        problem = self._bench.problem
        config = problem.configure(self._values(trial.params)) if number else problem.start
        assert trial.value is not None
        return Found(number, config, trial.value)


def _describe(best: Found | None) -> str:
    return "" if best is None else f"best so far {best.value:.1f} (trial {best.number})"
