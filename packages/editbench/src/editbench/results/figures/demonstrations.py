"""Appendix E: facts of the user's own, before and after."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from editbench.results.figures.marks import mark_points
from editbench.results.figures.panels import (
    Drawing,
    interval,
    legend_marker,
    make_panels,
    title_panel,
)
from editbench.results.figures.selection import Point, Selection, make_points, name_series
from editbench.results.figures.style import UNEDITED_STYLE, SeriesStyle, choose_styles
from editbench.results.labels import UNEDITED
from editbench.results.report import SummaryLine

Place = tuple[tuple[str, ...], int]
"""Relations and number of edits."""


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
            f"n = {selection.n_edits} edits at once, {selection.measured_on}.",
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
            drawn = make_points(
                lines, title, lambda line: series[line.trial], lambda line: line.metric
            )
            _draw_row(axes, row, drawn, styles)
            points += drawn
        axes.set_yticks(range(len(rates)), [f"{label.quantity} {label.symbol}" for label in rates])
        axes.grid(visible=False, axis="y")
        axes.set_ylim(-0.6, len(rates) - 0.4)
        axes.set_xlim(-4, 104)
        axes.set_xlabel("rate (%) ↑")
        title_panel(axes, title)
    return Drawing(figure, tuple(points))


def _draw_row(
    axes: Axes, row: int, points: Sequence[Point], styles: Mapping[str, SeriesStyle]
) -> None:
    if len(points) > 1:
        values = [point.value for point in points]
        axes.plot([min(values), max(values)], [row, row], color="#999999", linewidth=1, zorder=0)
    low, high = interval(points)
    mark_points(axes, [point.value for point in points], [row] * len(points), points)
    for point, start, end in zip(points, low, high, strict=True):
        style = styles[point.series]
        axes.errorbar(
            [point.value],
            [row],
            xerr=np.array([[point.value - start], [end - point.value]]),
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
        lines: list[SummaryLine] = [
            line
            for line in selection.of_metric(label.metric)
            if not label.is_rate and places[line.trial] in shown
        ]
        if lines:
            found = ", ".join(f"{series[line.trial]} {line.value:.1f}" for line in lines)
            sentences.append(f"{label.axis} of {_name_place(shown[0])}: {found}.")
    return sentences
