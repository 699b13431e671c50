"""Trials as tasks of a Ray cluster, on this machine or on many.

Ray schedules the tasks by what they need, sends each of them what it works on, and runs a task
again whose worker has died. The process that asked prepares the run and writes the results.
"""

import copy
import inspect
import os
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch

from editbench.editors.base import Editor, Share
from editbench.errors import ConfigError, EditbenchError, RunError
from editbench.models.editable import EditableModel
from editbench.models.memory_budget import MemoryBudget
from editbench.progress import Progress
from editbench.questions import Answers
from editbench.runner.conditions import Conditions
from editbench.runner.on_ray.cluster import check_reachable, connected
from editbench.runner.on_ray.needs import TaskNeeds, count_places, list_nodes, name_needs
from editbench.runner.on_ray.progress import ProgressChannel, open_channel
from editbench.runner.on_ray.tasks import TaskContext, ask_unedited, prepare_share, run_prepared
from editbench.runner.prepare import PreparedTrial
from editbench.runner.trial_run import TrialOutcome, describe, failed_trial
from editbench.runner.unedited import Questionnaire

if TYPE_CHECKING:
    from ray import ObjectRef

_SECONDS_BETWEEN_LOOKS = 0.2
_MIN_SHARE = 64  # edits that are worth a task of their own


class RayExecutor:
    """Runs trials as tasks of a Ray cluster.

    Args:
        address: Of a running cluster, ``auto`` or ``host:port``; None takes ``RAY_ADDRESS``, and
            where that is not set starts a cluster on this machine, for as long as the run lasts.
        needs: What a trial needs.
        n_retries: How often a task is tried again whose worker has died. Deaths for want of memory
            are counted apart: as often again, unless ``RAY_task_oom_retries`` says otherwise.

    Raises:
        ConfigError: Ray is not installed.
        RunError: Nobody answers at the address.
    """

    def __init__(
        self, address: str | None = None, *, needs: TaskNeeds | None = None, n_retries: int = 3
    ) -> None:
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "executor 'ray': it needs Ray, which is not installed. Install it with "
                "pip install 'editbench[ray]', or use --executor local."
            ) from error
        self._address = address or os.environ.get("RAY_ADDRESS")
        if self._address is not None:
            check_reachable(self._address)
        self._needs = needs or TaskNeeds()
        self._n_retries = n_retries

    def describe(self) -> Mapping[str, Any]:
        """Name, version of Ray, and what was asked to be set aside for each task."""
        import ray

        return {"name": "ray", "version": ray.__version__, "needs": asdict(self._needs)}

    def run(
        self,
        trials: Sequence[PreparedTrial],
        conditions: Conditions,
        on_progress: Progress,
        on_begun: Callable[[PreparedTrial], None],
    ) -> Generator[TrialOutcome, None, None]:
        """Run trials, as many at once as the cluster holds; see `Executor.run`."""
        if not trials:
            return
        # Who keeps checkpoints is on another machine: a stream that is lost begins anew.
        conditions = replace(conditions, streams=None)
        _refuse_spread([trial.model for trial in trials])
        with (
            connected(self._address, self._n_retries),
            open_channel(trials, on_progress, on_begun) as channel,
        ):
            n_editing = sum(not trial.is_unedited for trial in trials)
            shipment = _Shipment(conditions, channel, self._needs, self._n_retries, n_editing)
            running: dict[ObjectRef[TrialOutcome], PreparedTrial] = {}
            try:
                for trial in trials:
                    running[shipment.submit(trial)] = trial
                yield from _collect(running, channel)
            finally:
                _cancel(running)


