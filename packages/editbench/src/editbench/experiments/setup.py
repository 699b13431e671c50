"""What an experiment is given, and the trials that it makes of it."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from editbench.datasets.base import Dataset
from editbench.editors.base import Editor
from editbench.errors import ConfigError
from editbench.metrics.base import AnyMetric
from editbench.models.editable import EditableModel
from editbench.requests import ConflictPolicy, EditCase, resolve_conflicts
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
    def cases(self) -> Sequence[EditCase]:
        """The cases that can be edited together."""
        return resolve_conflicts(self.dataset.cases(), self.on_conflict)[0]

    @property
    def relation_sizes(self) -> dict[str, int]:
        """Relation to its number of cases, in the order of their names."""
        relations = (case.request.relation for case in self.cases)
        return dict(sorted(Counter(name for name in relations if name is not None).items()))

    def limit(self, n_of_paper: int) -> int:
        """The paper's number of edits, or what the user and the data allow of it."""
        return min(n_of_paper, self.max_edits or n_of_paper, len(self.cases))

    def editor(self, name: str, **changes: Any) -> Editor:
        """An editor with some of its hyperparameters changed.

        Raises:
            ConfigError: A changed field is unknown or invalid.
        """
        editor = self.configured[name]
        return type(editor)(editor.config.updated(changes, "experiment"))

    def trials(
        self,
        experiment: "Experiment",
        n_edits: Sequence[int],
        editors: Sequence[Editor] | None = None,
        *,
        min_cases: int = 1,
        relations: Sequence[tuple[str, ...]] = ((),),
        n_draws: int = 1,
        batch_size: int | None = None,
        checkpoints: Callable[[int], Sequence[int]] = lambda n_edits: (),
    ) -> list[Trial]:
        """All combinations, with the unedited model next to them.

        Args:
            experiment: Says which metrics, of those that are not missing.
            n_edits: Numbers of requests to write at once.
            editors: The editors; None is the experiment's, of those that are not missing.
            min_cases: Write as many batches as have at least so many cases.
            relations: Groups of relations to take facts of; an empty group stands for all.
            n_draws: How many times cases are drawn anew; 1 takes the dataset's first ones.
            batch_size: How many requests are written at a time; None for all at once.
            checkpoints: After how many of a number of requests all so far are asked.
        """
        sample: Sample = "first" if n_draws == 1 else "shuffled"
        n_available = len(self.cases)
        own = [
            self.configured[name]
            for name in experiment.editors or self.configured
            if name in self.configured
        ]
        metrics = [self.metrics[name] for name in experiment.metrics if name in self.metrics]
        return grid(
            models=[self.model],
            datasets=[self.dataset],
            editors=lambda model: own if editors is None else editors,
            metrics=lambda dataset: metrics,
            n_edits=n_edits,
            seeds=range(self.seed, self.seed + n_draws),
            n_batches=lambda n: max(1, min(math.ceil(min_cases / n), n_available // n)),
            batch_size=batch_size,
            checkpoints=checkpoints,
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
        make_trials: Makes the trials.
        metrics: Names of the metrics that it asks for.
        editors: Names of the editors that take part; none means all.
        dataset: The dataset that the paper used.
        varies: Whether it changes its one editor's settings, so that no other can take part.
    """

    name: str
    paper: str
    summary: str
    make_trials: Callable[["Experiment", Setup], list[Trial]]
    metrics: tuple[str, ...] = ("success", "accuracy")
    editors: tuple[str, ...] = ("memit",)
    dataset: str = "counterfact"
    varies: bool = False

    def with_editors(self, names: Sequence[str]) -> Self:
        """The same with other editors.

        Raises:
            ConfigError: It varies the settings of one.
        """
        if self.varies:
            raise ConfigError(
                f"--editor: '{self.name}' varies the settings of {self.editors[0]}, got "
                f"{', '.join(names)}. Leave it out, or vary settings with 'editbench run --set'."
            )
        return replace(self, editors=tuple(dict.fromkeys(names)))

    def trials(self, setup: Setup) -> list[Trial]:
        """The trials on a model and dataset.

        Raises:
            EditbenchError: The data do not allow it; the message says what is missing.
        """
        return self.make_trials(self, setup)
