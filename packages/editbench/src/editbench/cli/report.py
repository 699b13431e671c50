"""``editbench report``: the rows of runs as a table."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from editbench.cli.group import writing
from editbench.cli.options import in_file, out_path

if TYPE_CHECKING:
    from editbench.results.report import Summary

_UNLIMITED_WIDTH = 10_000
_EXAMPLES = """\b
Examples:
  editbench report runs/gpt2-xl
  editbench report runs/a runs/b --format csv --output both.csv
"""


@click.command(epilog=_EXAMPLES)
@click.argument("runs", nargs=-1, required=True, type=in_file, metavar="RUN...")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
    help="A table to read; CSV; or a JSON list of objects.",
)
@click.option(
    "--output",
    type=out_path,
    metavar="FILE",
    help="Write to a file instead of the terminal; an existing one is replaced.",
)
def report(runs: tuple[Path, ...], output_format: str, output: Path | None) -> None:
    """Show the results of runs.

    Run folders may be finished or not, and several are put into one table.

    Each value is a mean over cases, with its 95 % confidence interval; 'score' is the harmonic
    mean of the metrics it is made of. Rates are in percent.
    """
    from editbench.results.report import summarize, write_csv, write_json

    summary = summarize(runs)
    if output_format == "table":
        text = format_table(summary)
    else:
        text = {"csv": write_csv, "json": write_json}[output_format](summary)
    if output is None:
        click.echo(text, nl=False)
    else:
        with writing(output):
            replace_text(output, text)


def format_table(summary: "Summary") -> str:
    """Lay the table out for stdout: styled in a terminal, as wide as it needs elsewhere."""
    from rich.console import Console

    from editbench.results.table import draw_table

    console = Console(width=None if sys.stdout.isatty() else _UNLIMITED_WIDTH)
    with console.capture() as capture:
        console.print(draw_table(summary))
    return capture.get()


def replace_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
