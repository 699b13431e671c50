"""``editbench reproduce``: the paper's experiments, on any model."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from editbench.cli import options
from editbench.cli.execution import (
    choose_folder,
    executor_options,
    run_prepared,
    show_result,
    showing_progress,
)
from editbench.cli.lookup import (
    choose_metrics,
    find_metrics,
    note_files,
    read_cases,
    remark_on_corpus,
)
from editbench.cli.options import ModelLoading
from editbench.cli.overrides import Overrides, read_overrides
from editbench.cli.plan import plan_option, show_plan, work_of_trials
from editbench.cli.progress import ProgressDisplay
from editbench.errors import ConfigError, EditError, UnknownNameError
from editbench.plugins.manager import PluginManager
from editbench.plugins.sources import complete_inputs, open_dataset, view_dataset
from editbench.requests import ConflictPolicy

if TYPE_CHECKING:
    from editbench.datasets.base import Dataset
    from editbench.editors.base import Editor, Inputs
    from editbench.experiments import Experiment
    from editbench.metrics.base import AnyMetric
    from editbench.models.editable import EditableModel
    from editbench.runner import Executor

_EMBEDDED_MODEL = "atlas"

_NAMES = """\b
Experiments, and where the paper (arXiv 2210.07229) has them:
  table1          Table 1         zsRE, all editors
  table2          Table 2         CounterFact, all editors
  scaling         Figure 5        every metric against the number of edits
  categories      Figure 6        relations one by one
  mixing          Figures 7, 10   two relations mixed
  weight-decay    Figure 9        fine-tuning's tradeoff
  layers          Figures 11-13   MEMIT with other critical layers
  attention       Figures 11-13   MEMIT on attention instead of MLPs
  lambda          Figures 11-13   MEMIT with other preservation weights
  lifelong        (later papers)  batches of 100 one after another, all editors
  demonstrations  App. E          a facts file, before and after

\b
Examples:
  editbench reproduce table2 --max-edits 300 --out runs/table2
  editbench reproduce scaling --out runs/scaling --resume
  editbench reproduce table2 --editor memit --editor alphaedit --out runs/two
  editbench reproduce scaling --model gpt-j-6b --dtype bfloat16 --plan
  editbench reproduce table1 --model gpt-j-6b --dataset zsre --out runs/gpt-j
  editbench reproduce demonstrations --model gpt2-xl --dataset facts=mine.jsonl --out runs/mine
