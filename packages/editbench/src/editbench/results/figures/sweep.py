"""Every metric against one quantity: a panel for each metric, a line for each editor or setting.

Figure 5 varies the number of edits, Figure 12 the module that is written into, Figure 13 λ.
"""

from collections.abc import Callable, Mapping

from editbench.results.figures.panels import (
    Drawing,
    draw_level,
    draw_series,
    legend_line,
    make_panels,
    name_panel,
    show_log_axis,
    show_metric_axis,
    title_panel,
)
from editbench.results.figures.selection import (
    Point,
    Selection,
    draw_order,
    make_points,
    name_series,
)
from editbench.results.figures.style import UNEDITED_STYLE, choose_styles
from editbench.results.report import SummaryLine

MODULE = "config.module"
PRESERVATION_WEIGHT = "config.preservation_weight"
_N_COLUMNS = 4


def draw_scaling(selection: Selection) -> Drawing:
    """Draw one line for each editor, and the unedited model on the same cases as a dotted one."""
    return draw_sweep(
        selection,
        series=name_series(selection.trials, {"n_edits"}),
        x=lambda line: line.n_edits,
        x_label="n (edits)",
        title="Scaling: metrics against the number of edits",
        caption=selection.describe(
            f"n = {selection.n_edits} edits at once, {selection.measured_on}.",
            "Bands: 95 % CI over cases. Dotted: the unedited model on the same cases.",
        ),
    )


def draw_attention(selection: Selection) -> Drawing:
    """Draw one line for each kind of module that is written into."""
    modules = {
        trial: description.config["module"]
        for trial, description in selection.trials.items()
        if "module" in description.config
    }
    series = name_series(selection.trials, {"n_edits", MODULE, "config.critical_layers"})
    return draw_sweep(
        selection,
        series={
            trial: f"{name}, {modules[trial]}" if trial in modules else name
            for trial, name in series.items()
        },
        x=lambda line: line.n_edits,
        x_label="n (edits)",
        title="Writing into attention or into MLPs",
        caption=selection.describe(
            f"n = {selection.n_edits} edits at once, {selection.measured_on}.",
            "Bands: 95 % CI over cases. Dotted: the unedited model on the same cases.",
        ),
    )


def draw_preservation_weight(selection: Selection) -> Drawing:
    """Draw one line for each number of edits; the unedited model is a dotted level."""
    weights = {
        trial: float(description.config["preservation_weight"])
        for trial, description in selection.trials.items()
        if "preservation_weight" in description.config
    }
    return draw_sweep(
        selection,
        series=name_series(selection.trials, {PRESERVATION_WEIGHT}),
        x=lambda line: weights.get(line.trial),
        x_label="λ (weight of C)",
        title="Metrics against λ",
        caption=selection.describe(
            f"n = {selection.n_edits} edits at once, {selection.measured_on}.",
            "Bands: 95 % CI over cases. Dotted: the unedited model.",
        ),
    )


def draw_sweep(
    selection: Selection,
    *,
    series: Mapping[str, str],
    x: Callable[[SummaryLine], float | None],
    x_label: str,
    title: str,
    caption: str,
) -> Drawing:
    """Draw every metric against a quantity on a log axis, with bands of 95 % intervals.

    Args:
        selection: What to draw.
        series: For each trial the line that it is a point of.
        x: Where a line of the report is drawn; None if it has no place, as the unedited model
            where a hyperparameter is varied: it is then a level across the panel.
        x_label: What the horizontal axis shows, with its unit.
        title: The figure's title.
        caption: The figure's caption.
    """
    labels = selection.labels
    present = {line.trial for line in selection.lines}
    names = draw_order({t: name for t, name in series.items() if t in present}, selection.trials)
    styles = choose_styles(names)
    figure, panels = make_panels(
        len(labels),
        n_columns=_N_COLUMNS,
        size=(2.45, 2.3),
        legend={name: legend_line(styles[name]) for name in names},
        title=title,
        caption=caption,
    )
    points: list[Point] = []
    for label, axes in zip(labels, panels, strict=True):
        lines = selection.of_metric(label.metric)
        placed = [line for line in lines if x(line) is not None]
        drawn = make_points(
            placed, label.symbol, lambda line: series[line.trial], lambda line: x(line) or 0.0
        )
        levels = make_points(
            [line for line in lines if x(line) is None],
            label.symbol,
            lambda line: series[line.trial],
            lambda line: "",
        )
        for name in names:
            if of_series := [point for point in drawn if point.series == name]:
                draw_series(axes, of_series, styles[name])
        for level in levels:
            draw_level(axes, level, UNEDITED_STYLE)
        title_panel(axes, name_panel(label))
        show_log_axis(axes, (float(point.x) for point in drawn), x_label)
        show_metric_axis(axes, label, (point.value for point in (*drawn, *levels)))
        points += [*drawn, *levels]
    return Drawing(figure, tuple(points))
