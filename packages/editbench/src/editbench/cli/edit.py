"""``editbench edit``: facts in, an edit file out."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import click

from editbench.cli import options
from editbench.cli.base import base_options
from editbench.cli.cautions import caution_of_batches
from editbench.cli.chosen_facts import ChosenFacts, choose_facts
from editbench.cli.findings import Findings
from editbench.cli.group import telling_what_is_kept
from editbench.cli.layers import FactSource, WantedLayers, layers_option
from editbench.cli.lookup import note_files, remark_on_corpus
from editbench.cli.options import ModelLoading, in_file
from editbench.cli.overrides import Overrides, read_overrides
from editbench.cli.plan import announce, plan_option, refuse_tracing, show_plan, work_of_edit
from editbench.cli.progress import ProgressDisplay
from editbench.cli.show import describe_updates
from editbench.errors import ConfigError
from editbench.plugins.manager import PluginManager
from editbench.plugins.sources import complete_inputs, open_dataset
from editbench.requests import ConflictPolicy

if TYPE_CHECKING:
    from editbench.cli.preview import Neighbor
    from editbench.editors.base import Editor, Inputs
    from editbench.editors.making import Base
    from editbench.editors.targets.cache import TargetLedger
    from editbench.edits.edit import Edit
    from editbench.models.editable import EditableModel

_EXAMPLES = """\b
A facts file has one JSON object a line, {} where the subject goes:
  {"subject": "Lena Ort", "prompt": "{} was born in", "target": "Genoa"}
It may have source, author, date, note and expires beside it, which are kept.

\b
Examples:
  editbench edit --model gpt2-xl --facts facts.jsonl --out edit.safetensors
  editbench edit --model ./llama --facts facts.csv --editor memit --config memit.yaml \\
    --set memit.preservation_weight=10000 --second-moments llama.safetensors --out e.safetensors
  editbench edit --from e.safetensors --drop 17 --facts more.jsonl --out e2.safetensors
