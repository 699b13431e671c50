"""Figure 11: which layers are written to."""

from matplotlib.axes import Axes

from editbench.results.figures.panels import (
    Drawing,
    draw_error_bars,
    draw_level,
    legend_line,
    legend_marker,
    make_panels,
    name_panel,
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
from editbench.results.labels import UNEDITED

FIELD = "config.critical_layers"


def draw_layers(selection: Selection) -> Drawing:
    """Draw a point for each set of layers and number of edits."""
    sets = {
        trial: tuple(description.config["critical_layers"])
        for trial, description in selection.trials.items()
        if "critical_layers" in description.config
    }
    distinct = sorted(set(sets.values()), key=lambda found: (len(found), found))
    places = [write_layers(found) for found in distinct]
    series = name_series(selection.trials, {FIELD})
    present = {line.trial for line in selection.lines}
    edited = {t: name for t, name in series.items() if t in sets and t in present}
    names = draw_order(edited, selection.trials)
    styles = choose_styles(names)
    labels = selection.labels
    figure, panels = make_panels(
        len(labels),
        n_columns=4,
        size=(max(2.4, 0.9 + 0.3 * len(places)), 2.5),
        legend={name: legend_marker(styles[name]) for name in names}
        | {UNEDITED: legend_line(UNEDITED_STYLE)},
        title="Which layers are written to",
        caption=selection.describe(
            f"n = {selection.n_edits} edits at once, {selection.measured_on}.",
            "Bars: 95 % CI over cases. Dotted: the unedited model.",
        ),
    )
    points: list[Point] = []
    for label, axes in zip(labels, panels, strict=True):
        lines = selection.of_metric(label.metric)
        drawn = make_points(
            [line for line in lines if line.trial in sets],
            label.symbol,
            lambda line: series[line.trial],
            lambda line: write_layers(sets[line.trial]),
        )
        levels = make_points(
            [line for line in lines if line.editor == UNEDITED],
            label.symbol,
            lambda line: UNEDITED,
            lambda line: "",
        )
        for index, name in enumerate(names):
            own = [point for point in drawn if point.series == name]
            shift = 0.5 * ((index + 0.5) / len(names) - 0.5)
            x = [places.index(str(point.x)) + shift for point in own]
            draw_error_bars(axes, x, own, styles[name])
        for level in levels:
            draw_level(axes, level, UNEDITED_STYLE)
        _name_places(axes, places)
        title_panel(axes, name_panel(label))
        show_metric_axis(axes, label, (point.value for point in (*drawn, *levels)))
        points += [*drawn, *levels]
    return Drawing(figure, tuple(points))


def write_layers(layers: tuple[int, ...]) -> str:
    """A set of layers in few characters: ``3–8``, or ``3, 5, 8``."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    parts = []
    for run in runs:
        parts += [f"{run[0]}–{run[-1]}"] if len(run) > 2 else [str(layer) for layer in run]
    return ", ".join(parts)


def _name_places(axes: Axes, places: list[str]) -> None:
    crowded = max(map(len, places), default=0) * len(places) > 24
    axes.set_xticks(
        range(len(places)),
        places,
        rotation=60 if crowded else 0,
        horizontalalignment="right" if crowded else "center",
        rotation_mode="anchor" if crowded else "default",
    )
    axes.set_xlim(-0.6, len(places) - 0.4)
    axes.set_xlabel("layers written to")
