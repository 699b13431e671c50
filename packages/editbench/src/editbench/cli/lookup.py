"""From names on the command line to the parts of trials: datasets, metrics, configured editors."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from editbench.cli.overrides import Overrides
from editbench.cli.progress import ProgressDisplay
from editbench.errors import ConfigError, PluginError, UnknownNameError
from editbench.plugins.manager import PluginManager
from editbench.plugins.sources import describe_default_corpus
from editbench.requests import ConflictPolicy, resolve_conflicts

if TYPE_CHECKING:
    from editbench.datasets.base import Dataset
    from editbench.editors.base import Editor, Inputs
    from editbench.metrics.base import AnyMetric
    from editbench.models.editable import EditableModel
    from editbench.requests import EditCase
    from editbench.runner import StopRule

DEFAULT_N_EDITS = 100
_N_CONFLICTS_SHOWN = 5


def find_metrics(options: Sequence[str], plugins: PluginManager) -> "list[AnyMetric]":
    """Look up the metrics that ``--metrics`` names; none if it is not given."""
    names = [name.strip() for option in options for name in option.split(",")]
    return [plugins.get_metric(name)() for name in dict.fromkeys(names)]


def default_metrics(
    dataset: "Dataset", plugins: PluginManager, names: Sequence[str] | None = None
) -> "list[AnyMetric]":
    """The metrics that are meant for a dataset, less those that it leaves nothing to ask.

    With `names`, they are chosen from these instead of the dataset's own.
    """
    from editbench.runner import has_questions

    metrics = [plugins.get_metric(name)() for name in names or dataset.default_metrics]
    return [metric for metric in metrics if has_questions(metric, dataset)]


def with_ruled(
    metrics: "Sequence[AnyMetric]", rule: "StopRule | None", plugins: PluginManager
) -> "list[AnyMetric]":
    """The metrics, and the one that a stop rule goes by where it is none of them.

    Raises:
        UnknownNameError: There is no such metric.
    """
    if rule is None or any(rule.metric in metric.quantities for metric in metrics):
        return list(metrics)
    known = {
        name: kind
        for kind in plugins.metrics().values()
        for name in (*kind.produces, *kind.aggregates)
    }
    if rule.metric not in known:
        raise UnknownNameError("metric in --stop-when", rule.metric, known)
    return [*metrics, known[rule.metric]()]


def choose_metrics(
    dataset: "Dataset",
    chosen: "Sequence[AnyMetric]",
    plugins: PluginManager,
    display: ProgressDisplay,
) -> "list[AnyMetric]":
    """The metrics that were chosen or, where none were, those that are meant for a dataset.

    Of several, those that it leaves nothing to ask are left out, and named.
    """
    from editbench.runner import has_questions

    if not chosen:
        return default_metrics(dataset, plugins)

    def may_ask(metric: "AnyMetric") -> bool:
        try:
            return has_questions(metric, dataset)
        except PluginError:  # the trials say so
            return True

    asked = [metric for metric in chosen if may_ask(metric)]
    for metric in chosen if asked else []:
        if metric not in asked:
            display.say(
                f"Metric '{metric.name}' has nothing to ask about '{dataset.name}': left out."
            )
    return asked or list(chosen)


def read_cases(dataset: "Dataset", display: ProgressDisplay) -> "Sequence[EditCase]":
    """The dataset's cases; says what was understood of its file, and what was left out."""
    cases = dataset.cases()
    for remark in dataset.remarks:
        display.note(remark)
    return cases


def choose_sizes(
    dataset: "Dataset", n_edits: Sequence[int], policy: ConflictPolicy, display: ProgressDisplay
) -> tuple[int, ...]:
    """Read the dataset, list its conflicts, and say how many facts are edited at once."""
    cases = list(read_cases(dataset, display))
    if policy != "error":
        cases, conflicts = resolve_conflicts(cases, policy)
        if conflicts:
            display.say(f"Conflicts in '{dataset.name}' ({policy}): {len(conflicts)} group(s)")
        for conflict in conflicts[:_N_CONFLICTS_SHOWN]:
            display.say(f"  {conflict}")
        if len(conflicts) > _N_CONFLICTS_SHOWN:
            display.say(f"  and {len(conflicts) - _N_CONFLICTS_SHOWN} more")
    return tuple(dict.fromkeys(n_edits)) or (max(1, min(DEFAULT_N_EDITS, len(cases))),)


def check_chat(models: "Iterable[EditableModel]") -> None:
    """Refuse models that cannot be asked as a chat.

    Raises:
        ConfigError: A model's tokenizer has no chat template.
    """
    for model in models:
        if not model.tokens.has_chat_template:
            raise ConfigError(
                f"--chat: the tokenizer has no chat template, got model '{model.name}'. Leave out "
                "--chat, or use a model that was tuned to chat."
            )


def note_files(overrides: "Iterable[Overrides]", display: ProgressDisplay) -> None:
    """Say what was understood of other tools' files of hyperparameters, once for each."""
    for remark in dict.fromkeys(each.remark for each in overrides):
        if remark is not None:
            display.note(remark)


def configure_editors(
    model: "EditableModel",
    editor_types: "Mapping[str, type[Editor]]",
    overrides: Mapping[str, Sequence[Overrides]],
    display: ProgressDisplay,
) -> "list[Editor]":
    """Make the editors of a model, and say where their hyperparameters come from."""
    configured = []
    for name, editor in editor_types.items():
        origins = set()
        for each in overrides[name]:
            config, origin = each.configure(editor, model)
            configured.append(editor(config))
            origins.add(origin)
        if editor.config_type.model_fields:
            display.say(f"Settings of {name} on {model.name}: {'; '.join(sorted(origins))}.")
    return configured


def remark_on_corpus(
    editors: "Iterable[Editor]", inputs: "Inputs", model: "EditableModel", display: ProgressDisplay
) -> None:
    """Say where second moments that editors need would come from text that nobody chose."""
    remark = describe_default_corpus(inputs, model)
    if remark is not None and any(editor.needs_second_moments(model) for editor in editors):
        display.say(remark)