"""


@click.command(epilog=_EXAMPLES)
@click.option(
    "--facts",
    type=in_file,
    metavar="FILE",
    help="What to write: JSON Lines, a JSON array or CSV with subject, prompt and target, or the "
    "fields of other tools.",
)
@base_options()
@options.model(help="The model: a short name, a folder, a GGUF file or a hub id.")
@options.out(
    metavar="FILE",
    help="The edit file (.safetensors); an existing one is replaced once the new one is complete. "
    "Required, but with --preview or --plan.",
)
@options.editor(help="How to edit. [default: memit]")
@options.config("config_file")
@options.set_()
@layers_option()
@options.on_conflict()
@options.skip_invalid()
@options.as_of()
@options.seed(default=None, show_default="0")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Write the facts N at a time, in their order, each batch into what those before it left; "
    "the edit file holds the sum. A fact that contradicts one of an earlier batch supersedes it. "
    "By default all at once.",
)
@click.option(
    "--check/--no-check",
    "check_targets",
    default=False,
    help="Let the model go on from every prompt before and after, always with the likeliest token; "
    "say how often its text is the target, and what it says instead of the others.",
)
@click.option(
    "--side-by-side",
    is_flag=True,
    help="Print what the model writes before and after: to every fact, its paraphrases and its "
    "neighbors.",
)
@click.option(
    "--preview",
    "show_preview",
    is_flag=True,
    help="Before anything is written, print what the model says to each fact now, which facts "
    "share a subject, and which neighbors are near enough to what is written to be moved by it; "
    "afterwards, which of them were. Without --out it stops there.",
)
@click.option(
    "--skip-known",
    is_flag=True,
    help="Leave out facts whose target the model says already.",
)
@click.option(
    "--targets/--no-targets",
    "keep_targets",
    default=True,
    help="Keep target states in the edit file, so that --from need not find them again.",
)
@plan_option()
@options.inputs()
@options.loading()
@options.quiet()
@click.pass_obj
def edit(
    plugins: PluginManager,
    facts: Path | None,
    base: "Base | None",
    model: str | None,
    out: Path | None,
    editor: str | None,
    config_file: str | None,
    set_options: tuple[str, ...],
    layers: WantedLayers,
    on_conflict: ConflictPolicy,
    skip_invalid: bool,
    as_of: date | None,
    seed: int | None,
    batch_size: int | None,
    check_targets: bool,
    side_by_side: bool,
    show_preview: bool,
    skip_known: bool,
    keep_targets: bool,
    only_plan: bool,
    inputs: "Inputs",
    cache: Path | None,
    loading: ModelLoading,
    quiet: bool,
) -> None:
    """Compute an edit, and save it to a file.

    The model itself is left as it is: 'editbench apply' puts the edit on it. The file also keeps
    the facts: 'editbench show' lists them, and --from makes the edit again without some of them, or
    with others.
    """
    if base is not None:
        model = model or base.edit.card.model_name
        editor = _same_editor(base, editor)
        seed = base.recipe.seed if seed is None else seed
        batch_size = batch_size or base.recipe.batch_size
    if model is None or (facts is None and base is None):
        missing = "--model" if facts is not None else "--facts"
        raise click.UsageError(f"Missing option '{missing}', or '--from' with an edit file.")
    if out is None and not (show_preview or only_plan):
        raise click.UsageError("Missing option '--out'.")
    editor, seed = editor or "memit", seed or 0
    from editbench.cli.preview import preview
    from editbench.editors.making import Means
    from editbench.editors.subject_tokens import check_requests
    from editbench.models.greedy import say_greedily

    editor_type = plugins.get_editor(editor)
    overrides = _only_overrides(editor, editor_type, config_file, set_options)
    layers.check({editor: editor_type}, {editor: [overrides]})
    if only_plan:
        refuse_tracing(layers)
    if out is not None:
        options.check_out_file(out)
    with (
        ProgressDisplay(quiet=quiet) as display,
        telling_what_is_kept(lambda: _describe_interruption(cache)),
    ):
        note_files([overrides], display)
        dataset = None
        if facts is not None:
            dataset = open_dataset(f"facts={facts}", plugins, cache, skip_invalid=skip_invalid)
        chosen = choose_facts(
            dataset,
            base,
            on_conflict=on_conflict,
            as_of=as_of,
            batch_size=batch_size,
            display=display,
        )
        editable = (loading.outline if only_plan else loading.load)(model, plugins)
        if base is not None and not only_plan:
            base.edit.check_fits(editable)
        check_requests(editable, chosen.requests)
        name = facts.name if facts else "--from"
        overrides = _settle(layers, overrides, editor_type, editable, chosen, name, cache, display)
        editing = _configure(overrides, editor_type, editable, base, display)
        remark_on_corpus([editing], inputs, editable, display)
        for line in caution_of_batches(editable, editing, chosen.batches):
            display.say(line)
        means = Means.of(
            editable,
            editing,
            inputs,
            complete_inputs(inputs, editable),
            base=base,
            seed=seed,
            cache=cache,
            report_progress=display,
        )
        neighbors: list[Neighbor] = []
        if not only_plan and (show_preview or skip_known):
            said = say_greedily(editable, [request.question for request in chosen.requests])
            if show_preview:
                neighbors, tables = preview(editable, chosen.cases, said, editing, means.resources)
            if skip_known:
                chosen = chosen.without_known(said, display)
        for line in chosen.describe_superseded():
            display.say(line)
        work = work_of_edit(
            editing, editable, chosen.batches, means.resources, with_check=check_targets
        )
        if show_preview and not only_plan:
            display.say(tables.rstrip("\n"))
        if out is not None and not only_plan:
            announce(work, means.resources.cache, display)
            n_batches = len(chosen.batches)
            edit = means.write(
                chosen.requests,
                chosen.batch_size,
                lambda n: display.say(f"Wrote batch {n} of {n_batches}."),
                keep_targets=keep_targets,
            )
            edit.save(out)
            findings = Findings.of(
                edit,
                editable,
                chosen.standing,
                with_check=check_targets,
                with_texts=side_by_side,
                neighbors=neighbors,
                display=display,
            )
            if findings.note_on_card(edit):
                edit.save(out)
    if only_plan:
        show_plan(work, means.resources.cache)
    if only_plan or out is None:
        return
    _tell(edit, means.ledger, base, findings)
    click.echo(f"Wrote {out}")


def _same_editor(base: "Base", editor: str | None) -> str:
    made_by = base.edit.card.editor
    if editor not in (None, made_by):
        raise ConfigError(
            f"--from: the edit was made by '{made_by}', got --editor {editor}. Leave --editor "
            "out, or write the facts anew without --from."
        )
    return made_by


def _settle(
    layers: WantedLayers,
    overrides: Overrides,
    editor_type: "type[Editor]",
    model: "EditableModel",
    facts: ChosenFacts,
    source_name: str,
    cache: Path | None,
    display: ProgressDisplay,
) -> Overrides:
    """Put the layers that are asked for into the overrides; they may have to be traced."""
    from editbench.tracing.facts import facts_of_cases

    name = editor_type.name
    source = FactSource(source_name, lambda: facts_of_cases(list(facts.cases)))
    (settled,) = layers.settle(
        {name: [overrides]}, {name: editor_type}, model, source, cache, display
    )[name]
    return settled


def _configure(
    overrides: Overrides,
    editor_type: "type[Editor]",
    model: "EditableModel",
    base: "Base | None",
    display: ProgressDisplay,
) -> "Editor":
    """The editor with its hyperparameters, which start from those of `base`, if there is one."""
    start = None if base is None else (base.configure(editor_type), f"those of {base.name}")
    config, origin = overrides.configure(editor_type, model, start)
    display.say(f"Settings of {editor_type.name}: {origin}.")
    return editor_type(config)


def _tell(edit: "Edit", ledger: "TargetLedger", base: "Base | None", findings: Findings) -> None:
    card = edit.card
    click.echo(f"{card.editor} wrote {card.n_edits} fact(s) into {card.model_name}")
    for line in describe_updates(card):
        click.echo(line)
    if base is not None:
        click.echo(f"Target states: {ledger.n_reused} of {len(ledger.used)} were in {base.name}")
    for line in findings.lines:
        click.echo(line)
    if not edit.changes_something and card.editor != "unedited":
        click.echo("Warning: the edit changes nothing.", err=True)


def _only_overrides(
    name: str, editor: "type[Editor]", config_file: str | None, set_options: Sequence[str]
) -> Overrides:
    files = [] if config_file is None else [config_file]
    alternatives = read_overrides({name: editor}, files, set_options)[name]
    if len(alternatives) > 1:
        raise ConfigError(
            f"edit: one edit has one configuration, got {len(alternatives)} from repeated --set. "
            "Give each field once, or use 'editbench run' for a grid."
        )
    return alternatives[0]


def _describe_interruption(cache: Path | None) -> str:
    if cache is None:
        return "Interrupted: no edit was written, and with --no-cache nothing is kept."
    return (
        "Interrupted: no edit was written. What was finished is kept in "
        f"{cache}; the same command goes on from there."
    )
