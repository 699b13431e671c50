"""General ability as a table: a row for each editor and metric, and in words what it means."""

from collections.abc import Sequence

from editbench.results.before_after import FEWEST_CHANGED, BeforeAfter
from editbench.results.labels import editor_rank, label_metrics
from editbench.results.manifest import MetricDescription
from editbench.results.paired_bootstrap import N_RESAMPLES
from editbench.results.tables.comparison_table import describe_interval, name_editor, sign_number
from editbench.results.tables.model import Cell, Column, Table, format_number
from editbench.results.tables.summary_table import SETTING, name_shared, setting_of, varying_names


def tabulate_before_after(
    found: Sequence[BeforeAfter], metrics: Sequence[MetricDescription]
) -> Table:
    """Lay out what edits have done to models besides; a difference that is no noise is bold."""
    differences = [each.difference for each in found]
    varying = varying_names(differences)
    headings = {
        label.metric: label.heading
        for label in label_metrics((each.metric for each in differences), metrics)
    }
    settings = list(dict.fromkeys(map(setting_of, differences)))
    sections: dict[tuple[object, ...], list[tuple[Cell, ...]]] = {}
    for each in found:
        difference = each.difference
        place = (settings.index(setting_of(difference)), editor_rank(difference.editor))
        sections.setdefault((*place, difference.trial), []).append(
            (
                *(Cell(SETTING[name](difference)) for name in varying),
                name_editor(difference.editor, difference.variant),
                Cell(headings[difference.metric]),
                _number(difference.baseline_value, each.error_before, difference.metric),
                _number(difference.value, each.error, difference.metric),
                Cell(
                    sign_number(difference.difference, difference.metric),
                    bold=each.is_clear,
                ),
                Cell(describe_interval(difference)),
                Cell(str(difference.n)),
                Cell(str(each.n_changed)),
                Cell(each.verdict),
            )
        )
    numbers = ("before", "after", "difference", "95 % interval", "n", "changed")
    return Table(
        title=", ".join(["General ability, before and after", *name_shared(differences)]),
        columns=(
            *map(Column, varying),
            Column("editor"),
            Column("metric"),
            *(Column(name, align="right") for name in numbers),
            Column("after the edit"),
        ),
        sections=tuple(tuple(sections[key]) for key in sorted(sections, key=lambda key: key[:2])),
        notes=(
            (
                "± is here the standard error over a task's documents; 'changed' counts those that "
                "have another value than before."
            ),
            (
                "Differences are over the same documents, with their 95 % interval by a paired "
                f"bootstrap ({N_RESAMPLES:,} resamples). 'Within the noise': the interval has zero "
                f"in it, or fewer than {FEWEST_CHANGED} documents have changed, so other documents "
                "like these could as well have shown no difference."
            ),
        ),
    )


def _number(value: float, error: float | None, metric: str) -> Cell:
    return Cell(format_number(value, metric), "" if error is None else format_number(error, metric))
