"""What is searched for, and how hyperparameters are measured."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from editbench.editors.base import Editor, EditorConfig
from editbench.editors.search_space import Choices, SearchSpace
from editbench.editors.unedited import Unedited
from editbench.errors import EditError
from editbench.models.editable import EditableModel
from editbench.progress import Progress
from editbench.results.collection import collect
from editbench.runner import Inputs, Trial, run_grid
from editbench.tuning.facts import Division, Size, ValidationFacts
from editbench.tuning.objective import Objective


@dataclass(frozen=True)
class Problem:
    """All that decides what a search finds.

    Attributes:
        model: The model, unedited.
        editor: The editor.
        start: Its hyperparameters to start from, and to be compared with.
        space: What is tried in their place.
        facts: What they are judged on.
        objective: What they are judged by.
        inputs: What else the editor is given.
        seed: Source of every random choice, of the search and of the editor.
    """

    model: EditableModel
    editor: type[Editor]
    start: EditorConfig
    space: SearchSpace
    facts: Division
    objective: Objective
    inputs: Inputs
    seed: int

    @cached_property
    def parts(self) -> dict[str, Choices]:
        """What is drawn, by name; what has one value only is not."""
        parts = [self.space[field].parts(field) for field in self.space]
        return {name: grid for part in parts for name, grid in part.items()}

    @property
    def start_drawn(self) -> dict[str, Any]:
        """What would have to be drawn for `start`; less what cannot be."""
        drawn: dict[str, Any] = {}
        for field, tried in self.space.items():
            drawn |= tried.split(field, getattr(self.start, field))
        return {name: value for name, value in drawn.items() if value in self.parts[name].values}

    def configure(self, drawn: Mapping[str, Any]) -> EditorConfig:
        """The hyperparameters of what was drawn.

        Raises:
            ConfigError: The editor refuses them.
        """
        changes = {field: tried.read(field, drawn) for field, tried in self.space.items()}
        return self.start.updated(changes, "tune")

    def describe(self) -> dict[str, Any]:
        """What a search must have in common with one that it goes on with, as plain values."""
        facts = self.facts
        tried = {name: list(grid.values) for name, grid in self.parts.items()}
        return {
            "model": self.model.fingerprint,
            "editor": self.editor.name,
            "start": self.start.model_dump(mode="json"),
            "choice of values to try": tried,
            "seed": self.seed,
            "number of edits at once": facts.size.n_edits,
            "number of batches": facts.size.n_batches,
            "choice of facts": [facts.search.fingerprint, facts.held_out.fingerprint],
            "objective": self.objective.name,
            "largest drop": self.objective.max_drop,
            "set of second moments, prefixes and corpus": self.inputs.content,
        }


@dataclass(frozen=True)
class Bench:
    """Measures hyperparameters; what an editor finds out is kept from one time to the next.

    Attributes:
        problem: What is searched for.
        cache: Where editors keep what they find out.
        on_warning: Told what was warned about.
    """

    problem: Problem
    cache: Path
    on_warning: Callable[[str], object]

    def measure(
        self,
        config: EditorConfig | None,
        facts: ValidationFacts,
        size: Size,
        on_progress: Progress,
    ) -> pd.DataFrame:
        """Write facts and ask about them.

        Args:
            config: Hyperparameters; None leaves the model unedited.
            facts: The facts; the first ones of them are taken.
            size: How many of them.
            on_progress: Told about the work.

        Returns:
            Cases as index, row metrics as columns, percent; NaN where a case has no value.

        Raises:
            EditError: The editor fails with these hyperparameters.
        """
        problem = self.problem
        trial = Trial(
            editor=Unedited(EditorConfig()) if config is None else problem.editor(config),
            model=problem.model,
            dataset=facts,
            n_edits=size.n_edits,
            n_batches=size.n_batches,
            seed=problem.seed,
            metrics=problem.objective.metrics,
            inputs=Inputs() if config is None else problem.inputs,
        )
        with TemporaryDirectory(prefix="editbench-") as folder:
            run = Path(folder) / "run"
            done = run_grid([trial], run, cache=self.cache, on_progress=on_progress)
            for warning in done.warnings:
                self.on_warning(warning)
            if done.failures:
                raise EditError(done.failures[0][1])
            return collect([run]).values[trial.hash]
