"""Tables 1 and 2 as a figure: every editor in every metric."""

from matplotlib.ticker import LogLocator

from editbench.results.figures.marks import mark_points
from editbench.results.figures.panels import (
    Drawing,
    interval,
    is_wide,
    make_panels,
    name_panel,
    show_plain_numbers,
    title_panel,
)
from editbench.results.figures.selection import Selection, draw_order, make_points, name_series
from editbench.results.figures.style import choose_styles
from editbench.results.labels import UNEDITED


def draw_dots(selection: Selection, title: str = "Editors compared") -> Drawing:
    """Draw a panel for each metric with a dot and interval for each editor."""
    series = name_series(selection.trials, ())
    present = {line.trial for line in selection.lines}
    names = draw_order({t: name for t, name in series.items() if t in present}, selection.trials)
    names = [*(name for name in names if name != UNEDITED), *(n for n in names if n == UNEDITED)]
    styles = choose_styles(names)
    labels = selection.labels
    figure, panels = make_panels(
        len(labels),
        n_columns=4,
        size=(2.3, 1.0 + 0.24 * len(names)),
        legend={},
        title=title,
        caption=selection.describe(
            f"n = {selection.n_edits} edits at once, {selection.measured_on}.",
            "Bars: 95 % CI over cases. Dotted: the unedited model.",
        ),
        share_y=True,
    )
    points = []
    for label, axes in zip(labels, panels, strict=True):
        drawn = make_points(
            selection.of_metric(label.metric),
            label.symbol,
            lambda line: series[line.trial],
            lambda line: "",
        )
        low, high = interval(drawn)
        rows = [names.index(point.series) for point in drawn]
        mark_points(axes, [point.value for point in drawn], rows, drawn)
        for point, row, start, end in zip(drawn, rows, low, high, strict=True):
            style = styles[point.series]
            axes.errorbar(
                [point.value],
                [row],
                xerr=[[point.value - start], [end - point.value]],
                color=style.color,
                marker=style.marker or "o",
                markerfacecolor="white" if point.series == UNEDITED else style.color,
                capsize=2.5,
                elinewidth=1,
            )
            if point.series == UNEDITED:
                axes.axvline(point.value, color=style.color, linestyle=style.line, linewidth=1)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        if label.is_rate:
            axes.set_xlim(-4, 104)
        elif is_wide(point.value for point in drawn):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(numticks=4))
            show_plain_numbers(axes.xaxis)
        axes.set_xlabel(f"{label.axis} {'↑' if label.higher_is_better else '↓'}")
        title_panel(axes, name_panel(label))
        points += drawn
    return Drawing(figure, tuple(points))