@dataclass
class _Shipment:
    """Sends work to the cluster; what several tasks share is sent once."""

    conditions: Conditions
    channel: ProgressChannel
    needs: TaskNeeds
    n_retries: int
    n_editing: int

    def __post_init__(self) -> None:
        self._nodes = list_nodes()
        self._options: dict[tuple[object, ...], dict[str, float]] = {}
        self._sent: dict[int, tuple[object, ObjectRef[Any]]] = {}
        self._asked: dict[int, ObjectRef[Answers]] = {}

    def submit(self, trial: PreparedTrial) -> "ObjectRef[TrialOutcome]":
        """Send a trial; it waits for what others do for it: answers, shares of its editing."""
        parts = {
            field.name: self._send(getattr(trial, field.name), trial)
            for field in fields(PreparedTrial)
            if field.name not in ("questionnaires", "failure")
        }
        questionnaires = [self._send(each, trial) for each in trial.questionnaires]
        asked = [self._ask(each, trial) for each in trial.questionnaires if trial.asks_unedited]
        prepared = self._prepare(trial, parts)
        return self._start(
            run_prepared,
            trial.label,
            trial,
            questionnaires,
            len(prepared),
            *prepared,
            *asked,
            **parts,
        )

    def _prepare(
        self, trial: PreparedTrial, parts: "Mapping[str, ObjectRef[Any]]"
    ) -> "list[ObjectRef[None]]":
        """Divide the editing of a trial, where the cluster has room for more than the trials.

        Returns:
            What ends when the shares have; nothing, where nothing is divided.
        """
        is_divisible = inspect.unwrap(type(trial.editor).prepare) is not Editor.prepare
        # What is found ahead, on the unedited model, only the first batch of a stream can use.
        is_divisible = is_divisible and trial.batch_size is None
        if self.conditions.cache is None or not is_divisible:
            return []
        n_edits = max(len(batch.cases) for batch in trial.batches)
        n_free = count_places(self._settle(trial), self._nodes) // self.n_editing
        n = min(n_free, n_edits // _MIN_SHARE)
        shared = [parts[name] for name in ("editor", "model", "batches", "inputs", "seed")]
        if n < 2:
            return []
        shares = [
            self._start(prepare_share, trial.label, trial, trial.hash, *shared, Share(index, n))
            for index in range(n)
        ]
        return [_await_all(shares, trial.label, self.n_retries)]

    def _ask(self, questionnaire: Questionnaire, trial: PreparedTrial) -> "ObjectRef[Answers]":
        if id(questionnaire) not in self._asked:
            name = f"answers of {trial.model.name}, unedited"
            parts = (self._send(trial.model, trial), self._send(questionnaire, trial))
            self._asked[id(questionnaire)] = self._start(
                ask_unedited, name, trial, trial.hash, *parts
            )
        return self._asked[id(questionnaire)]

    def _start(
        self,
        function: Callable[..., Any],
        name: str,
        trial: PreparedTrial,
        *arguments: Any,
        **named: Any,
    ) -> "ObjectRef[Any]":
        import ray

        options = self._settle(trial)
        context = TaskContext.of(options, self.conditions, self.channel.reports)
        # A task's exceptions are outcomes; what is tried again is one whose process died.
        task = ray.remote(function).options(name=name, max_retries=self.n_retries, **options)
        return task.remote(context, *arguments, **named)

    def _send(self, part: object, trial: PreparedTrial) -> "ObjectRef[Any]":
        import ray

        if id(part) not in self._sent:
            try:
                reference = ray.put(_on_cpu(part) if isinstance(part, EditableModel) else part)
            except Exception as error:  # whatever an attribute's own pickling raises
                reason = " ".join(str(error).split())
                raise RunError(
                    f"executor 'ray': {trial.label} cannot be sent to another process, got a "
                    f"{type(part).__name__} that cannot be pickled ({reason[:200]}). Keep open "
                    "files, locks and the like out of its attributes, or use --executor local."
                ) from error
            self._sent[id(part)] = (part, reference)  # the part is kept, and with it its id
        return self._sent[id(part)][1]

    def _settle(self, trial: PreparedTrial) -> dict[str, float]:
        # Seeds do not change what a trial takes, so it is worked out once for all of them. Metrics
        # are made, or fitted, for a dataset, and stand for it.
        inputs = (trial.inputs.second_moments, id(trial.inputs.corpus))
        editor = (trial.editor.name, trial.editor.config.model_dump_json(), *inputs)
        sizes = tuple(len(batch.cases) for batch in trial.batches)
        key = (id(trial.model), *editor, sizes, *map(id, trial.metrics))
        if key not in self._options:
            options = self.needs.settle(trial, self._nodes, self.conditions.token_budget)
            self._options[key] = options
            if count_places(options, self._nodes) == 0:
                warnings.warn(
                    "executor 'ray': no machine of the cluster has what a trial on "
                    f"'{trial.model.name}' needs, got {name_needs(options)}; the run waits for "
                    "one. Ask for less with --trial-cpus, --trial-gpus or --trial-memory.",
                    stacklevel=2,
                )
        return self._options[key]


def _await_all(
    references: "Sequence[ObjectRef[Any]]", name: str, n_retries: int
) -> "ObjectRef[None]":
    """What ends when all tasks have, those included whose workers died for good.

    A task that is given their results would fail with them, though it can do without.
    """
    import ray

    def wait(references: "list[ObjectRef[Any]]") -> None:  # sent as code: needs no editbench
        import ray

        ray.wait(references, num_returns=len(references), fetch_local=False)

    task = ray.remote(wait).options(name=f"{name}: shares", max_retries=n_retries, num_cpus=0)
    return task.remote(list(references))


def _collect(
    running: "dict[ObjectRef[TrialOutcome], PreparedTrial]", channel: ProgressChannel
) -> Iterator[TrialOutcome]:
    import ray

    while running:
        finished, _ = ray.wait(list(running), timeout=_SECONDS_BETWEEN_LOOKS)
        channel.pass_on()
        for reference in finished:
            trial = running.pop(reference)
            channel.close(trial)
            try:
                outcome = ray.get(reference)
            except ray.exceptions.RayError as error:
                outcome = failed_trial(trial, _explain(error))
            yield outcome


def _cancel(running: "Mapping[ObjectRef[Any], PreparedTrial]") -> None:
    import ray

    with suppress(ray.exceptions.RayError):
        for reference in running:
            ray.cancel(reference, force=True)


def _on_cpu(model: EditableModel) -> EditableModel:
    """The model as it is sent: the machine that gets it may have other GPUs."""
    if model.device.type == "cpu":
        return model
    network = model.model
    moved: dict[int, torch.Tensor] = {id(each): each.cpu() for each in network.buffers()}
    for parameter in network.parameters():
        moved[id(parameter)] = torch.nn.Parameter(parameter.cpu(), requires_grad=False)
    sent = copy.copy(model)
    sent.model = copy.deepcopy(network, moved)  # takes what is moved already, not another copy
    sent.memory = MemoryBudget(sent, model.memory.limit)
    return sent


def _refuse_spread(models: Sequence[EditableModel]) -> None:
    for model in models:
        places = getattr(model.model, "hf_device_map", None) or {}
        if len(places) > 1 or "disk" in places.values():
            raise ConfigError(
                f"executor 'ray': model '{model.name}' is spread over devices and cannot be sent "
                "to other machines. Use --device instead of --device-map, or --executor local."
            )


def _explain(error: Exception) -> str:
    """What a trial's row says where its task yields no outcome."""
    import ray

    if isinstance(error, ray.exceptions.RayTaskError):
        cause = error.cause
        return str(cause) if isinstance(cause, EditbenchError) else f"worker: {describe(cause)}"
    reason = describe(error)[:500]
    return (
        f"executor 'ray': the process that ran the trial died, each time anew ({reason}). It "
        "may lack memory: set more aside with --trial-memory, and resume the run."
    )
