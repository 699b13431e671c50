"""``editbench tune``: hyperparameters for a model, found on facts that no result is reported on."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import click

from editbench.cli import options
from editbench.cli.group import telling_what_is_kept, writing
from editbench.cli.layers import FactSource, WantedLayers, layers_option
from editbench.cli.lookup import default_metrics, note_files, read_cases, remark_on_corpus
from editbench.cli.options import ModelLoading
from editbench.cli.overrides import Overrides, read_overrides
from editbench.cli.progress import ProgressDisplay
from editbench.errors import ConfigError
from editbench.plugins.manager import PluginManager
from editbench.plugins.sources import complete_inputs, open_dataset, validation_of

if TYPE_CHECKING:
    from editbench.editors.base import Editor, EditorConfig, Inputs
    from editbench.editors.search_space import SearchSpace
    from editbench.models.editable import EditableModel
    from editbench.requests import EditCase
    from editbench.tuning.search import SearchStatus

_DEFAULT_TRIALS = 40
_MIN_CASES = 100

_EXAMPLES = """\b
Examples:
  editbench tune --model ./llama --dataset facts=validation.jsonl --minutes 60 --out llama.yaml
  editbench run --model ./llama --config llama.yaml --dataset facts=reported.jsonl
  editbench tune --model gpt2-xl --editor rome --dataset counterfact --layers 10-25 --out rome.yaml
  editbench tune --model ./llama --dataset counterfact=mine.json --exclude counterfact \\
    --set memit.n_steps=25 --set memit.offset_decay=0.5 --set memit.offset_decay=0.001 --out l.yaml
