"""Dots in rows: editors compared (Tables 1 and 2), facts before and after (Appendix E)."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from editbench.results.figures.panels import (
    Drawing,
    is_wide,
    legend_marker,
    make_panels,
    mark_points,
    name_panel,
    reach,
    show_plain_numbers,
    title_panel,
)
from editbench.results.figures.selection import Point, Selection, make_points, name_series
from editbench.results.figures.style import UNEDITED_STYLE, SeriesStyle, choose_styles
from editbench.results.labels import UNEDITED

Place = tuple[tuple[str, ...], int]
"""Relations and number of edits."""


def draw_dots(selection: Selection, title: str = "Editors compared") -> Drawing:
    """Draw a panel for each metric with a dot and interval for each editor."""
    series = name_series(selection.trials, ())
    names = selection.order(series)
    styles = choose_styles(names)
    labels = selection.labels
    figure, panels = make_panels(
        len(labels),
        n_columns=4,
        size=(2.3, 1.0 + 0.24 * len(names)),
        legend={},
        title=title,
        caption=selection.describe("Bars: 95 % CI over cases. Dotted: the unedited model."),
        share_y=True,
    )
    points = []
    for label, axes in zip(labels, panels, strict=True):
        drawn = make_points(selection.of_metric(label.metric), label.symbol, series)
        rows = [names.index(point.series) for point in drawn]
        _draw_row_dots(axes, rows, drawn, styles)
        for point in (point for point in drawn if point.series == UNEDITED):
            style = styles[UNEDITED]
            axes.axvline(point.value, color=style.color, linestyle=style.line, linewidth=1)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        if label.is_rate:
            axes.set_xlim(-4, 104)
        elif is_wide(point.value for point in drawn):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(numticks=4))
            show_plain_numbers(axes.xaxis)
        axes.set_xlabel(label.axis_heading)
        title_panel(axes, name_panel(label))
        points += drawn
    return Drawing(figure, tuple(points))


def draw_demonstrations(selection: Selection) -> Drawing:
    """Draw every rate before and after, a panel for each group of facts that was written.

    Metrics that are no rates stand in the caption.
    """
    series = name_series(selection.trials, {"relations", "n_edits"})
    places = {
        trial: (description.relations, description.n_edits)
        for trial, description in selection.trials.items()
    }
    present = {line.trial for line in selection.lines}
    panels_of = list(dict.fromkeys(places[trial] for trial in places if trial in present))
    edited = dict.fromkeys(series[t] for t in places if t in present and series[t] != UNEDITED)
    styles = choose_styles([*edited, UNEDITED])
    rates = [label for label in selection.labels if label.is_rate][::-1]
    legend = {"before": legend_marker(UNEDITED_STYLE, hollow=True)}
    legend |= {f"after {name}": legend_marker(styles[name]) for name in edited}
    figure, panels = make_panels(
        max(1, len(panels_of)),
        n_columns=3 if len(panels_of) > 4 else 2,
        size=(2.9, 1.0 + 0.24 * len(rates)),
        legend=legend,
        title="Before and after",
        caption=selection.describe(
            "Bars: 95 % CI over cases.",
            *_describe_others(selection, series, places, panels_of[:1]),
        ),
        share_y=True,
    )
    points: list[Point] = []
    for place, axes in zip(panels_of, panels, strict=True):
        title = _name_place(place)
        for row, label in enumerate(rates):
            lines = [x for x in selection.of_metric(label.metric) if places[x.trial] == place]
            drawn = make_points(lines, title, series, lambda line: line.metric)
            if len(drawn) > 1:
                values = [point.value for point in drawn]
                ends = [min(values), max(values)]
                axes.plot(ends, [row, row], color="#999999", linewidth=1, zorder=0)
            _draw_row_dots(axes, [row] * len(drawn), drawn, styles)
            points += drawn
        axes.set_yticks(range(len(rates)), [f"{label.quantity} {label.symbol}" for label in rates])
        axes.grid(visible=False, axis="y")
        axes.set_ylim(-0.6, len(rates) - 0.4)
        axes.set_xlim(-4, 104)
        axes.set_xlabel("rate (%) ↑")
        title_panel(axes, title)
    return Drawing(figure, tuple(points))


def _draw_row_dots(
    axes: Axes, rows: Sequence[float], points: Sequence[Point], styles: Mapping[str, SeriesStyle]
) -> None:
    """Draw numbers as dots with their intervals; the unedited model's are hollow."""
    mark_points(axes, [point.value for point in points], rows, points)
    for point, row in zip(points, rows, strict=True):
        style = styles[point.series]
        axes.errorbar(
            [point.value],
            [row],
            xerr=reach([point]),
            color=style.color,
            marker=style.marker or "o",
            markerfacecolor="white" if point.series == UNEDITED else style.color,
            capsize=2.5,
            elinewidth=1,
        )


def _name_place(place: Place) -> str:
    relations, n_edits = place
    return f"{' and '.join(relations) or 'all facts'}, n = {n_edits:,} edits"


def _describe_others(
    selection: Selection,
    series: Mapping[str, str],
    places: Mapping[str, Place],
    shown: Sequence[Place],
) -> list[str]:
    """What the metrics that are no rates say about the facts of the first panel."""
    sentences = []
    for label in selection.labels:
        own = [] if label.is_rate else selection.of_metric(label.metric)
        lines = [line for line in own if places[line.trial] in shown]
        if lines:
            found = ", ".join(f"{series[line.trial]} {line.value:.1f}" for line in lines)
            sentences.append(f"{label.axis} of {_name_place(shown[0])}: {found}.")
    return sentences
