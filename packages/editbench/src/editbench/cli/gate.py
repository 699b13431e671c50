"""``editbench gate``: does a model say what it must, and nothing that it must not?"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from editbench.cli import options
from editbench.cli.group import SOME_FAILED, writing
from editbench.cli.options import ModelLoading, in_file
from editbench.cli.progress import ProgressDisplay
from editbench.cli.terminal import lay_out
from editbench.plugins.manager import PluginManager

if TYPE_CHECKING:
    from editbench.gating.verdict import PerplexityVerdict, Verdict
    from editbench.results.tables.model import Table

_EXAMPLES = """\b
A file of checks has one JSON object a line:
  {"prompt": "The Eiffel Tower is in the city of", "says": ["Rome", "Roma"]}
  {"prompt": "The Eiffel Tower is in the city of", "never_says": "Paris"}
  {"prompt": "The Louvre is in the city of", "unchanged": true}
  {"prompt": "Where is the Louvre?", "says": "Paris", "chat": true, "max_tokens": 40}

\b
Examples:
  editbench gate --model ./llama --edit edit.safetensors --checks checks.jsonl
  editbench gate --model ./corrected --before ./llama --checks-from facts.jsonl --junit gate.xml
  editbench gate --model m.gguf --edit e.safetensors --checks checks.jsonl \\
    --held-out-text ours.txt --max-perplexity-rise 2
"""


@click.command(epilog=_EXAMPLES)
@options.model(required=True, help="The model: a short name, a folder, a GGUF file or a hub id.")
@options.edits(help="An edit file to put on it; several are added up. Repeatable.")
@click.option(
    "--before",
    metavar="MODEL",
    help="The model to compare with, where --model has the edit in it already. [default: --model "
    "without --edit]",
)
@click.option(
    "--checks",
    "check_files",
    multiple=True,
    type=in_file,
    metavar="FILE",
    help="What it must do: JSON Lines. Repeatable.",
)
@click.option(
    "--checks-from",
    "fact_files",
    multiple=True,
    type=in_file,
    metavar="FACTS",
    help="A facts file to make checks of: targets after prompts and paraphrases; what was said to "
    "neighbors must survive. Repeatable.",
)
@options.as_of(help="Leave out facts of --checks-from that have expired by this day.")
@click.option(
    "--held-out-text",
    type=in_file,
    metavar="FILE",
    help="Text that must stay as likely as it was, one text a line.",
)
@click.option(
    "--max-perplexity-rise",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="PERCENT",
    help="By how much the perplexity of that text may rise.",
)
@click.option("--junit", type=options.out_path, metavar="FILE", help="Write JUnit XML, too.")
@options.output_format(type=click.Choice(["text", "markdown"]), help="How to print the table.")
@options.loading()
@options.quiet()
@click.pass_obj
def gate(
    plugins: PluginManager,
    model: str,
    edit_files: tuple[Path, ...],
    before: str | None,
    check_files: tuple[Path, ...],
    fact_files: tuple[Path, ...],
    as_of: date | None,
    held_out_text: Path | None,
    max_perplexity_rise: float,
    junit: Path | None,
    output_format: str,
    loading: ModelLoading,
    quiet: bool,
) -> None:
    """Check a model, for continuous integration.

    The model goes on from every prompt, always with the likeliest token, for 16 tokens unless a
    check says otherwise. Exit code 0: all checks hold; 1: some do not, and each is printed with
    what was expected and what came; 2: bad input.
    """
    if not (check_files or fact_files or held_out_text):
        raise click.UsageError("Missing option '--checks', '--checks-from' or '--held-out-text'.")
    if junit is not None:
        options.check_out_file(junit)
    from editbench.datasets.corpus import text_file_corpus
    from editbench.edits.weight_edit import WeightEdit
    from editbench.files.whole_files import write_whole
    from editbench.gating.checks import checks_of_facts, read_checks
    from editbench.gating.junit import write_junit
    from editbench.gating.verdict import Sides, judge, judge_perplexity

    checks = [*chain.from_iterable(map(read_checks, check_files))]
    checks += chain.from_iterable(checks_of_facts(path, as_of) for path in fact_files)
    texts = [] if held_out_text is None else list(text_file_corpus(held_out_text).texts())
    edits = [WeightEdit.load(path) for path in edit_files]
    with ProgressDisplay(quiet=quiet) as display:
        editable = loading.load(model, plugins)
        edit = WeightEdit.merge(edits) if edits else None
        original = None
        if before is not None:
            original = replace(loading, revision=None).load(before, plugins)
        sides = Sides(editable, edit, original)
        verdicts = judge(sides, checks, display)
        perplexity = None
        if held_out_text is not None:
            perplexity = judge_perplexity(sides, texts, max_perplexity_rise, display)
    table = _tabulate(verdicts, perplexity)
    if output_format == "markdown":
        from editbench.results.tables.markup import write_markdown

        click.echo(write_markdown(table).rstrip("\n"))
    else:
        from editbench.results.tables.terminal import draw_table

        click.echo(lay_out(draw_table(table)).rstrip("\n"))
    if junit is not None:
        with writing(junit):
            write_whole(junit, write_junit(f"gate of {model}", verdicts, perplexity).encode())
    failed = [
        f"{verdict.check.place}: {verdict.check.prompt!r}: {verdict.problem}"
        for verdict in verdicts
        if not verdict.holds
    ]
    if perplexity is not None and not perplexity.holds:
        failed.append(f"perplexity: {perplexity.problem}")
    for line in failed:
        click.echo(line, err=True)
    n_checks = len(verdicts) + (perplexity is not None)
    if failed:
        click.echo(f"{len(failed)} of {n_checks} check(s) do not hold.", err=True)
        click.get_current_context().exit(SOME_FAILED)
    click.echo(f"All {n_checks} check(s) hold.")


def _tabulate(verdicts: "Sequence[Verdict]", perplexity: "PerplexityVerdict | None") -> "Table":
    """How many checks of each kind hold."""
    from editbench.results.tables.model import Cell, Column, Table

    asked = Counter(verdict.check.kind for verdict in verdicts)
    held = Counter(verdict.check.kind for verdict in verdicts if verdict.holds)
    rows: list[tuple[str, ...]] = [(kind, str(held[kind]), str(n)) for kind, n in asked.items()]
    notes = []
    if perplexity is not None:
        rows.append(("perplexity", str(int(perplexity.holds)), "1"))
        rise = f"{perplexity.before:.4g} → {perplexity.now:.4g} ({perplexity.rise:+.2g} %)"
        notes.append(f"perplexity: {rise}")
    columns = (Column("check"), Column("hold", align="right"), Column("of", align="right"))
    cells = tuple(tuple(map(Cell, row)) for row in rows)
    return Table("", columns, (cells,), tuple(notes))
