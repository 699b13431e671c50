"""What an experiment is given, and the trials that it makes of it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from editbench.datasets.base import Dataset
from editbench.editors.base import Editor
from editbench.metrics.base import AnyMetric
from editbench.models.editable import EditableModel
from editbench.requests import ConflictPolicy, resolve_conflicts
from editbench.runner import Inputs, Sample, Trial, grid


@dataclass(frozen=True)
class Setup:
    """A model, a dataset, and everything else that all trials of an experiment share.

    Attributes:
        model: The model, unedited.
        dataset: Where the facts come from.
        configured: Editors by name, with their hyperparameters for the model. One that cannot be
            used on it is missing, and the experiment does without it.
        metrics: Metrics by the name that experiments use; ``accuracy`` is the dataset's own
            definition of it. One that the dataset leaves nothing to ask is missing.
        max_edits: The largest number of edits at once; None is what the paper did, or as much of
            it as the data allow.
        seed: Source of every random choice.
        on_conflict: What happens to requests that contradict each other.
        inputs: What else editors are given.
    """

    model: EditableModel
    dataset: Dataset
    configured: Mapping[str, Editor]
    metrics: Mapping[str, AnyMetric]
    max_edits: int | None
    seed: int
    on_conflict: ConflictPolicy
    inputs: Inputs

    @property
    def n_cases(self) -> int:
        """How many cases can be edited together."""
        cases, _ = resolve_conflicts(self.dataset.cases(), self.on_conflict)
        return len(cases)

    @property
    def relation_sizes(self) -> dict[str, int]:
        """Relation to its number of cases, in the order of their names."""
        cases, _ = resolve_conflicts(self.dataset.cases(), self.on_conflict)
        sizes: dict[str, int] = {}
        for case in cases:
            if case.request.relation is not None:
                sizes[case.request.relation] = sizes.get(case.request.relation, 0) + 1
        return dict(sorted(sizes.items()))

    def limit(self, n_of_paper: int) -> int:
        """The paper's number of edits, or what the user and the data allow of it."""
        return min(n_of_paper, self.max_edits or n_of_paper, self.n_cases)

    def editor(self, name: str, **changes: Any) -> Editor:
        """An editor with some of its hyperparameters changed.

        Raises:
            ConfigError: A changed field is unknown or invalid.
        """
        editor = self.configured[name]
        return type(editor)(editor.config.updated(changes, "experiment"))

    def editors(self, names: Sequence[str]) -> list[Editor]:
        """Those of the named editors that can be used on the model."""
        return [self.configured[name] for name in names if name in self.configured]

    def trials(
        self,
        editors: Sequence[Editor],
        metrics: Sequence[str],
        n_edits: Sequence[int],
        *,
        min_cases: int = 1,
        relations: Sequence[tuple[str, ...]] = ((),),
        n_draws: int = 1,
    ) -> list[Trial]:
        """All combinations, with the unedited model next to them.

        Args:
            editors: The editors.
            metrics: Names of metrics; one that is missing from `metrics` is left out.
            n_edits: Numbers of requests to write at once.
            min_cases: Write as many batches as have at least so many cases.
            relations: Groups of relations to take facts of; an empty group stands for all.
            n_draws: How many times cases are drawn anew; 1 takes the dataset's first ones.
        """
        sample: Sample = "first" if n_draws == 1 else "shuffled"
        n_available = self.n_cases

        def count_batches(n: int) -> int:
            return max(1, min(math.ceil(min_cases / n), n_available // n))

        return grid(
            models=[self.model],
            datasets=[self.dataset],
            editors=lambda model: editors,
            metrics=lambda dataset: [self.metrics[m] for m in metrics if m in self.metrics],
            n_edits=n_edits,
            seeds=range(self.seed, self.seed + n_draws),
            n_batches=count_batches,
            relations=relations,
            sample=sample,
            on_conflict=self.on_conflict,
            inputs=lambda model, dataset: self.inputs,
        )


@dataclass(frozen=True)
class Experiment:
    """One of the paper's experiments: a grid of trials.

    Attributes:
        name: What the command line calls it.
        paper: Where the paper has it.
        summary: What it shows, in one line.
        dataset: The dataset that the paper used.
        editors: Names of the editors that take part.
        metrics: Names of the metrics that it asks for.
        make_trials: Makes the trials.
    """

    name: str
    paper: str
    summary: str
    dataset: str
    editors: tuple[str, ...]
    metrics: tuple[str, ...]
    make_trials: Callable[["Experiment", Setup], list[Trial]]

    def trials(self, setup: Setup) -> list[Trial]:
        """The trials on a model and dataset.

        Raises:
            EditbenchError: The data do not allow it; the message says what is missing.
        """
        return self.make_trials(self, setup)
