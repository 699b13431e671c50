"""Metrics against what is varied, with a line for each editor or setting.

Figure 5 varies the number of edits, Figure 9 weight decay, Figure 11 the layers that are written
to, Figure 12 the module, Figure 13 λ.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter

from editbench.results.figures.panels import (
    Drawing,
    draw_error_bars,
    draw_level,
    draw_series,
    legend_line,
    legend_marker,
    make_panels,
    name_panel,
    show_log_axis,
    show_metric_axis,
    title_panel,
    write_number,
)
from editbench.results.figures.selection import Point, Selection, make_points, name_series
from editbench.results.figures.style import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    UNEDITED_STYLE,
    VERMILION,
    SeriesStyle,
    choose_styles,
)
from editbench.results.labels import UNEDITED, MetricLabel, choose_score
from editbench.results.report import SummaryLine

MODULE = "config.module"
PRESERVATION_WEIGHT = "config.preservation_weight"
CRITICAL_LAYERS = "config.critical_layers"
WEIGHT_DECAY = "config.weight_decay"
_N_COLUMNS = 4
_METRIC_STYLES = (
    SeriesStyle(BLUE, "o", "-", ""),
    SeriesStyle(VERMILION, "s", "--", ""),
    SeriesStyle(ORANGE, "D", (0, (6, 1, 1, 1, 1, 1)), ""),
    SeriesStyle(GREEN, "^", "-.", ""),
    SeriesStyle(PURPLE, "P", (0, (3, 1)), ""),
)


def draw_scaling(selection: Selection) -> Drawing:
    """Draw one line for each editor, and the unedited model on the same cases as a dotted one."""
    return draw_sweep(
        selection,
        series=name_series(selection.trials, {"n_edits"}),
        x=lambda line: line.n_edits,
        x_label="n (edits)",
        title="Scaling: metrics against the number of edits",
        caption=selection.describe(
            "Bands: 95 % CI over cases. Dotted: the unedited model on the same cases."
        ),
    )


def draw_attention(selection: Selection) -> Drawing:
    """Draw one line for each kind of module that is written into."""
    modules = _values_of(MODULE, selection)
    series = name_series(selection.trials, {"n_edits", MODULE, CRITICAL_LAYERS})
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
            "Bands: 95 % CI over cases. Dotted: the unedited model on the same cases."
        ),
    )


def draw_preservation_weight(selection: Selection) -> Drawing:
    """Draw one line for each number of edits; the unedited model is a dotted level."""
    weights = _values_of(PRESERVATION_WEIGHT, selection)
    return draw_sweep(
        selection,
        series=name_series(selection.trials, {PRESERVATION_WEIGHT}),
        x=lambda line: float(weights[line.trial]) if line.trial in weights else None,
        x_label="λ (weight of C)",
        title="Metrics against λ",
        caption=selection.describe("Bands: 95 % CI over cases. Dotted: the unedited model."),
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

    `series` names for each trial the line that it is a point of; `x` says where a line of the
    report is drawn. It is None for what has no place, as the unedited model where a hyperparameter
    is varied: that is then a level across the panel.
    """
    labels = selection.labels
    names = selection.order(series)
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
        drawn = make_points(placed, label.symbol, series, lambda line: x(line) or 0.0)
        levels = make_points([line for line in lines if x(line) is None], label.symbol, series)
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


def draw_layers(selection: Selection) -> Drawing:
    """Draw a point for each set of layers and number of edits."""
    sets = {trial: tuple(each) for trial, each in _values_of(CRITICAL_LAYERS, selection).items()}
    distinct = sorted(set(sets.values()), key=lambda found: (len(found), found))
    places = [write_layers(found) for found in distinct]
    series = name_series(selection.trials, {CRITICAL_LAYERS})
    names = selection.order({trial: name for trial, name in series.items() if trial in sets})
    styles = choose_styles(names)
    labels = selection.labels
    figure, panels = make_panels(
        len(labels),
        n_columns=_N_COLUMNS,
        size=(max(2.4, 0.9 + 0.3 * len(places)), 2.5),
        legend={name: legend_marker(styles[name]) for name in names}
        | {UNEDITED: legend_line(UNEDITED_STYLE)},
        title="Which layers are written to",
        caption=selection.describe("Bars: 95 % CI over cases. Dotted: the unedited model."),
    )
    points: list[Point] = []
    for label, axes in zip(labels, panels, strict=True):
        lines = selection.of_metric(label.metric)
        drawn = make_points(
            [line for line in lines if line.trial in sets],
            label.symbol,
            series,
            lambda line: write_layers(sets[line.trial]),
        )
        unedited = [line for line in lines if line.editor == UNEDITED]
        levels = make_points(unedited, label.symbol, series)
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