"""


@click.command(epilog=_NAMES)
@click.argument("name", metavar="NAME")
@options.model(default=_EMBEDDED_MODEL, show_default=True)
@options.dataset(
    help="Where the facts come from. [default: the paper's; for the embedded model, its world]",
)
@click.option(
    "--max-edits",
    type=click.IntRange(min=1),
    metavar="N",
    help="The largest number of facts at once. [default: the paper's, or what the data allow]",
)
@options.editor(
    "editors",
    multiple=True,
    help="Compare this editor instead of the experiment's: fewer, or your own. Repeatable.",
)
@options.metrics(help="What to measure, instead of what the experiment does.")
@options.held_out_text()
@options.seed()
@options.set_(help="One hyperparameter, where the experiment does not vary it; wins over --config.")
@options.config(
    "config_files",
    multiple=True,
    metavar="EDITOR=FILE",
    help="An editor's hyperparameters: a flat YAML or JSON file, ours or another tool's.",
)
@options.on_conflict(default="keep-first")
@options.skip_invalid()
@options.out(metavar="DIR", help="The run folder. [default: runs/<time>]")
@options.resume()
@plan_option()
@options.inputs()
@options.loading()
@executor_options()
@options.quiet()
@click.pass_obj
def reproduce(
    plugins: PluginManager,
    name: str,
    model: str,
    dataset: str | None,
    max_edits: int | None,
    editors: tuple[str, ...],
    metrics: tuple[str, ...],
    held_out_text: Path | None,
    seed: int,
    set_options: tuple[str, ...],
    config_files: tuple[str, ...],
    on_conflict: ConflictPolicy,
    skip_invalid: bool,
    out: Path | None,
    resume: bool,
    only_plan: bool,
    inputs: "Inputs",
    cache: Path | None,
    loading: ModelLoading,
    executor: "Executor | None",
    quiet: bool,
) -> None:
    """Run one of the paper's experiments.

    An experiment is a preset grid of trials: without options on the embedded model and world,
    otherwise on any model and dataset. It can be interrupted and resumed. The folder is a run
    folder: 'editbench report DIR' shows it in other formats, and the paper's figure of it is drawn
    into DIR/figures.
    """
    from editbench.datasets.corpus import text_file_corpus
    from editbench.experiments import EXPERIMENTS, Setup
    from editbench.runner import prepare_run

    if name not in EXPERIMENTS:
        raise UnknownNameError("experiment", name, EXPERIMENTS)
    experiment = EXPERIMENTS[name]
    if editors:
        experiment = experiment.with_editors(editors)
    if metrics:
        named = tuple(metric.name for metric in find_metrics(metrics, plugins))
        experiment = replace(experiment, metrics=named)
    folder = choose_folder(out if resume or not only_plan else None, resume=resume)
    names = experiment.editors or [each for each in plugins.editors() if each != "unedited"]
    editor_types = {editor: plugins.get_editor(editor) for editor in names}
    overrides = _read_overrides(experiment, editor_types, config_files, set_options)
    chosen = dataset or _default_source(experiment, model)
    source = view_dataset(
        open_dataset(chosen, plugins, cache, skip_invalid=skip_invalid),
        held_out=None if held_out_text is None else text_file_corpus(held_out_text),
    )
    with showing_progress(folder, quiet=quiet) as display:
        read_cases(source, display)
        note_files(overrides.values(), display)
        load = loading.outline if only_plan and not resume else loading.load
        editable = load(model, plugins)
        configured = _configure(editable, editor_types, overrides, display, wanted=editors)
        remark_on_corpus(configured.values(), inputs, editable, display)
        setup = Setup(
            model=editable,
            dataset=source,
            configured=configured,
            metrics=_find_metrics(experiment, source, plugins, display),
            max_edits=max_edits,
            seed=seed,
            on_conflict=on_conflict,
            inputs=complete_inputs(inputs, editable),
        )
        prepared = prepare_run(experiment.trials(setup))
        if only_plan:
            work = work_of_trials(prepared, cache, resumed=folder if resume else None)
        else:
            summary = run_prepared(
                prepared,
                folder,
                plugins,
                display,
                resume=resume,
                cache=cache,
                executor=executor,
                provenance={"experiment": experiment.name, "paper": experiment.paper},
            )
    if only_plan:
        show_plan(work, cache, is_divided=executor is not None)
        return
    from editbench.results.figures import draw_figures
    from editbench.results.report import summarize

    for path in draw_figures(summarize([folder]), folder / "figures"):
        click.echo(f"Figure: {path}")
    show_result(summary)


def _default_source(experiment: "Experiment", model: str) -> str:
    """The paper's dataset; for the embedded model, its world."""
    if model != _EMBEDDED_MODEL:
        return experiment.dataset
    from editbench.atlas.demonstrations import FACTS_FILE

    return f"facts={FACTS_FILE}" if experiment.dataset == "facts" else _EMBEDDED_MODEL


def _read_overrides(
    experiment: "Experiment",
    editor_types: "Mapping[str, type[Editor]]",
    config_files: Sequence[str],
    set_options: Sequence[str],
) -> dict[str, Overrides]:
    overrides = read_overrides(editor_types, config_files, set_options)
    for name, alternatives in overrides.items():
        if len(alternatives) > 1:
            raise ConfigError(
                f"{experiment.name}: editor '{name}' is given {len(alternatives)} settings; "
                "expected one, since the experiment itself says what varies. For a grid of your "
                "own, use 'editbench run'."
            )
    return {name: alternatives[0] for name, alternatives in overrides.items()}


def _configure(
    model: "EditableModel",
    editor_types: "Mapping[str, type[Editor]]",
    overrides: Mapping[str, Overrides],
    display: ProgressDisplay,
    *,
    wanted: Collection[str],
) -> "dict[str, Editor]":
    """The editors that can be used on the model; says which cannot, and why.

    Raises:
        EditError: One of `wanted`, which somebody named, cannot.
    """
    configured = {}
    for name, editor in editor_types.items():
        config, origin = overrides[name].configure(editor, model)
        try:
            editor(config).check_usable(model)
        except EditError as error:
            if name in wanted:
                raise
            display.say(f"Without {name}: {error}")
            continue
        display.say(f"Settings of {name} on {model.name}: {origin}.")
        configured[name] = editor(config)
    return configured


def _find_metrics(
    experiment: "Experiment", dataset: "Dataset", plugins: PluginManager, display: ProgressDisplay
) -> "dict[str, AnyMetric]":
    """The experiment's metrics that the dataset has cases for; accuracy as the dataset means it."""
    means = {"accuracy": "token-accuracy"} if "token-accuracy" in dataset.default_metrics else {}
    name_of = {means.get(name, name): name for name in experiment.metrics}
    wanted = [plugins.get_metric(name)() for name in name_of]
    found = choose_metrics(dataset, wanted, plugins, display)
    return {name_of[metric.name]: metric for metric in found}