"""


@click.command(epilog=_EXAMPLES)
@options.model(required=True)
@options.dataset(
    required=True,
    help="Validation facts, with paraphrases and neighbors. Without a path: the dataset's "
    "validation split if it has one, else its second half, since 'run' takes the first facts.",
)
@click.option(
    "--exclude",
    "excluded",
    multiple=True,
    metavar="NAME[=PATH]",
    help="Leave out facts about subjects of this dataset: the one that you report on.",
)
@options.out(
    required=True,
    metavar="FILE",
    help="The configuration to write (YAML), for --config. The search's record lies beside it, in "
    "a folder of the same name that ends in .search: the same command goes on from there, with "
    "more --trials or --minutes, too.",
)
@options.editor(default="memit", show_default=True)
@click.option(
    "--n-edits",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many facts to write at once, as many as you will: what suits ten may not suit a "
    "thousand. Twice as many are needed. [default: 100, or half of the facts if fewer]",
)
@click.option(
    "--min-cases",
    type=click.IntRange(min=1),
    default=_MIN_CASES,
    show_default=True,
    metavar="N",
    help="Judge by as many batches of --n-edits, each written into the unedited model, as have at "
    "least N cases together, if there are as many.",
)
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"End after N trials. [default: {_DEFAULT_TRIALS}, or no limit with --minutes]",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="End the search after N minutes, those of earlier sessions included; the comparison on "
    "held-out facts comes after that.",
)
@click.option(
    "--objective",
    type=click.Choice(["S", "SA", "both"]),
    help="What to make large: the score of successes, that of accuracies, or the mean of both. "
    "[default: S, or SA where the facts have no S]",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    metavar="POINTS",
    help="How far specificity (NS, NA) may fall below the unedited model's. [default: no bound]",
)
@layers_option()
@options.config(
    help="Hyperparameters to start from and to compare with, where not the model's own: a flat "
    "YAML or JSON file, ours or another tool's."
)
@options.set_(
    help="One value: it stays as it is. Several of one field: these are tried, beside the default."
)
@options.seed()
@options.skip_invalid()
@options.inputs()
@options.loading()
@options.quiet()
@click.pass_obj
def tune(
    plugins: PluginManager,
    model: str,
    dataset: str,
    excluded: tuple[str, ...],
    out: Path,
    editor: str,
    n_edits: int | None,
    min_cases: int,
    trials: int | None,
    minutes: float | None,
    objective: Literal["S", "SA", "both"] | None,
    max_drop: float | None,
    layers: WantedLayers,
    config: str | None,
    set_options: tuple[str, ...],
    seed: int,
    skip_invalid: bool,
    inputs: "Inputs",
    cache: Path | None,
    loading: ModelLoading,
    quiet: bool,
) -> None:
    """Search for the hyperparameters that suit a model, on validation facts.

    Half of the facts are searched on. The other half, with other subjects, is only looked at when
    the search has ended: what was found is compared with the default there, so that the numbers
    are no better than they should be. Report results on facts that are in neither half.

    Layers, learning rate, clamp, steps, λ and what else the editor names are tried, at first the
    model's own or derived ones. λ is tried several times for each z, which it does not touch, and
    a trial that does badly with a quarter of the facts is given up. --layers 5-12 sets the range
    in which layers are looked for; --layers auto takes what causal tracing suggests, and a layer
    on either side.

    The best so far is in the file at any time. Ctrl-C ends the search early.
    """
    from editbench.tuning.record import record_folder, refuse_overwriting, require_optuna

    require_optuna()
    options.check_out_file(out)
    refuse_overwriting(out)
    editor_type = plugins.get_editor(editor)
    configs = [] if config is None else [config]
    overrides = read_overrides({editor: editor_type}, configs, set_options)[editor]
    layers.check({editor: editor_type}, {editor: overrides})
    source = validation_of(dataset, plugins)
    facts = open_dataset(source, plugins, cache, skip_invalid=skip_invalid)
    reported = [open_dataset(each, plugins, cache) for each in excluded]
    from editbench.tuning.bench import Bench, Problem
    from editbench.tuning.comparison import compare_held_out
    from editbench.tuning.configuration_file import format_comparison, write_configuration
    from editbench.tuning.facts import divide, leave_out
    from editbench.tuning.objective import Objective
    from editbench.tuning.record import open_record
    from editbench.tuning.search import Search

    with ExitStack() as stack:
        display = stack.enter_context(ProgressDisplay(quiet=quiet))
        note_files(overrides, display)
        cases: Sequence[EditCase] = read_cases(facts, display)
        if facts.path is None and source == dataset and not facts.name.endswith("-validation"):
            cases = cases[len(cases) // 2 :]
            source = f"the second half of {source}"
        for name, each in zip(excluded, reported, strict=True):
            n_before = len(cases)
            cases = leave_out(cases, each.cases())
            display.say(f"Left out for {name}: {n_before - len(cases)} of {n_before} facts.")
        division = divide(cases, n_edits, min_cases=min_cases, seed=seed)
        metrics = default_metrics(division.search, plugins, facts.default_metrics)
        wanted = Objective.of(objective, metrics, division.search, max_drop)
        editable = loading.load(model, plugins)
        start, origin, space = _choose_space(editor_type, editable, overrides)
        remark_on_corpus([editor_type(start)], inputs, editable, display)
        space = _choose_layers(layers, editor, editable, cases, cache, space, display)
        given = complete_inputs(inputs, editable)
        problem = Problem(editable, editor_type, start, space, division, wanted, given, seed)
        display.say(f"Start: settings of {editor} on {editable.name}: {origin}.")
        size = division.size
        display.say(
            f"Facts: {len(division.search.cases())} of {source} to search on and as many others to "
            f"compare on, {size.n_edits} written at once. Report results on none of them."
        )
        kept = cache or Path(stack.enter_context(TemporaryDirectory(prefix="editbench-")))
        bench = Bench(problem, kept, _saying_once(display))
        stack.enter_context(writing(out))
        study = stack.enter_context(open_record(record_folder(out), problem.describe()))

        def keep(state: "SearchStatus") -> None:
            write_configuration(out, problem, state, source, None)
            if state.best is not None:
                best = f"Trial {state.best.number}: {wanted.name} {state.best.value:.2f}"
                display.say(best + (", the default." if state.best.number == 0 else "."))

        search = Search(study, bench, display, keep)
        stack.enter_context(telling_what_is_kept(lambda: _describe_interruption(search.state, out)))
        if trials is None and minutes is None:
            trials = _DEFAULT_TRIALS
        ended = search.run(trials, None if minutes is None else 60 * minutes)
        state = search.state
        if state.best is None:
            raise ConfigError(f"tune: no trial gave a score, got {state.n_trials} trials.")
        display.say(f"The search has ended: {ended}. {_count(state)}")
        compared = compare_held_out(bench, state.best.config, display)
        write_configuration(out, problem, state, source, compared)
    click.echo(f"\n{_describe_changes(start, state.best.config)}\n")
    click.echo("\n".join(format_comparison(compared)))
    click.echo(f"\nOn {len(division.held_out.cases())} held-out facts of {source}.")
    click.echo(_judge(state, compared[0].difference.low, compared[0].difference.high, max_drop))
    click.echo(f"Wrote {out}; use it with --config {out}. The record is in {record_folder(out)}.")


def _choose_space(
    editor: "type[Editor]", model: "EditableModel", overrides: Sequence[Overrides]
) -> "tuple[EditorConfig, str, SearchSpace]":
    """The hyperparameters to start from, where they come from, and what is tried in their place.

    Raises:
        ConfigError: A value is invalid, or there is nothing to try.
    """
    from editbench.editors.search_space import Choices

    tried: dict[str, list[Any]] = {}
    for each in overrides:
        for name, value in each.set_values.items():
            if value not in tried.setdefault(name, []):
                tried[name].append(value)
    fixed = {name: values[0] for name, values in tried.items() if len(values) == 1}
    start, origin = replace(overrides[0], set_values=fixed).configure(editor, model)
    offered = editor.search_space(model, start)
    space = {name: each for name, each in offered.items() if name not in tried}
    for name, values in tried.items():
        if len(values) > 1:
            parsed = [getattr(start.updated({name: value}, "--set"), name) for value in values]
            own = offered.get(name)
            is_cheap = isinstance(own, Choices) and own.is_cheap
            space[name] = Choices.of(parsed, getattr(start, name), is_cheap=is_cheap)
    if not space:
        raise ConfigError(
            f"tune: there is nothing to try, got editor '{editor.name}', which names no "
            f"hyperparameters to search for. Give several values with --set {editor.name}.FIELD=…"
        )
    return start, origin, space


def _choose_layers(
    layers: WantedLayers,
    editor: str,
    model: "EditableModel",
    cases: "Sequence[EditCase]",
    cache: Path | None,
    space: "SearchSpace",
    display: ProgressDisplay,
) -> "SearchSpace":
    """Keep to the layers of the option, if it was given."""
    if layers.text is None:
        return space
    from editbench.editors.search_space import restrict_layers
    from editbench.tracing.facts import facts_of_cases

    source = FactSource("the validation facts", lambda: facts_of_cases(cases))
    chosen = layers.find(model, source, cache, display)
    last = model.architecture.n_layers - 1
    if layers.is_auto:
        chosen = tuple(range(max(0, chosen[0] - 1), min(last, chosen[-1] + 1) + 1))
    for layer in chosen:
        model.architecture.check_layer(layer)
    return restrict_layers(space, chosen, editor)


def _saying_once(display: ProgressDisplay) -> Any:
    said: set[str] = set()

    def say(warning: str) -> None:
        if warning not in said:
            said.add(warning)
            display.note(f"Warning: {warning}")

    return say


def _count(state: "SearchStatus") -> str:
    return (
        f"{state.n_trials} trials in {state.seconds / 60:.1f} minutes, {state.n_pruned} given up "
        f"early, {state.n_failed} failed."
    )


def _describe_interruption(state: "SearchStatus", out: Path) -> str:
    if state.best is None:
        return "Interrupted before the first trial was done. The same command begins it again."
    return (
        f"Interrupted: {state.n_trials} trials are kept, and the best settings so far are in "
        f"{out}, not yet compared on held-out facts. The same command goes on."
    )


def _describe_changes(start: "EditorConfig", found: "EditorConfig") -> str:
    before: Mapping[str, Any] = start.model_dump(mode="json")
    changed = {n: v for n, v in found.model_dump(mode="json").items() if v != before[n]}
    if not changed:
        return "Found: nothing that does better than the default."
    return "\n".join(
        ["Found:", *(f"  {name}: {before[name]} → {value}" for name, value in changed.items())]
    )


def _judge(state: "SearchStatus", low: float, high: float, max_drop: float | None) -> str:
    """What the comparison says, in words."""
    assert state.best is not None
    if max_drop is not None and state.best.value < 0:
        return f"No trial kept specificity within {max_drop:g} points: this one came nearest."
    if state.best.number == 0:
        return "Keep the default, or search longer."
    if low > 0:
        return "What was found is better than the default there."
    if high < 0:
        return "What was found is worse than the default there: keep the default, or search longer."
    return "Facts like these do not tell the two apart there."
