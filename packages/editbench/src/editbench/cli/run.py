"""``editbench run``: editors on models and datasets, measured; every option can span a grid."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from editbench.cli import options
from editbench.cli.cautions import caution_of_run
from editbench.cli.execution import (
    choose_folder,
    executor_options,
    run_prepared,
    show_result,
    showing_progress,
)
from editbench.cli.harness import WantedTasks, harness_options, note_left_out, with_tasks
from editbench.cli.layers import WantedLayers, facts_of_dataset, layers_option
from editbench.cli.lookup import (
    DEFAULT_N_EDITS,
    check_chat,
    choose_metrics,
    choose_sizes,
    configure_editors,
    find_metrics,
    note_files,
    remark_on_corpus,
    with_ruled,
)
from editbench.cli.options import ModelLoading
from editbench.cli.overrides import read_overrides
from editbench.cli.plan import plan_option, refuse_tracing, show_plan, work_of_trials
from editbench.errors import ConfigError
from editbench.plugins.manager import PluginManager
from editbench.plugins.sources import (
    complete_inputs,
    open_dataset,
    view_dataset,
)
from editbench.requests import ConflictPolicy

if TYPE_CHECKING:
    from editbench.editors.base import Inputs
    from editbench.metrics.base import AnyMetric
    from editbench.runner import Executor

_EXAMPLES = """\b
Examples:
  editbench run
  editbench run --model gpt2-xl --dataset counterfact --n-edits 1000 --n-edits 10000
  editbench run --dataset facts=mine.jsonl --model ./llama --out runs/llama
  editbench run --model smollm2-135m-gguf --chat --metrics success,accuracy,generation-match
  editbench run --model gpt2 --dataset counterfact --lm-eval-task arc_easy --lm-eval-limit 500
  editbench run --set memit.preservation_weight=100 --set memit.preservation_weight=1000
  editbench run --n-edits 1000 --batch-size 10 --checkpoint 100 --checkpoint 500
  editbench run --out runs/llama --resume ...   (with the options of that run)
