"""``editbench run``: editors on models and datasets, measured; every option can span a grid."""

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from editbench.cli.execution import (
    choose_folder,
    executor_options,
    run_trials,
    show_result,
    showing_progress,
)
from editbench.cli.layers import LayerChoice, facts_of_dataset, layers_option
from editbench.cli.options import (
    CONFLICT_POLICIES,
    EditorInputs,
    ModelLoading,
    editor_input_options,
    loading_options,
    out_path,
    quiet_option,
    skip_invalid_option,
)
from editbench.cli.plan import plan_option, refuse_tracing, show_plan, work_of_trials
from editbench.cli.planning import (
    DEFAULT_N_EDITS,
    check_second_moments,
    choose_sizes,
    configure_editors,
    default_metrics,
    find_metrics,
    note_files,
)
from editbench.cli.settings import read_settings
from editbench.plugins.manager import PluginManager
from editbench.plugins.sources import open_dataset
from editbench.requests import ConflictPolicy

if TYPE_CHECKING:
    from editbench.runner import Executor

_EXAMPLES = """\b
Examples:
  editbench run
  editbench run --model gpt2-xl --dataset counterfact --n-edits 1000 --n-edits 10000
  editbench run --dataset facts=mine.jsonl --model ./llama --out runs/llama
  editbench run --set memit.preservation_weight=100 --set memit.preservation_weight=1000
  editbench run --out runs/llama --resume ...   (with the options of that run)
"""