def draw_weight_decay(selection: Selection) -> Drawing:
    """Draw a panel for each number of edits, with a line for the score and each of its parts.

    A decay of zero stands at the left end, a decade below the smallest other one. Where the decay
    is a rule rather than a number, the trial is not drawn, and the caption says so.
    """
    decays = _values_of(WEIGHT_DECAY, selection)
    numbers = {trial: float(d) for trial, d in decays.items() if isinstance(d, int | float)}
    zero = min((d for d in numbers.values() if d > 0), default=1.0) / 10
    labels = _score_and_parts(selection)
    styles = {
        label.metric: _METRIC_STYLES[i % len(_METRIC_STYLES)] for i, label in enumerate(labels)
    }
    sizes = sorted({selection.trials[trial].n_edits for trial in decays})
    ruled = len(decays) - len(numbers)
    figure, panels = make_panels(
        max(1, len(sizes)),
        n_columns=3,
        size=(4.0, 3.1),
        legend={
            f"{label.symbol}: {label.meaning}": legend_line(styles[label.metric])
            for label in labels
        },
        title="What weight decay trades",
        caption=selection.describe(
            "Bands: 95 % CI over cases. Dotted, in the same colors: the unedited model.",
            f"{ruled} trial(s) whose decay is a rule are not drawn." if ruled else "",
        ),
    )
    editors = {trial: description.editor for trial, description in selection.trials.items()}
    points: list[Point] = []
    for size, axes in zip(sizes, panels, strict=True):
        title = f"n = {size:,} edits"
        for label in labels:
            lines = [line for line in selection.of_metric(label.metric) if line.n_edits == size]
            placed = [line for line in lines if line.trial in numbers]
            own = make_points(placed, title, editors, lambda line: numbers[line.trial])
            levels = make_points(
                [line for line in lines if line.trial not in decays], title, editors
            )
            style = styles[label.metric]
            if own:
                draw_series(axes, own, style, place=lambda point: float(point.x) or zero)
            for level in levels:
                draw_level(axes, level, replace(style, line=":"), width=1)
            points += [*own, *levels]
        title_panel(axes, title)
        found = [float(point.x) for point in points if point.panel == title and point.x != ""]
        _show_decay_axis(axes, found, zero)
        axes.set_ylim(-4, 104)
        axes.set_ylabel("rate (%)")
    return Drawing(figure, tuple(points))


def _score_and_parts(selection: Selection) -> list[MetricLabel]:
    score = choose_score(label.metric for label in selection.labels)
    parts = next(
        (m.aggregates[score] for m in selection.metrics if score and score in m.aggregates), ()
    )
    return [label for label in selection.labels if label.metric in (score, *parts)]


def _show_decay_axis(axes: Axes, decays: Sequence[float], zero: float) -> None:
    show_log_axis(axes, [decay or zero for decay in decays], "weight decay")
    if 0.0 in decays:
        ticks = sorted({decay or zero for decay in decays})
        step = -(-len(ticks) // 6)
        axes.xaxis.set_major_locator(FixedLocator([ticks[0], *ticks[1::step]]))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: "0" if value <= zero * 1.01 else write_number(value))
        )


def _values_of(field: str, selection: Selection) -> dict[str, Any]:
    """A field of the configuration, of the trials whose editor has it."""
    name = field.removeprefix("config.")
    return {
        trial: description.config[name]
        for trial, description in selection.trials.items()
        if name in description.config
    }
