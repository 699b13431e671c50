"""A comparison as a table: a row for each editor and metric."""

from collections.abc import Iterable, Sequence

from editbench.results.comparison import Comparison, Difference
from editbench.results.labels import MetricLabel, editor_rank, explain_symbols, label_metrics
from editbench.results.paired_bootstrap import N_RESAMPLES
from editbench.results.tables.model import Cell, Column, Table, format_number
from editbench.results.tables.summary_table import SETTING, name_shared, setting_of, varying_names

_NO_NUMBER = "–"
_FEW = 20


def tabulate_comparison(comparison: Comparison) -> Table:
    """Lay a comparison out; a difference whose interval leaves zero out is bold."""
    found = comparison.differences
    varying = varying_names(found)
    labels = label_metrics((each.metric for each in found), comparison.metrics)
    ranks = {label.metric: rank for rank, label in enumerate(labels)}
    headings = {label.metric: label.heading for label in labels}
    groups: dict[tuple[object, ...], list[Difference]] = {}
    settings = list(dict.fromkeys(setting_of(each) for each in found))
    for each in found:
        place = (settings.index(setting_of(each)), editor_rank(each.editor), each.editor)
        groups.setdefault((*place, each.trial, each.baseline_trial), []).append(each)
    several_baselines = any(each.baseline_variant for each in found)
    columns = [*map(Column, varying), Column("editor")]
    columns += [Column("baseline")] if several_baselines else []
    numbers = ("value", comparison.baseline, "difference", "95 % interval", "p", "n")
    columns += [Column("metric"), *(Column(name, align="right") for name in numbers)]
    columns += [Column("better")]
    sections = [
        tuple(
            (
                *(Cell(SETTING[name](each)) for name in varying),
                name_editor(each.editor, each.variant),
                *([name_editor(each.baseline, each.baseline_variant)] * several_baselines),
                Cell(headings[each.metric]),
                *_write_numbers(each),
                Cell(each.better or _NO_NUMBER),
            )
            for each in sorted(groups[key], key=lambda each: ranks[each.metric])
        )
        for key in sorted(groups, key=lambda key: key[:2])  # otherwise in the order of trials
    ]
    return Table(
        title=", ".join([f"Differences to {comparison.baseline}", *name_shared(found)]),
        columns=tuple(columns),
        sections=tuple(sections),
        notes=tuple(_notes(comparison, labels)),
        warnings=()
        if found
        else (f"No other editor has numbers on the same cases as {comparison.baseline}.",),
    )


def _notes(comparison: Comparison, labels: Sequence[MetricLabel]) -> Iterable[str]:
    yield (
        f"Differences are those of the editor to {comparison.baseline} on the same cases, with "
        "their 95 % interval by a paired bootstrap (cases drawn whole, "
        f"{N_RESAMPLES:,} resamples). Bold: the interval leaves zero out; 'better' then says who "
        "is."
    )
    yield (
        "p: twice the share of resamples without a difference or with one of the other sign. "
        "It is not corrected for the number of comparisons."
    )
    if any(difference.n < _FEW for difference in comparison.differences):
        yield f"Where n is below {_FEW}, a bootstrap is surer than it should be."
    yield explain_symbols(labels, comparison.metrics)
    if comparison.disclosure:
        yield comparison.disclosure


def _write_numbers(difference: Difference) -> Iterable[Cell]:
    metric = difference.metric
    yield Cell(format_number(difference.value, metric))
    yield Cell(format_number(difference.baseline_value, metric))
    yield Cell(sign_number(difference.difference, metric), bold=difference.better is not None)
    yield Cell(describe_interval(difference))
    if difference.p_value is None:
        yield Cell(_NO_NUMBER)
    else:
        yield Cell("< 0.001" if difference.p_value < 0.001 else f"{difference.p_value:.3f}")
    yield Cell(str(difference.n))


def describe_interval(difference: Difference) -> str:
    """The ends of a difference's interval, or a dash where it has none."""
    low, high, metric = difference.ci_low, difference.ci_high, difference.metric
    if low is None or high is None:
        return _NO_NUMBER
    return f"{sign_number(low, metric)} … {sign_number(high, metric)}"


def sign_number(value: float, metric: str) -> str:
    """A difference in a metric, with its sign; what rounds to nothing has none."""
    text = format_number(abs(value), metric)
    if float(text) == 0:
        return text
    return f"{'−' if value < 0 else '+'}{text}"


def name_editor(editor: str, variant: str) -> Cell:
    """An editor, and what sets its trial apart."""
    return Cell(editor, remark=f"({variant})" if variant else "")