@click.command(epilog=_EXAMPLES)
@click.option(
    "--editor",
    "editors",
    multiple=True,
    default=["memit"],
    show_default=True,
    metavar="NAME",
    help="How to edit. The unedited model is always measured too.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    default=["atlas"],
    show_default=True,
    metavar="NAME",
    help="Short name, hub name or folder.",
)
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    default=["atlas"],
    show_default=True,
    metavar="NAME[=PATH]",
    help="What to write and how to judge it; without a path, what the dataset itself knows of.",
)
@click.option(
    "--n-edits",
    multiple=True,
    type=click.IntRange(min=1),
    metavar="N",
    help=f"How many facts to write at once. [default: {DEFAULT_N_EDITS}, or all if fewer]",
)
@click.option(
    "--min-cases",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Write as many batches of --n-edits, each into the unedited model, as have at least N "
    "cases together.",
)
@click.option(
    "--relation",
    "relations",
    multiple=True,
    metavar="NAME[+NAME]",
    help="Only facts of this relation; of several joined by + in equal shares. [default: all]",
)
@click.option(
    "--seed",
    "seeds",
    multiple=True,
    type=int,
    default=[0],
    show_default=True,
    metavar="N",
    help="Of every random choice.",
)
@click.option(
    "--sample",
    type=click.Choice(["first", "shuffled"]),
    default="first",
    show_default=True,
    help="Take the dataset's first facts, or draw them with the seed.",
)
@click.option(
    "--set",
    "set_options",
    multiple=True,
    metavar="EDITOR.FIELD=VALUE",
    help="One hyperparameter; wins over --config.",
)
@click.option(
    "--config",
    "config_files",
    multiple=True,
    metavar="[EDITOR=]FILE",
    help="An editor's hyperparameters: a flat YAML or JSON file, ours or another tool's.",
)
@layers_option
@click.option(
    "--metrics",
    multiple=True,
    metavar="NAME[,NAME]",
    help="What to measure; by default what is meant for the dataset.",
)
@click.option(
    "--on-conflict",
    type=click.Choice(CONFLICT_POLICIES),
    default="error",
    show_default=True,
    help="What to do with facts that contradict each other.",
)
@skip_invalid_option
@click.option("--out", type=out_path, metavar="DIR", help="The run folder. [default: runs/<time>]")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, skipping what is done.")
@plan_option
@editor_input_options
@loading_options
@executor_options
@quiet_option
@click.pass_context
def run(
    context: click.Context,
    editors: tuple[str, ...],
    models: tuple[str, ...],
    datasets: tuple[str, ...],
    n_edits: tuple[int, ...],
    min_cases: int,
    relations: tuple[str, ...],
    seeds: tuple[int, ...],
    sample: Literal["first", "shuffled"],
    set_options: tuple[str, ...],
    config_files: tuple[str, ...],
    layers: LayerChoice,
    metrics: tuple[str, ...],
    on_conflict: ConflictPolicy,
    skip_invalid: bool,
    out: Path | None,
    resume: bool,
    only_plan: bool,
    inputs: EditorInputs,
    loading: ModelLoading,
    executor: "Executor | None",
    quiet: bool,
) -> None:
    """Edit models, and measure the edits.

    Without options: MEMIT writes 100 facts into the embedded model. Editors, models, datasets,
    numbers of edits, seeds, configurations and values of a hyperparameter can be given more than
    once: every combination becomes a trial. A trial that fails is reported, and the others go on.

    Hyperparameters are a model's published ones, or derived ones where there are none (the run
    says so); --config overrides them, and --set overrides both.

    Results are kept in a folder, trial by trial; 'editbench report' shows them again.
    """
    plugins = context.find_object(PluginManager)
    assert plugins is not None
    editor_types = {name: plugins.get_editor(name) for name in editors}
    settings = read_settings(editor_types, config_files, set_options)
    layers.check(editor_types, settings)
    known_facts = facts_of_dataset(datasets[0], plugins, inputs.cache, skip_invalid=skip_invalid)
    chosen_metrics = find_metrics(metrics, plugins)
    if only_plan:
        refuse_tracing(layers)
    folder = choose_folder(out if resume or not only_plan else None, resume=resume)
    sources = [
        open_dataset(option, plugins, inputs.cache, skip_invalid=skip_invalid)
        for option in dict.fromkeys(datasets)
    ]
    with showing_progress(folder, quiet=quiet) as display:
        note_files(itertools.chain.from_iterable(settings.values()), display)
        sizes = {
            id(source): choose_sizes(source, n_edits, on_conflict, display) for source in sources
        }
        from editbench.runner import grid

        # Which trials are finished can only be told with the weights.
        is_hollow = only_plan and not resume
        load = loading.outline if is_hollow else loading.load
        editables = [load(name, plugins) for name in dict.fromkeys(models)]
        configured = {
            id(model): configure_editors(
                model,
                editor_types,
                layers.settle(settings, editor_types, model, known_facts, inputs.cache, display),
                display,
            )
            for model in editables
        }
        for model in editables:
            if (remark := inputs.remark_on_corpus(model)) and set(editors) != {"unedited"}:
                display.say(remark)
        if inputs.second_moments is not None and not only_plan:
            for model in editables:
                check_second_moments(model, configured[id(model)], inputs.second_moments)
        trials = [
            trial
            for source in sources
            for trial in grid(
                models=editables,
                datasets=[source],
                editors=lambda model: configured[id(model)],
                metrics=lambda dataset: chosen_metrics or default_metrics(dataset, plugins),
                n_edits=sizes[id(source)],
                seeds=tuple(dict.fromkeys(seeds)),
                n_batches=lambda n: math.ceil(min_cases / n),
                relations=[tuple(group.split("+")) for group in relations] or [()],
                sample=sample,
                on_conflict=on_conflict,
                inputs=lambda model, dataset: inputs.for_runner(model, with_corpus=not is_hollow),
            )
        ]
        if only_plan:
            work = work_of_trials(trials, inputs.cache, resumed=folder if resume else None)
        else:
            summary = run_trials(
                trials,
                folder,
                plugins,
                display,
                resume=resume,
                cache=inputs.cache,
                executor=executor,
            )
    if only_plan:
        show_plan(work, inputs.cache, is_divided=executor is not None)
    else:
        show_result(context, summary)
