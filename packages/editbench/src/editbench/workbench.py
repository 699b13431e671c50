"""The Python door: a model by name, facts into it, and how well that went.

What the commands ``edit``, ``apply`` and ``run`` do, for programs and notebooks; ``import
editbench`` has these functions. Names mean what they mean on the command line.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal, cast

import pandas as pd

from editbench.datasets.base import Dataset
from editbench.datasets.facts import Facts
from editbench.datasets.view import DatasetView
from editbench.editors.base import Editor, EditorConfig, Inputs, Resources
from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.making import Base, Means
from editbench.edits.edit import Edit
from editbench.edits.revision import revise
from editbench.errors import ConfigError, EditError
from editbench.metrics.base import AnyMetric
from editbench.models import loading
from editbench.models.editable import EditableModel
from editbench.plugins.manager import load_plugins
from editbench.plugins.sources import (
    complete_inputs,
    default_cache,
    describe_default_corpus,
    open_corpus,
    open_dataset,
)
from editbench.progress import Progress, report_nothing
from editbench.requests import ConflictPolicy, EditCase, EditRequest, resolve_conflicts
from editbench.results.report import summarize
from editbench.runner import grid, has_questions, run_grid

FactSource = Path | str | Iterable[Mapping[str, object]]
"""A facts file, or facts with its fields: `subject`, `prompt`, `target`, and the optional ones."""

Cache = Path | str | Literal["default"] | None

_COLUMNS = ["editor", "metric", "value", "ci_low", "ci_high", "n"]


def load_model(name: str | Path, **options: Any) -> EditableModel:
    """Load a causal language model by short name, folder or hub id.

    Args:
        name: The name, such as ``atlas`` or ``./my-model``.
        options: Those of `editbench.models.loading.load_model`: `dtype`, `device`, `device_map`, …

    Raises:
        ModelError: There is no such model, or it is incomplete, damaged, untrusted or unsupported.
        ConfigError: An option is invalid.
    """
    return loading.load_model(str(name), specs=load_plugins().models(), **options)


def edit(
    model: EditableModel,
    facts: FactSource | Sequence[EditRequest],
    editor: str | None = None,
    *,
    base: Edit | None = None,
    drop: Sequence[str] = (),
    corpus: str | Path | None = None,
    second_moments: str | Path | None = None,
    context_prefixes: Sequence[Sequence[str]] | None = None,
    config: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    on_conflict: ConflictPolicy = "error",
    seed: int | None = None,
    cache: Cache = "default",
    report_progress: Progress = report_nothing,
) -> Edit:
    """Compute the edit that writes facts into a model; the model stays as it is.

    Args:
        model: The model.
        facts: A facts file; facts as mappings with its fields; or requests.
        editor: The editor's name; by default that of `base`, or ``memit``.
        base: An edit to make again, with `facts` added; one of them that contradicts one of its
            own supersedes that. Its target states are used, so that this takes seconds, and gives
            the same numbers as an edit of these facts from the start. What else is not given is
            taken from it.
        drop: Ids of facts of `base` that are not to be written any more.
        corpus: Ordinary text to collect second moments from, as for ``--corpus``: a file with one
            text a line, ``atlas``, or a dataset of the hub. By default what the model's settings
            name, or ``atlas``.
        second_moments: A file of second moments, instead of collecting them.
        context_prefixes: Groups of texts to put before prompts; by default they are sampled.
        config: Hyperparameters that differ from the editor's defaults for this model.
        batch_size: Write so many facts at a time, each batch into what those before it left; None
            writes all at once. A fact that contradicts one of an earlier batch supersedes it.
        on_conflict: What to do with facts that contradict each other; ``error`` looks at each
            batch, the others at all facts.
        seed: Source of every random choice; by default 0.
        cache: Folder for what is worth keeping between calls; None keeps nothing.
        report_progress: Told about long work.

    Returns:
        The edit: ``with edit.applied(model):`` puts it on, ``edit.save(path)`` keeps it.

    Raises:
        EditbenchError: The facts, the configuration or the files cannot be used; the message says
            what to do.
    """
    origin = None if base is None else Base.of(base, "base", tuple(drop))
    if origin is not None:
        origin.edit.check_fits(model)
        editor = editor or origin.edit.card.editor
        seed = origin.recipe.seed if seed is None else seed
        batch_size = batch_size or origin.recipe.batch_size
    editor_type = load_plugins().get_editor(editor or "memit")
    if origin is not None and origin.edit.card.editor == editor_type.name:
        chosen = origin.configure(editor_type)
    else:
        chosen, _ = editor_type.default_config(model)
    if config:
        chosen = chosen.updated(config, "config")
    has_more = origin is None or isinstance(facts, str | Path) or facts
    given = _requests(facts, on_conflict) if has_more else []
    old = origin.recipe.requests if origin else ()
    requests = revise(old, drop=drop, more=given, batch_size=batch_size).requests
    if not requests:
        raise ConfigError(f"edit: no fact is left to write, with on_conflict={on_conflict!r}.")
    inputs = Inputs(
        second_moments=None if second_moments is None else Path(second_moments),
        context_prefixes=None
        if context_prefixes is None
        else ContextPrefixes.of([list(group) for group in context_prefixes], "context_prefixes"),
        corpus=None if corpus is None else open_corpus(str(corpus)),
    )
    made = editor_type(chosen)
    if made.needs_second_moments(model) and (remark := describe_default_corpus(inputs, model)):
        warnings.warn(remark, stacklevel=2)
    means = Means.of(
        model,
        made,
        inputs,
        complete_inputs(inputs, model),
        base=origin,
        seed=seed or 0,
        cache=_folder(cache),
        report_progress=report_progress,
    )
    return means.write(requests, batch_size)


def evaluate(
    model: EditableModel,
    edit: Edit,
    dataset: FactSource | Dataset,
    *,
    n_edits: int | None = None,
    metrics: Sequence[str | AnyMetric] | None = None,
    on_conflict: ConflictPolicy = "error",
    seed: int = 0,
    cache: Cache = "default",
    report_progress: Progress = report_nothing,
) -> pd.DataFrame:
    """Ask a model for facts and their surroundings, without the edit and with it.

    Args:
        model: The model that the edit was computed for.
        edit: The edit.
        dataset: What to ask: a dataset as for ``--dataset``, ``NAME[=PATH]``; a facts file; facts
            as mappings with its fields; or a dataset.
        n_edits: How many of its cases, from the first on; by default as many as the edit wrote.
            Of an edit in batches those that a later one has superseded are none of them.
        metrics: Names of metrics, or metrics, such as `LmEval.of` makes; by default those meant
            for the dataset.
        on_conflict: What to do with facts that contradict each other.
        seed: Source of every random choice.
        cache: Folder for the unedited model's answers; None keeps nothing.
        report_progress: Told about the work.

    Returns:
        One line for each editor (the unedited model first) and metric, with the columns `editor`,
        `metric`, `value` (rates in percent), the ends `ci_low` and `ci_high` of its 95 % interval,
        and `n`, the number of cases.

    Raises:
        EditbenchError: The dataset, metrics or edit cannot be used; the message says what to do.
    """
    plugins = load_plugins()
    source = _dataset(dataset, cache)
    n_asked = n_edits or max(1, min(edit.card.n_edits, len(source.cases())))
    if edit.recipe is not None and edit.recipe.batch_size is not None and on_conflict == "error":
        n_before = len(source.cases()[:n_asked])
        source = DatasetView(source, n_standing=n_asked)
        n_asked -= n_before - len(source.cases())
    given = metrics if metrics is not None else source.default_metrics
    asked = [plugins.get_metric(each)() if isinstance(each, str) else each for each in given]
    if metrics is None:
        asked = [metric for metric in asked if has_questions(metric, source)]
    trials = grid(
        models=[model],
        datasets=[source],
        editors=lambda _: [GivenEdit(edit)],
        metrics=lambda _: asked,
        n_edits=[n_asked],
        seeds=[seed],
        on_conflict=on_conflict,
    )
    with TemporaryDirectory(prefix="editbench-") as folder:
        run = Path(folder) / "run"
        done = run_grid(trials, run, cache=_folder(cache), on_progress=report_progress)
        if done.failures:
            raise EditError(f"evaluate: {done.failures[0][1]}")
        lines = summarize([run]).lines
    return pd.DataFrame([asdict(line) for line in lines])[_COLUMNS]


class GivenEdit(Editor):
    """Computes nothing: whatever is asked for, it answers with the same edit.

    Args:
        edit: The edit; the editor is called as the one that computed it.
    """

    computes_nothing: ClassVar[bool] = True

    def __init__(self, edit: Edit) -> None:
        super().__init__(EditorConfig())
        self.name = edit.card.editor  # type: ignore[misc]  # of this one alone
        self._edit = edit

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        """The edit; see `Editor.edit`."""
        return self._edit


def _requests(
    facts: FactSource | Sequence[EditRequest], on_conflict: ConflictPolicy
) -> list[EditRequest]:
    if isinstance(facts, str | Path):
        source = _facts(facts)
    else:
        given = list(facts)
        requests = [fact for fact in given if isinstance(fact, EditRequest)]
        if requests and len(requests) == len(given):
            return _resolve(list(map(EditCase, requests)), on_conflict)
        source = _facts(cast("list[Mapping[str, object]]", given))
    return _resolve(source.cases(), on_conflict)


def _resolve(cases: Sequence[EditCase], on_conflict: ConflictPolicy) -> list[EditRequest]:
    """Apply a policy that drops facts; ``error`` is for those who know the batches."""
    if on_conflict != "error":
        cases, _ = resolve_conflicts(cases, on_conflict)
    return [case.request for case in cases]


def _facts(facts: FactSource) -> Facts:
    if isinstance(facts, str | Path):
        return Facts(Path(facts).expanduser(), default_cache())
    return Facts.of(facts)


def _dataset(dataset: FactSource | Dataset, cache: Cache) -> Dataset:
    if isinstance(dataset, Dataset):
        return dataset
    if isinstance(dataset, str) and not Path(dataset).is_file():
        return open_dataset(dataset, load_plugins(), _folder(cache))
    return _facts(dataset)


def _folder(cache: Cache) -> Path | None:
    if cache == "default":
        return default_cache()
    return None if cache is None else Path(cache)
