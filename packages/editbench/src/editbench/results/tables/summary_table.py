"""A report as a table in the paper's form: a row for each trial, a column for each metric."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from editbench.results.comparison import Difference
from editbench.results.labels import (
    UNEDITED,
    MetricLabel,
    editor_rank,
    explain_symbols,
    label_metrics,
)
from editbench.results.report import FailedTrial, Summary, SummaryLine
from editbench.results.tables.model import Cell, Column, Table, format_number
from editbench.results.tables.styles import Style, style_labels

SETTING: Mapping[str, Callable[[SummaryLine | Difference], str]] = {
    "model": lambda line: line.model,
    "dataset": lambda line: line.dataset,
    "relations": lambda line: line.relations or "all",
    "edits": lambda line: str(line.n_edits),
    "seed": lambda line: str(line.seed),
}
_NO_NUMBER = Cell("–")


def tabulate_summary(summary: Summary, style: Style | None = None) -> Table:
    """Lay a report out, with all metrics or with the columns of a convention.

    Each number stands with the larger half of its 95 % confidence interval. Within a setting (same
    model, dataset, relations, number of edits and seed) editors stand in the paper's order, and the
    best number of each metric is bold, as are those that look the same in print. The unedited
    model does not compete, nor does an editor that changed nothing, and one editor alone is not
    the best. Settings in which no two trials differ stand in the title.
    """
    settings = list(dict.fromkeys(setting_of(line) for line in summary.lines))
    varying = varying_names(summary.lines)
    labels = label_metrics((line.metric for line in summary.lines), summary.metrics)
    if style is not None:
        labels = style_labels(labels, style)
    columns = [*map(Column, varying), Column("editor")]
    columns += [Column(label.heading, label.quantity, "right") for label in labels]
    sections = []
    for setting in settings:
        lines = [line for line in summary.lines if setting_of(line) == setting]
        shared = [Cell(SETTING[name](lines[0])) for name in varying]
        sections.append(_tabulate_setting(lines, labels, shared))
    has_best = any(cell.bold for section in sections for row in section for cell in row)
    return Table(
        title=", ".join(name_shared(summary.lines)),
        columns=tuple(columns),
        sections=tuple(sections),
        notes=tuple(_notes(summary, labels, has_best=has_best)) if sections else (),
        warnings=tuple(describe_gaps(summary.failed, summary.n_missing)),
    )


def describe_gaps(failed: Iterable[FailedTrial], n_missing: int) -> Iterable[str]:
    """What a report lacks: a sentence for each trial that failed, and one for those to come."""
    for trial in failed:
        variant = f" ({trial.variant})" if trial.variant else ""
        yield f"{trial.description.label}{variant} failed: {trial.message}"
    if n_missing:
        yield f"{n_missing} trial(s) have not been run yet."


def setting_of(line: SummaryLine | Difference) -> tuple[str, ...]:
    """What `SETTING` says of a line."""
    return tuple(show(line) for show in SETTING.values())


def varying_names(lines: Sequence[SummaryLine | Difference]) -> list[str]:
    """The parts of the setting in which lines differ: columns of a table."""
    return [name for name, show in SETTING.items() if len(set(map(show, lines))) > 1]


def name_shared(lines: Sequence[SummaryLine | Difference]) -> list[str]:
    """The others, with their values: they stand in a table's title."""
    shared = [name for name in SETTING if lines and name not in varying_names(lines)]
    named = [(name, SETTING[name](lines[0])) for name in shared]
    return [f"{name} {value}" for name, value in named if (name, value) != ("relations", "all")]


def _tabulate_setting(
    lines: Sequence[SummaryLine], labels: Sequence[MetricLabel], shared: Sequence[Cell]
) -> tuple[tuple[Cell, ...], ...]:
    by_trial: dict[str, dict[str, SummaryLine]] = {}
    for line in sorted(lines, key=lambda line: editor_rank(line.editor)):
        by_trial.setdefault(line.trial, {})[line.metric] = line
    best = {label.metric: _best(lines, label) for label in labels}
    return tuple(
        (
            *shared,
            _name(next(iter(of_trial.values()))),
            *(_number(of_trial.get(label.metric), best[label.metric]) for label in labels),
        )
        for of_trial in by_trial.values()
    )


def _competes(line: SummaryLine) -> bool:
    return line.editor != UNEDITED and line.status == "ok"


def _best(lines: Sequence[SummaryLine], label: MetricLabel) -> str | None:
    """The best number as it is printed; None if there is nobody to be better than."""
    values = [line.value for line in lines if line.metric == label.metric and _competes(line)]
    if len(values) < 2:
        return None
    return format_number(max(values) if label.higher_is_better else min(values), label.metric)


def _name(line: SummaryLine) -> Cell:
    remarks = [f"({line.variant})"] if line.variant else []
    if line.status == "no_effect" and line.editor != UNEDITED:
        remarks.append("changed nothing")
    return Cell(line.editor, remark=" ".join(remarks))


def _number(line: SummaryLine | None, best: str | None) -> Cell:
    if line is None:
        return _NO_NUMBER
    text = format_number(line.value, line.metric)
    margin = ""
    if line.ci_low is not None and line.ci_high is not None:
        half_width = max(line.value - line.ci_low, line.ci_high - line.value)
        margin = format_number(half_width, line.metric)
    return Cell(text, margin, bold=_competes(line) and text == best)


def _notes(summary: Summary, labels: Sequence[MetricLabel], *, has_best: bool) -> Iterable[str]:
    yield "± is half of the 95 % confidence interval over cases, its larger half if they differ."
    if has_best:
        yield "Bold: the best editor of a setting; the unedited model does not compete."
    if explanation := explain_symbols(labels, summary.metrics):
        yield explanation
    if summary.disclosure:
        yield summary.disclosure
