"""What runs on the workers."""

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from editbench.editors.base import Editor, Inputs, Share
from editbench.edits.card import package_versions
from editbench.errors import RunError
from editbench.models.editable import EditableModel
from editbench.questions import Answers
from editbench.runner.conditions import Conditions
from editbench.runner.executors import merge_answers
from editbench.runner.on_ray.needs import limit_memory
from editbench.runner.on_ray.progress import Reports
from editbench.runner.prepare import PreparedTrial
from editbench.runner.trial import CaseBatch
from editbench.runner.trial_run import TrialOutcome, run_trial
from editbench.runner.unedited import Questionnaire

if TYPE_CHECKING:
    from ray import ObjectRef


@dataclass(frozen=True)
class TaskContext:
    """What a task has to know besides its work.

    Attributes:
        conditions: What the trials of the run are run with.
        reports: Where progress goes.
        n_threads: Torch's threads.
        n_gpus: How many GPUs, or what part of one, the task has.
        memory: Bytes of main memory that are set aside for it.
        versions: The packages of the process that sent the work.
        folder: Its working directory.
    """

    conditions: Conditions
    reports: Reports
    n_threads: int
    n_gpus: float
    memory: float
    versions: Mapping[str, str]
    folder: Path

    @classmethod
    def of(cls, options: Mapping[str, float], conditions: Conditions, reports: Reports) -> Self:
        """Describe the process that sends the work, and a task with these options."""
        return cls(
            conditions,
            reports,
            n_threads=max(1, int(options["num_cpus"])),
            n_gpus=options["num_gpus"],
            memory=options["memory"],
            versions=package_versions(),
            folder=Path.cwd(),
        )

    def take_effect(self, model: EditableModel) -> None:
        """Make the worker compute as the process would that sent the work.

        Raises:
            RunError: The worker has other versions of the packages.
        """
        found = package_versions()
        if found != self.versions:
            ours, theirs = (" ".join(map(" ".join, v.items())) for v in (found, self.versions))
            raise RunError(
                f"executor 'ray': a worker has other packages than the run, got {ours}; expected "
                f"{theirs}. Install the same versions on all machines."
            )
        if self.folder.is_dir():  # relative paths mean what they mean where the run was started
            os.chdir(self.folder)
        torch.set_num_threads(self.n_threads)
        if self.n_gpus > 0:
            model.model.to("cuda")
        limit_memory(model, memory=self.memory, gpus=self.n_gpus)

    def ask(self, questionnaire: Questionnaire, model: EditableModel, trial: str) -> Answers:
        """Put questions to the model, as it is, on behalf of a trial."""
        return questionnaire.ask(
            model,
            cache=self.conditions.cache,
            token_budget=self.conditions.token_budget,
            on_progress=partial(self.reports.of(trial), "answers"),
        )


def run_prepared(
    context: TaskContext,
    questionnaires: "list[ObjectRef[Questionnaire]]",
    n_prepared: int,
    *awaited: Any,
    **parts: Any,
) -> TrialOutcome:
    """Run a trial.

    Args:
        context: What else it has to know.
        questionnaires: The trial's, fetched if an edit turns out to change nothing.
        n_prepared: How many of `awaited` stand for shares of the trial that were done ahead.
        awaited: After these the answers to them, where it is known that they are needed.
        parts: The trial's other parts.
    """
    import ray

    trial = PreparedTrial(**parts)
    context.take_effect(trial.model)

    def unedited() -> Answers:
        return merge_answers(
            awaited[n_prepared:]
            or [context.ask(each, trial.model, trial.hash) for each in ray.get(questionnaires)]
        )

    return run_trial(trial, context.conditions, unedited, context.reports.of(trial.hash))


def ask_unedited(
    context: TaskContext, trial: str, model: EditableModel, questionnaire: Questionnaire
) -> Answers:
    """Put questions to the unedited model, on behalf of the first trial that needs the answers."""
    context.take_effect(model)
    return context.ask(questionnaire, model, trial)


def prepare_share(
    context: TaskContext,
    trial: str,
    editor: Editor,
    model: EditableModel,
    batches: Sequence[CaseBatch],
    inputs: Inputs,
    seed: int,
    share: Share,
) -> None:
    """Do a share of a trial's editing ahead, and leave what comes of it in the cache.

    What goes wrong in it goes wrong in the trial again, and is said there.
    """
    context.take_effect(model)
    resources = inputs.resources(seed, context.conditions.cache, context.reports.of(trial))
    with suppress(Exception), warnings.catch_warnings(action="ignore"):
        for batch in batches:
            editor.prepare(model, batch.requests, resources, share)
