"""Figure 9: what weight decay trades when one layer is fine-tuned."""

from collections.abc import Sequence
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter

from editbench.results.figures.panels import (
    Drawing,
    draw_level,
    draw_series,
    legend_line,
    make_panels,
    show_log_axis,
    title_panel,
    write_number,
)
from editbench.results.figures.selection import Point, Selection, make_points
from editbench.results.figures.style import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    VERMILION,
    SeriesStyle,
)
from editbench.results.labels import MetricLabel, choose_score

FIELD = "config.weight_decay"
_STYLES = (
    SeriesStyle(BLUE, "o", "-", ""),
    SeriesStyle(VERMILION, "s", "--", ""),
    SeriesStyle(ORANGE, "D", (0, (6, 1, 1, 1, 1, 1)), ""),
    SeriesStyle(GREEN, "^", "-.", ""),
    SeriesStyle(PURPLE, "P", (0, (3, 1)), ""),
)


def draw_weight_decay(selection: Selection) -> Drawing:
    """Draw a panel for each number of edits, with a line for the score and each of its parts.

    A decay of zero stands at the left end, a decade below the smallest other one. Where the decay
    is a rule rather than a number, the trial is not drawn, and the caption says so.
    """
    decays = {
        trial: description.config["weight_decay"]
        for trial, description in selection.trials.items()
        if "weight_decay" in description.config
    }
    numbers = {trial: float(d) for trial, d in decays.items() if isinstance(d, int | float)}
    zero = min((d for d in numbers.values() if d > 0), default=1.0) / 10
    labels = _score_and_parts(selection)
    styles = {label.metric: _STYLES[i % len(_STYLES)] for i, label in enumerate(labels)}
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
            f"n = {selection.n_edits} edits at once, {selection.measured_on}.",
            "Bands: 95 % CI over cases. Dotted, in the same colors: the unedited model.",
            f"{ruled} trial(s) whose decay is a rule are not drawn." if ruled else "",
        ),
    )
    points: list[Point] = []
    for size, axes in zip(sizes, panels, strict=True):
        title = f"n = {size:,} edits"
        for label in labels:
            lines = [line for line in selection.of_metric(label.metric) if line.n_edits == size]
            own = make_points(
                [line for line in lines if line.trial in numbers],
                title,
                lambda line: line.editor,
                lambda line: numbers[line.trial],
            )
            levels = make_points(
                [line for line in lines if line.trial not in decays],
                title,
                lambda line: line.editor,
                lambda line: "",
            )
            _draw(axes, own, levels, styles[label.metric], zero)
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


def _draw(
    axes: Axes, own: Sequence[Point], levels: Sequence[Point], style: SeriesStyle, zero: float
) -> None:
    if own:
        draw_series(axes, own, style, place=lambda point: float(point.x) or zero)
    for level in levels:
        draw_level(axes, level, replace(style, line=":"), width=1)


def _show_decay_axis(axes: Axes, decays: Sequence[float], zero: float) -> None:
    show_log_axis(axes, [decay or zero for decay in decays], "weight decay")
    if 0.0 in decays:
        ticks = sorted({decay or zero for decay in decays})
        step = -(-len(ticks) // 6)
        axes.xaxis.set_major_locator(FixedLocator([ticks[0], *ticks[1::step]]))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: "0" if value <= zero * 1.01 else write_number(value))
        )
