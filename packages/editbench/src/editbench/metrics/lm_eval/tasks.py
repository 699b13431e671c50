"""Tasks of the harness: found by name or file, loaded and checked before any model is edited."""

import contextlib
import hashlib
import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from editbench.errors import ConfigError, find_nearest
from editbench.metrics.base import RowKind
from editbench.metrics.lm_eval.isolation import isolated

_FEWSHOT_SEED = 1234  # the harness's own default
_RATES = frozenset({"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "acc_all", "exact_match"})
_MAX_LOSS = 700.0  # exp(710) is no float any more


@dataclass(frozen=True)
class TaskChoice:
    """Which tasks are asked, and how.

    Attributes:
        names: Names of tasks, groups or tags, or YAML files.
        folders: Folders with tasks of one's own, searched before the harness's.
        limit: How many documents of each task are asked, from the first on; None for all.
        n_shots: How many solved examples stand before each document; None leaves it to the task.
    """

    names: tuple[str, ...]
    folders: tuple[Path, ...] = ()
    limit: int | None = None
    n_shots: int | None = None


@dataclass(frozen=True)
class TaskNumber:
    """One number that a task yields for each of its documents.

    Attributes:
        key: What the harness calls it.
        filter_name: The harness's filter that its answers went through.
        kind: The row.
        convert: Makes the row's number of the harness's.
    """

    key: str
    filter_name: str
    kind: RowKind
    convert: Callable[[float], float]


@dataclass(frozen=True)
class LoadedTask:
    """A task that can be asked.

    Attributes:
        name: The harness's name.
        task: The harness's object.
        version: Of its definition, as its authors say.
        n_shots: How many solved examples stand before each document.
        n_requests: What it asks about each of its documents, by the document's number.
        numbers: What it yields.
        left_out: What it also yields, and why no row has it.
        fingerprint: Hash of its documents and prompts, as hex digits.
    """

    name: str
    task: Any
    version: str
    n_shots: int
    n_requests: Mapping[int, int]
    numbers: tuple[TaskNumber, ...]
    left_out: tuple[str, ...]
    fingerprint: str

    def describe(self) -> dict[str, Any]:
        """What decides its numbers, as plain JSON values."""
        return {
            "version": self.version,
            "num_fewshot": self.n_shots,
            "n_documents": len(self.n_requests),
            "fingerprint": self.fingerprint,
        }


def harness_version() -> str:
    """The version of ``lm_eval``.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import lm_eval
    except ImportError as error:
        raise ConfigError(
            "metric 'lm-eval': needs the package lm_eval, which is not installed. Install it: pip "
            "install 'editbench[lm-eval]'."
        ) from error
    return str(lm_eval.__version__)


def load_tasks(choice: TaskChoice) -> list[LoadedTask]:
    """Find and load tasks, and make all of their prompts once.

    Raises:
        ConfigError: ``lm_eval`` is not installed; there is no such task, folder or file; a task
            cannot be loaded, its data cannot be reached, or nothing of it is a mean over
            documents.
    """
    harness_version()
    for folder in choice.folders:
        _check_folder(folder)
    found: dict[str, LoadedTask] = {}
    with isolated():
        for name in choice.names:
            for label, task in _find(name, choice):
                if (earlier := found.get(task.task_name)) is not None:
                    raise ConfigError(
                        f"metric 'lm-eval': a task is named twice, got {earlier.name!r} by itself "
                        f"and in {name!r}. Leave out one of them."
                    )
                found[task.task_name] = _prepare(label, task, choice)
    return list(found.values())


def _check_folder(folder: Path) -> None:
    """Refuse a folder that is not there, or in which a file is no YAML: the harness skips it."""
    if not folder.is_dir():
        raise ConfigError(
            f"metric 'lm-eval': there is no such folder of tasks, got {str(folder)!r}. Check the "
            "path."
        )
    for path in sorted(folder.rglob("*.yaml")):
        _check_file(path)


def _check_file(path: Path) -> None:
    try:
        yaml.compose(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"metric 'lm-eval': a task's file is no YAML, got {str(path)!r} ({reason}). Mend it."
        ) from error


def _find(name: str, choice: TaskChoice) -> Iterator[tuple[str, Any]]:
    """The tasks that a name stands for, each with what its rows are called by."""
    from lm_eval.tasks import TaskManager

    own = [str(folder) for folder in choice.folders]
    place: Path | None = None
    if (path := Path(name)).suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(
                f"metric 'lm-eval': there is no such file of a task, got {name!r}. Check the path."
            )
        _check_file(path)
        name, place = str(path.resolve()), path.resolve().parent
        manager = TaskManager(include_path=[*own, str(place)], include_defaults=False)
    else:
        # The harness's own tasks are 15,000 files, which take seconds to look through.
        manager = TaskManager(include_path=own, include_defaults=False)
        if name not in manager.task_index:
            manager = TaskManager(include_path=own)
        if name not in manager.task_index:
            nearest = find_nearest(name, manager.all_tasks)
            meant = f" Did you mean '{nearest}'?" if nearest else ""
            where = "" if own else " For a task of your own give --lm-eval-folder."
            raise ConfigError(
                f"metric 'lm-eval': there is no such task, got {name!r}.{meant} 'lm_eval ls tasks' "
                f"lists those of lm_eval.{where}"
            )
        entry = manager.task_index[name]
        place = entry.yaml_path.parent if entry.yaml_path is not None else None
    try:
        loaded = _load(manager, name, place)
    except Exception as error:  # whatever YAML, templates, own code or downloads raise
        raise _explained(name, error) from error
    groups = [group for group in loaded["groups"].values() if _is_mean_of_all(group, loaded)]
    for task in loaded["tasks"].values():
        yield groups[0].name if groups else task.task_name, task


def _load(manager: Any, name: str, place: Path | None) -> Any:
    """Load a task; its data files are looked for here, and where it lies itself."""
    try:
        return manager.load([name])
    except FileNotFoundError:
        if place is None:
            raise
    with contextlib.chdir(place):
        return manager.load([name])


def _is_mean_of_all(group: Any, loaded: Any) -> bool:
    """Whether a group stands for its tasks as one: their mean, every document weighing the same."""
    metrics = group.aggregate_metric_list or ()
    is_mean = all(each.weight_by_size and each.aggregation == "mean" for each in metrics)
    return bool(metrics) and is_mean and len(group.get_all_tasks()) == len(loaded["tasks"])


def _prepare(label: str, task: Any, choice: TaskChoice) -> LoadedTask:
    name = task.task_name
    if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
        why = "runs code that a model writes" if task.UNSAFE_CODE else "shows pictures or sounds"
        raise ConfigError(
            f"metric 'lm-eval': a task cannot be asked here, got {name!r}, which {why}. Leave it "
            "out, or give the edited model ('editbench apply') to lm_eval itself."
        )
    # As the harness's command line does: a task that says 0 means it.
    if choice.n_shots is not None and task.get_config("num_fewshot") != 0:
        task.set_config(key="num_fewshot", value=choice.n_shots)
    elif task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    seed_examples(task)
    try:
        task.build_all_requests(limit=choice.limit, rank=0, world_size=1)
    except Exception as error:
        raise _explained(name, error) from error
    content = hashlib.blake2b(digest_size=16)
    for instance in task.instances:
        part = [instance.request_type, instance.args, instance.repeats, instance.doc]
        content.update(json.dumps(part, sort_keys=True, default=str).encode())
    n_requests = Counter(instance.doc_id for instance in task.instances)
    numbers, left_out = _list_numbers(label, task)
    if not numbers:
        raise ConfigError(
            f"metric 'lm-eval': nothing of a task is a mean over its documents, got {name!r} with "
            f"{'; '.join(left_out) or 'no metric'}. Leave it out; for text, metric 'perplexity' "
            "does the same."
        )
    return LoadedTask(
        name=name,
        task=task,
        version=str(task.VERSION),
        n_shots=task.get_config("num_fewshot"),
        n_requests=dict(n_requests),
        numbers=tuple(numbers),
        left_out=tuple(left_out),
        fingerprint=content.hexdigest(),
    )


def seed_examples(task: Any) -> None:
    """Let a task draw the same solved examples each time that its prompts are made."""
    task.set_fewshot_seed(seed=_FEWSHOT_SEED)


def _list_numbers(label: str, task: Any) -> tuple[list[TaskNumber], list[str]]:
    from lm_eval.api import metrics as known

    aggregations, better = task.aggregation(), task.higher_is_better()
    configured = task.get_config("filter_list") or [{"name": "none"}]
    filters = [str(each["name"]) for each in configured]
    numbers: list[TaskNumber] = []
    left_out: list[str] = []
    for key, aggregation in aggregations.items():
        convert: Callable[[float], float] = float
        about: dict[str, Any] = {"higher_is_better": bool(better.get(key, True))}
        if aggregation is known.perplexity:  # exp of minus the mean log likelihood
            about |= {"mean": "geometric", "bounds": (0.0, math.inf)}
            convert = _to_perplexity
        elif aggregation not in (known.mean, known.nanmean, np.mean):
            called = getattr(aggregation, "__name__", str(aggregation))
            left_out.append(f"{key} ({called} of all documents at once)")
            continue
        elif key in _RATES:
            convert = _to_percent
        else:
            about |= {"bounds": (-math.inf, math.inf)}
        for each in filters:
            name = f"lm_eval/{label}/{key}" + (f",{each}" if each != "none" else "")
            numbers.append(TaskNumber(key, each, RowKind(name, **about), convert))
    return numbers, left_out


def _to_percent(share: float) -> float:
    return 100 * float(share)


def _to_perplexity(log_likelihood: float) -> float:
    return math.exp(min(-float(log_likelihood), _MAX_LOSS))


def _explained(name: str, error: Exception) -> ConfigError:
    reason = (" ".join(str(error).split()) or type(error).__name__)[:300].rstrip(".")
    if isinstance(error, ConnectionError) or "on the Hub" in reason:
        return ConfigError(
            f"metric 'lm-eval': the data of task {name!r} lie on the Hugging Face hub, which "
            f"cannot be reached, got {reason}. Load it once where there is a network, or ask a "
            "task whose data are here (--lm-eval-folder)."
        )
    return ConfigError(
        f"metric 'lm-eval': a task cannot be loaded, got {name!r} ({type(error).__name__}: "
        f"{reason}). Mend its files, or ask another one."
    )


def read_values(
    tasks: Sequence[LoadedTask], samples: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, dict[str, float]]:
    """The rows' numbers, by document, of what the harness has logged of each.

    What is no number there, or NaN, is left out; the former with a warning.
    """
    values: dict[str, dict[str, float]] = {}
    odd: dict[str, None] = {}
    for task in tasks:
        for sample in samples[task.name]:
            of_document = values.setdefault(unit_id(task.name, sample["doc_id"]), {})
            for number in task.numbers:
                if sample["filter"] != number.filter_name or number.key not in sample:
                    continue
                try:
                    value = number.convert(sample[number.key])
                except (TypeError, ValueError):
                    odd[number.kind.name] = None
                    continue
                if not math.isnan(value):
                    of_document[number.kind.name] = value
    for name in odd:
        warnings.warn(
            f"metric 'lm-eval': '{name}' is no number of a document, so it is left out.",
            stacklevel=2,
        )
    return values


def unit_id(task: str, document: int) -> str:
    """What rows call a document."""
    return f"{task}-{document:05d}"
