"""Puts the page together."""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from editbench import __version__
from editbench.results.collection import Collection
from editbench.results.comparison import compare
from editbench.results.disclosure import disclose
from editbench.results.figures.drawing import choose_figures
from editbench.results.html.case_book import gather_cases
from editbench.results.html.case_data import write_index, write_sheets
from editbench.results.html.heat_map import HeatMapGroup
from editbench.results.html.plots import plot
from editbench.results.html.run_notes import describe_run
from editbench.results.labels import editor_rank
from editbench.results.report import Summary, summarize_collection
from editbench.results.tables.before_after_table import tabulate_before_after
from editbench.results.tables.comparison_table import tabulate_comparison
from editbench.results.tables.model import Table
from editbench.results.tables.summary_table import describe_gaps, tabulate_summary

_ASSETS = Path(__file__).parent / "assets"
_SCRIPTS = (
    "dom.js", "tables.js", "plots.js", "unpack.js", "cases.js", "portability_view.js",
    "case_view.js", "browser.js",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Page:
    """A page.

    Attributes:
        html: The page, whole.
        n_cases: How many cases can be browsed.
    """

    html: str
    n_cases: int


def build_page(
    folders: Sequence[Path],
    collection: Collection,
    *,
    baseline: str | None = None,
    heat_maps: Sequence[HeatMapGroup] = (),
) -> Page:
    """Make one HTML page of run folders, finished or not, that needs nothing but itself.

    Equal folders give an equal page.

    Args:
        folders: Run folders. A trial that several of them hold counts once.
        collection: What `editbench.results.collection.collect` reads from them.
        baseline: Name of an editor that the others are compared to; None for no comparison.
        heat_maps: Heat maps of traces.

    Raises:
        RunError: A folder holds no run, or one of its files is damaged.
        UnknownNameError: No trial is of the editor `baseline`.
    """
    summary = summarize_collection(collection)
    book = gather_cases(folders, collection)
    theme_script, page_script = _read("theme.js"), _join_scripts()
    html = _environment().get_template("page.html.jinja").render(
        policy=_policy(theme_script, page_script),
        title=_title(summary),
        subtitle=_subtitle(summary, folders),
        version=__version__,
        style=Markup(_read("page.css")),
        theme_script=Markup(theme_script),
        page_script=Markup(page_script),
        gaps=list(describe_gaps(summary)),
        tables=list(_tables(summary, collection)),
        comparison=None if baseline is None else tabulate_comparison(compare(folders, baseline)),
        plots=[plot(figure, summary.metrics) for figure in choose_figures(summary)],
        heat_maps=heat_maps,
        case_index=write_index(book, collection) if book.cases else "",
        case_sheets=write_sheets(book),
        n_without=book.n_without,
        runs=[describe_run(folder) for folder in folders],
    )  # fmt: skip
    return Page(html, len(book.cases))


def _tables(summary: Summary, collection: Collection) -> Iterator[tuple[str, Table]]:
    """A table for each experiment, with its name where there are several."""
    several = len(summary.experiments) > 1
    for name, trials in summary.experiments.items():
        own = set(trials)
        table = tabulate_summary(
            replace(
                summary,
                lines=tuple(line for line in summary.lines if line.trial in own),
                failed=(),
                stopped={},
                n_missing=0,
                disclosure=disclose(collection, own),
            )
        )
        if not table.is_empty:
            yield (name or "Other trials") if several else name, table
    if summary.before_after:
        yield "", tabulate_before_after(summary.before_after, summary.metrics)


def _title(summary: Summary) -> str:
    names = [name for name in summary.experiments if name]
    return f"editbench: {', '.join(names)}" if names else "editbench report"


def _subtitle(summary: Summary, folders: Sequence[Path]) -> str:
    trials = summary.trials.values()
    if not trials:
        return "No runs."
    editors = sorted(
        {description.editor for description in trials}, key=lambda e: (editor_rank(e), e)
    )
    models, datasets = (
        dict.fromkeys(getattr(description, name) for description in trials)
        for name in ("model", "dataset")
    )
    return (
        f"{len(trials)} trial{'s' if len(trials) > 1 else ''} of {', '.join(editors)} on "
        f"{', '.join(models)}; dataset {', '.join(datasets)}. "
        f"Read from {', '.join(map(str, folders))}."
    )


def _join_scripts() -> str:
    """One script, with names of its own.

    It stands before the sheets of cases and runs at once, so that nobody waits for what only an
    opened case needs. A module would run after everything else has been parsed.
    """
    return "\n".join(["(async () => {", '"use strict";', *map(_read, _SCRIPTS), "})();"])


def _policy(*scripts: str) -> str:
    """What the page may do: run its own scripts, and nothing else; above all, load nothing."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()) for script in scripts]
    allowed = " ".join(f"'sha256-{digest.decode()}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("editbench.results.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["column_groups"] = _column_groups
    return environment


def _column_groups(table: Table) -> list[tuple[str, int]]:
    """Headings over neighboring columns, and how many columns each spans."""
    groups: Any = groupby(table.columns, key=lambda column: column.group)
    return [(group, len(list(columns))) for group, columns in groups]


def _read(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
