"""What trials are run with, and how an edited model is asked."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from editbench.edits.edit import Edit
from editbench.models.answering import answer_questions
from editbench.progress import Progress
from editbench.questions import Answers, Before
from editbench.runner.examining import Examiner
from editbench.runner.prepare import PreparedTrial
from editbench.runner.trial import CaseBatch


@dataclass(frozen=True)
class Conditions:
    """What all trials of a run are run with.

    Attributes:
        cache: Where to keep what is worth keeping between runs; None keeps nothing.
        token_budget: How many tokens to put to a model at once when it is asked; None chooses by
            device.
        streams: Where checkpoints of streams are kept, by trial; None keeps none.
    """

    cache: Path | None
    token_budget: int | None
    streams: Path | None = None

    @cached_property
    def examiner(self) -> Examiner:
        """Who lets metrics ask the model itself."""
        return Examiner(self.cache)

    def ask(
        self,
        trial: PreparedTrial,
        batch: CaseBatch,
        edit: Edit,
        unedited: Callable[[], Answers],
        on_progress: Progress,
    ) -> Answers:
        """Put a batch's questions to a trial's model with an edit on it.

        `unedited` returns what the model answers without, and is called if the edit changes
        nothing or metrics compare with it.
        """
        known = unedited() if batch.before or not edit.changes_something else {}
        before: Answers = {Before(question): known[question] for question in batch.before}
        if not edit.changes_something:
            return {**before, **{question: known[question] for question in batch.questions}}
        with edit.applied(trial.model):
            answers = answer_questions(
                trial.model,
                batch.questions,
                seed=trial.seed,
                token_budget=self.token_budget or trial.model.memory.tokens,
                on_progress=partial(on_progress, "answers"),
            )
        return {**before, **answers}
