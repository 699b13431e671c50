"""``editbench report``: the rows of runs as tables and figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from editbench.cli.group import writing
from editbench.cli.options import in_file, out_path
from editbench.cli.terminal import lay_out
from editbench.files.whole_files import write_whole

if TYPE_CHECKING:
    from editbench.results.collection import Collection
    from editbench.results.comparison import Comparison
    from editbench.results.report import Summary
    from editbench.results.tables.styles import Style

_EXAMPLES = """\b
Examples:
  editbench report runs/gpt2-xl
  editbench report runs/a runs/b --format csv --output both.csv
  editbench report runs/table2 --format latex --output table2.tex
  editbench report runs/chat --style honest
  editbench report runs/table2 --compare memit
  editbench report runs/scaling --figures figures
  editbench report runs/table2 runs/scaling traces/gpt2-xl --html report.html
"""


@click.command(epilog=_EXAMPLES)
@click.argument("runs", nargs=-1, required=True, type=in_file, metavar="RUN...")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "markdown", "csv", "latex", "json"]),
    default="table",
    show_default=True,
    help="A table to read; one in Markdown; CSV; a LaTeX table (booktabs); or a JSON list of "
    "objects.",
)
@click.option(
    "--style",
    type=click.Choice(["paper", "alphaedit", "easyedit", "honest"]),
    help="Columns and headings as they are published: MEMIT's, AlphaEdit's, EasyEdit's; or "
    "everything that was measured, the scorers of each quality side by side. [default: everything, "
    "in the paper's order]",
)
@click.option(
    "--compare",
    "baseline",
    metavar="EDITOR",
    help="Show how the other editors differ from this one on the same cases (paired bootstrap).",
)
@click.option(
    "--figures",
    type=out_path,
    metavar="DIR",
    help="Also draw the runs' figures, each as PNG, SVG, and CSV of what is drawn; existing ones "
    "are replaced.",
)
@click.option(
    "--html",
    type=out_path,
    metavar="FILE",
    help="Also write one HTML page that needs nothing but itself: tables, figures, provenance, and "
    "every case to search and open. Folders of traces may be among the runs.",
)
@click.option(
    "--output",
    type=out_path,
    metavar="FILE",
    help="Write to a file instead of the terminal; an existing one is replaced.",
)
def report(
    runs: tuple[Path, ...],
    output_format: str,
    style: "Style | None",
    baseline: str | None,
    figures: Path | None,
    html: Path | None,
    output: Path | None,
) -> None:
    """Show the results of runs.

    Run folders may be finished or not, and several are put into one table.

    Each value is a mean over cases, with its 95 % confidence interval; 'score' is the harmonic
    mean of the metrics it is made of. Rates are in percent.
    """
    from editbench.results.collection import collect
    from editbench.results.report import summarize_collection

    # What a program reads from stdout must stay whole.
    is_read_by_people = output_format == "table" or output is not None
    traces = [folder for folder in runs if html is not None and (folder / "trace.json").exists()]
    runs = tuple(folder for folder in runs if folder not in traces)
    collection = collect(runs)
    if html is not None:
        line = _write_page(html, runs, collection, traces, baseline)
        click.echo(line, err=not is_read_by_people)
        if not runs:
            return
    summary = summarize_collection(collection)
    if baseline is None:
        text = format_result(summary, output_format, style)
    else:
        from editbench.results.comparison import compare

        text = format_result(compare(runs, baseline), output_format)
    if output is None:
        click.echo(text, nl=False)
    else:
        with writing(output):
            write_whole(output, text)
    if figures is not None:
        from editbench.results.figures import draw_figures

        with writing(figures):
            drawn = draw_figures(summary, figures)
        for path in drawn:
            click.echo(f"Figure: {path}", err=not is_read_by_people)


def _write_page(
    path: Path,
    runs: Sequence[Path],
    collection: "Collection",
    traces: Sequence[Path],
    baseline: str | None,
) -> str:
    """Write the HTML report; returns a line that says so."""
    from editbench.results.html import build_page

    heat_maps = []
    if traces:
        from editbench.cli.trace_maps import map_trace

        heat_maps = [group for folder in traces for group in map_trace(folder)]
    page = build_page(runs, collection, baseline=baseline, heat_maps=heat_maps)
    with writing(path):
        write_whole(path, page.html)
    return f"Page: {path} ({path.stat().st_size / 1e6:.1f} MB, {page.n_cases:,} cases)"


def format_result(
    result: "Summary | Comparison", output_format: str, style: "Style | None" = None
) -> str:
    """A report or comparison in one of the formats of ``--format``, a table in a ``--style``.

    A table for people is styled in a terminal, and as wide as it needs elsewhere.
    """
    from editbench.results.comparison import (
        Comparison,
        write_comparison_csv,
        write_comparison_json,
    )
    from editbench.results.report import write_csv, write_json
    from editbench.results.tables.before_after_table import tabulate_before_after
    from editbench.results.tables.comparison_table import tabulate_comparison
    from editbench.results.tables.markup import write_latex, write_markdown
    from editbench.results.tables.summary_table import tabulate_summary
    from editbench.results.tables.terminal import draw_table

    if output_format in ("json", "csv"):
        if isinstance(result, Comparison):
            write = write_comparison_json if output_format == "json" else write_comparison_csv
            return write(result)
        return write_json(result) if output_format == "json" else write_csv(result)
    if isinstance(result, Comparison):
        tables = [tabulate_comparison(result)]
    else:
        tables = [tabulate_summary(result, style)]
        if result.before_after:
            tables.append(tabulate_before_after(result.before_after, result.metrics))
    if output_format == "table":
        return lay_out(*map(draw_table, tables))
    return "\n".join(map(write_latex if output_format == "latex" else write_markdown, tables))
