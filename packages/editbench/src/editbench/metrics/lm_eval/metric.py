"""Metric ``lm-eval``: what a model can do besides the facts that were edited."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from editbench.errors import ConfigError
from editbench.metrics.base import Counting, ModelMetric, RowKind
from editbench.metrics.lm_eval.isolation import isolated
from editbench.metrics.lm_eval.language_model import AskedModel
from editbench.metrics.lm_eval.tasks import (
    LoadedTask,
    TaskChoice,
    harness_version,
    load_tasks,
    read_values,
    seed_examples,
    unit_id,
)
from editbench.models.editable import EditableModel


class LmEval(ModelMetric):
    """What can the model do besides? Tasks of the LM Evaluation Harness (``lm_eval``).

    Its units are the tasks' documents: a document's value is what the task makes of the answers to
    it, a table's value the mean over documents, which is the number that ``lm_eval`` prints.
    Accuracies and exact matches are in percent. A row's name is ``lm_eval/<task>/<metric>``, with
    ``,<filter>`` behind it where the task's answers go through a filter that has a name. A group
    whose number is the mean over all of its documents is one row.

    Only means over documents are measured: arithmetic ones, and ``perplexity`` as the geometric
    mean of the documents' perplexities, which is the same number. What a task computes of all
    documents at once (BLEU of a corpus, say) has no value for a document and is left out; see
    `left_out`.

    Solved examples before a document are drawn with a seed of their own, so that all models get the
    same.
    """

    name: ClassVar[str] = "lm-eval"
    produces: ClassVar[tuple[str, ...]] = ("lm_eval/<task>/<metric>",)

    def __init__(self, choice: TaskChoice | None = None) -> None:
        self._choice = choice or TaskChoice(())
        self._expected: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls,
        *tasks: str,
        folders: Sequence[str | Path] = (),
        limit: int | None = None,
        n_shots: int | None = None,
    ) -> Self:
        """Load tasks.

        Args:
            tasks: Names of tasks, groups or tags of the harness, or YAML files of one's own.
            folders: Folders with tasks of one's own.
            limit: How many documents of each task to ask, from the first on; None for all.
            n_shots: How many solved examples to put before each document; None leaves it to the
                tasks.

        Raises:
            ConfigError: ``lm_eval`` is not installed, or a task cannot be asked; see `load_tasks`.
        """
        own = tuple(Path(folder).expanduser().resolve() for folder in folders)
        metric = cls(TaskChoice(tuple(dict.fromkeys(tasks)), own, limit, n_shots))
        _ = metric.tasks
        return metric

    @cached_property
    def tasks(self) -> Sequence[LoadedTask]:
        """The tasks.

        Raises:
            ConfigError: None is named, or one cannot be loaded.
        """
        if not self._choice.names:
            raise ConfigError(
                "metric 'lm-eval': no task is named. Name some with --lm-eval-task, or from Python "
                "with LmEval.of(...)."
            )
        tasks = load_tasks(self._choice)
        if self._expected not in (None, found := self._describe(tasks)):
            raise ConfigError(
                f"metric 'lm-eval': the tasks are not those that the run began with, got {found}; "
                f"expected {self._expected}. Give this machine the same files and data."
            )
        return tasks

    def __getstate__(self) -> dict[str, Any]:
        """What another process loads the tasks by, and compares them with.

        A task may hold code of its folder, which cannot be sent.
        """
        return {"_choice": self._choice, "_expected": self.settings}

    @property
    def settings(self) -> Mapping[str, Any]:
        """Version of the harness, limit, and of each task version, shots and fingerprint."""
        return self._describe(self.tasks)

    def _describe(self, tasks: Sequence[LoadedTask]) -> dict[str, Any]:
        return {
            "lm_eval": harness_version(),
            "limit": self._choice.limit,
            "tasks": {task.name: task.describe() for task in tasks},
        }

    @property
    def rows(self) -> tuple[RowKind, ...]:
        """A row for each number of each task, or group that is one."""
        kinds = [number.kind for task in self.tasks for number in task.numbers]
        return tuple({kind.name: kind for kind in kinds}.values())

    @property
    def left_out(self) -> Mapping[str, Sequence[str]]:
        """Of each task that has any, metrics that no row has, since they are no mean."""
        return {task.name: task.left_out for task in self.tasks if task.left_out}

    def units(self) -> Sequence[str]:
        """The documents, ``<task>-<number>``; see `ModelMetric.units`."""
        return [unit for task in self.tasks for unit in _units_of(task)]

    def measure(
        self, model: EditableModel, units: Sequence[str], on_progress: Counting
    ) -> Mapping[str, Mapping[str, float]]:
        """Ask about documents; see `ModelMetric.measure`."""
        wanted = set(units)
        chosen = {
            task.name: [
                number for number in task.n_requests if unit_id(task.name, number) in wanted
            ]
            for task in self.tasks
        }
        tasks = [task for task in self.tasks if chosen[task.name]]
        n_all = sum(task.n_requests[number] for task in tasks for number in chosen[task.name])
        n_done = 0

        def count(n_new: int) -> None:
            nonlocal n_done
            n_done = min(n_all, n_done + n_new)
            on_progress(n_done, n_all)

        count(0)
        with isolated():
            from lm_eval import evaluate

            asked = AskedModel(model, count)
            for task in tasks:
                seed_examples(task.task)
            # All documents of a task need no list: the harness looks each up in it from the front.
            is_whole = all(len(chosen[task.name]) == len(task.n_requests) for task in tasks)
            results: Any = evaluate(
                lm=asked,
                task_dict={"tasks": {task.name: task.task for task in tasks}, "groups": {}},
                limit=self._choice.limit if is_whole else None,
                samples=None if is_whole else {task.name: chosen[task.name] for task in tasks},
                bootstrap_iters=0,
                log_samples=True,
            )
        asked.warn_of_cuts()
        return read_values(tasks, results["samples"])


def _units_of(task: LoadedTask) -> Iterator[str]:
    return (unit_id(task.name, number) for number in task.n_requests)