"""


@click.command(epilog=_EXAMPLES)
@options.editor(
    "editors",
    multiple=True,
    default=["memit"],
    show_default=True,
    help="How to edit. The unedited model is always measured too.",
)
@options.model("models", multiple=True, default=["atlas"], show_default=True)
@options.dataset(
    "datasets",
    multiple=True,
    default=["atlas"],
    show_default=True,
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
    "--batch-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Write the facts N at a time, each batch into what those before it left, instead of all "
    "at once.",
)
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="With --batch-size: ask about all facts so far when N are written, and keep what is "
    "found. It is done at the end in any case.",
)
@click.option(
    "--stop-when",
    metavar="RULE",
    help="With --batch-size: end at a checkpoint where a metric has gone too far, such as "
    "'score<50' or 'perplexity>1.1x', which is 1.1 times that of the unedited model. What it goes "
    "by is measured, --metrics or not.",
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
@options.seed("seeds", multiple=True, default=[0])
@click.option(
    "--sample",
    type=click.Choice(["first", "shuffled"]),
    default="first",
    show_default=True,
    help="Take the dataset's first facts, or draw them with the seed.",
)
@options.set_(help="One hyperparameter; wins over --config.")
@options.config(
    "config_files",
    multiple=True,
    metavar="[EDITOR=]FILE",
    help="An editor's hyperparameters: a flat YAML or JSON file, ours or another tool's.",
)
@layers_option()
@options.metrics()
@harness_options()
@click.option(
    "--chat",
    "as_chat",
    is_flag=True,
    help="Ask through the model's chat template: each prompt is a user's message, and what should "
    "follow it the answer. The facts are written that way, too.",
)
@options.held_out_text()
@click.option(
    "--only-known",
    "facts",
    flag_value="known",
    help="Edit only facts that the model knows: unedited, it says the true object, or where the "
    "data name none the new one, after the prompt.",
)
@click.option(
    "--only-unknown", "facts", flag_value="unknown", help="Edit only facts that it does not know."
)
@options.on_conflict()
@options.skip_invalid()
@options.out(metavar="DIR", help="The run folder. [default: runs/<time>]")
@options.resume()
@plan_option()
@options.inputs()
@options.loading()
@executor_options()
@options.quiet()
@click.pass_obj
def run(
    plugins: PluginManager,
    editors: tuple[str, ...],
    models: tuple[str, ...],
    datasets: tuple[str, ...],
    n_edits: tuple[int, ...],
    batch_size: int | None,
    checkpoints: tuple[int, ...],
    stop_when: str | None,
    min_cases: int,
    relations: tuple[str, ...],
    seeds: tuple[int, ...],
    sample: Literal["first", "shuffled"],
    set_options: tuple[str, ...],
    config_files: tuple[str, ...],
    layers: WantedLayers,
    metrics: tuple[str, ...],
    harness: WantedTasks,
    as_chat: bool,
    held_out_text: Path | None,
    facts: Literal["known", "unknown"] | None,
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
    """Edit models, and measure the edits.

    Without options: MEMIT writes 100 facts into the embedded model. Editors, models, datasets,
    numbers of edits, seeds, configurations and values of a hyperparameter can be given more than
    once: every combination becomes a trial. A trial that fails is reported, and the others go on.

    Hyperparameters are a model's published ones, or derived ones where there are none (the run
    says so); --config overrides them, and --set overrides both.

    With --batch-size a trial is a stream: batch after batch goes into the same model, and at each
    --checkpoint everything so far is asked.

    Results are kept in a folder, trial by trial; 'editbench report' shows them again.
    """
    editor_types = {name: plugins.get_editor(name) for name in editors}
    overrides = read_overrides(editor_types, config_files, set_options)
    layers.check(editor_types, overrides)
    known_facts = facts_of_dataset(datasets[0], plugins, cache, skip_invalid=skip_invalid)
    chosen_metrics: "Sequence[AnyMetric]" = find_metrics(metrics, plugins)
    tasks = harness.load(metrics)
    if chosen_metrics:
        chosen_metrics = with_tasks(chosen_metrics, tasks)
    if only_plan:
        refuse_tracing(layers)
        if facts is not None:
            raise ConfigError(
                f"--plan: what a model knows is only found by asking it, got --only-{facts}. Leave "
                "out one of them."
            )
    folder = choose_folder(out if resume or not only_plan else None, resume=resume)
    from editbench.datasets.corpus import text_file_corpus

    held_out = None if held_out_text is None else text_file_corpus(held_out_text)
    sources = [
        view_dataset(
            open_dataset(option, plugins, cache, skip_invalid=skip_invalid),
            as_chat=as_chat,
            held_out=held_out,
        )
        for option in dict.fromkeys(datasets)
    ]
    with showing_progress(folder, quiet=quiet) as display:
        note_files(itertools.chain.from_iterable(overrides.values()), display)
        sizes = {
            id(source): choose_sizes(source, n_edits, on_conflict, display) for source in sources
        }
        from editbench.runner import StopRule, grid, prepare_run

        rule = None if stop_when is None else StopRule.parse(stop_when)
        largest = max(size for some in sizes.values() for size in some)
        if checkpoints and max(checkpoints) > largest:
            raise ConfigError(
                f"--checkpoint: so many facts are never written, got {max(checkpoints)}; expected "
                f"at most {largest}. Write more with --n-edits."
            )

        # Which trials are finished can only be told with the weights.
        load = loading.outline if only_plan and not resume else loading.load
        editables = [load(name, plugins) for name in dict.fromkeys(models)]
        if as_chat:
            check_chat(editables)
        configured = {
            id(model): configure_editors(
                model,
                editor_types,
                layers.settle(overrides, editor_types, model, known_facts, cache, display),
                display,
            )
            for model in editables
        }
        for model in editables:
            remark_on_corpus(configured[id(model)], inputs, model, display)
        note_left_out(tasks, display)
        wanted_metrics = {
            id(source): with_tasks(
                with_ruled(choose_metrics(source, chosen_metrics, plugins, display), rule, plugins),
                tasks,
            )
            for source in sources
        }
        trials = [
            trial
            for source in sources
            for trial in grid(
                models=editables,
                datasets=[source],
                editors=lambda model: configured[id(model)],
                metrics=lambda dataset: wanted_metrics[id(dataset)],
                n_edits=sizes[id(source)],
                seeds=tuple(dict.fromkeys(seeds)),
                n_batches=lambda n: math.ceil(min_cases / n),
                batch_size=batch_size,
                checkpoints=lambda n: [each for each in checkpoints if each <= n],
                stop_when=rule,
                relations=[tuple(group.split("+")) for group in relations] or [()],
                sample=sample,
                facts=facts or "all",
                on_conflict=on_conflict,
                inputs=lambda model, _: complete_inputs(inputs, model),
            )
        ]
        prepared = prepare_run(trials, cache)
        for line in caution_of_run(prepared):
            display.say(line)
        if only_plan:
            work = work_of_trials(prepared, cache, resumed=folder if resume else None)
        else:
            summary = run_prepared(
                prepared, folder, plugins, display, resume=resume, cache=cache, executor=executor
            )
    if only_plan:
        show_plan(work, cache, is_divided=executor is not None)
    else:
        show_result(summary)
